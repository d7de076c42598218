#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Take a host out of the placement of secondaries, or back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ft_host
short_description: Take a host out of the placement of secondaries, or back
version_added: 0.1.0
description:
  - Begins or ends the maintenance of the host that the module runs on.
  - A host in maintenance takes no new secondary, also after a restart of its agent or of itself.
  - What runs or stands by on it is not touched. RV(primaries) and RV(secondaries) say what has to leave before the host may go down;
    M(kvmft.core.ft_failover) and M(kvmft.core.ft_secondary) move it.
  - A secondary that is there already can still take over, because the loss of a primary asks for no mark.
options:
  state:
    description:
      - V(maintenance) has no new secondary placed on the host.
      - V(active) ends that.
    type: str
    choices: [active, maintenance]
    required: true
  reason:
    description:
      - Why, for those who look later; at most 200 characters. It is in the events and in what others are told whose VMs
        find no host.
      - Without it the reason stays as it is; at first it is empty.
      - Only used with O(state=maintenance).
    type: str
extends_documentation_fragment:
  - kvmft.core.control
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: kvmft.core.ft_host_info
  - module: kvmft.core.ft_failover
  - module: kvmft.core.ft_secondary
"""

EXAMPLES = r"""
- name: Begin the maintenance of this host
  kvmft.core.ft_host:
    state: maintenance
    reason: new disks
  register: upkeep

- name: Move the secondaries away that it has
  kvmft.core.ft_secondary:
    name: "{{ item }}"
    host: node-c
  loop: "{{ upkeep.secondaries }}"
  delegate_to: node-b

- name: Let it take secondaries again
  kvmft.core.ft_host:
    state: active
"""

RETURN = r"""
maintenance:
  description: The mark as it is now. In check mode, as it was before the change.
  returned: success
  type: dict
  contains:
    "on":
      description: Whether the host is in maintenance.
      type: bool
    reason:
      description: What was given as the reason.
      type: str
    since:
      description: Unix time at which it began. Null when it is not in maintenance.
      type: float
  sample:
    "on": true
    reason: new disks
    since: 1763733600.0
host:
  description: The host's inventory name.
  returned: success
  type: str
  sample: node-a
primaries:
  description: VMs with fault tolerance that run on the host. One that is switched off is not among them.
  returned: success
  type: list
  elements: str
  sample: [db1]
secondaries:
  description: VMs whose secondary is on the host.
  returned: success
  type: list
  elements: str
  sample: [web1]
empty:
  description: Whether neither is there, so that the host may go down without anybody noticing.
  returned: success
  type: bool
code:
  description: Short name of the error.
  returned: failure
  type: str
  sample: agent_down
remedy:
  description: What to do about the error.
  returned: failure
  type: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmft.core.plugins.module_utils import _desired
from ansible_collections.kvmft.core.plugins.module_utils._control import Control, ControlError


def run(module: AnsibleModule, control: Control) -> None:
    """Look, plan, ask."""
    info = control.ask("host_info")
    now = info.get("maintenance") or {"on": False, "reason": "", "since": None}
    plan = _desired.plan_host(now, module.params["state"], module.params["reason"])
    result: dict[str, t.Any] = {"changed": plan.changed, "host": info["host"], **_desired.on_host(info)}
    if module._diff:
        result["diff"] = {"before": plan.before, "after": plan.after}
    for op, args in plan.requests:
        now = control.ask(op, check=module.check_mode, **args)["maintenance"]
    module.exit_json(maintenance=now, **result)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["active", "maintenance"], "required": True},
            "reason": {"type": "str"},
            "socket_path": {"type": "path", "default": "/run/kvmft/control.sock"},
        },
        supports_check_mode=True,
    )
    try:
        run(module, Control(module.params["socket_path"]))
    except ControlError as error:
        module.fail_json(**error.to_result())


if __name__ == "__main__":
    main()
