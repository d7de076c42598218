#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Have the secondary of a VM take over."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ft_failover
short_description: Have the secondary of a VM take over
version_added: 0.1.0
description:
  - Fails a protected VM over to O(target) and waits until it runs there.
  - Running it again changes nothing, because O(target) names where the VM shall run.
options:
  name:
    description: Name of the VM in libvirt.
    type: str
    required: true
    aliases: [vm]
  target:
    description: Host, by its inventory name, that shall run the VM afterwards.
    type: str
    required: true
  mode:
    description:
      - V(unplanned) has the secondary take over at its last commit, as after the loss of the primary's host.
      - V(planned) and V(test) are not offered by this version; the agent says so and nothing changes.
    type: str
    choices: [unplanned, planned, test]
    default: unplanned
  wait:
    description: Wait until the VM runs on O(target).
    type: bool
    default: true
  timeout:
    description: Seconds to wait at most.
    type: int
    default: 60
extends_documentation_fragment:
  - kvmft.core.control
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: kvmft.core.ft_vm
"""

EXAMPLES = r"""
- name: Rehearse the loss of the primary
  kvmft.core.ft_failover:
    name: db1
    target: node-b
    mode: unplanned
"""

RETURN = r"""
status:
  description: The VM as the agent showed it last.
  returned: success, or when the wait timed out
  type: dict
  sample:
    vm: db1
    state: need_secondary
    primary: node-b
code:
  description: Short name of the error.
  returned: failure
  type: str
  sample: not_offered
remedy:
  description: What to do about the error.
  returned: failure
  type: str
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmft.core.plugins.module_utils._control import Control, ControlError

POLL = 0.25  # seconds between two looks at the status
SETTLED = ("protected", "need_secondary", "starting", "suspended", "disabled")


def _wait(control: Control, name: str, target: str, timeout: int) -> tuple[dict[str, t.Any], bool]:
    """The last status, and whether the VM runs on `target`, after at most `timeout` seconds."""
    until = time.monotonic() + timeout
    while True:
        status = control.ask("vm_status", vm=name)
        if status.get("primary") == target and status.get("state") in SETTLED:
            return status, True
        if time.monotonic() >= until:
            return status, False
        time.sleep(POLL)


def run(module: AnsibleModule, control: Control) -> None:
    """Look, ask, wait."""
    params = module.params
    name, target = params["name"], params["target"]
    before = control.ask("vm_status", vm=name)
    # Also asked when the VM runs there already: the agent refuses modes that it does not offer.
    answer = control.ask(
        "vm_failover", vm=name, mode=params["mode"], target=target, check=module.check_mode
    )
    result: dict[str, t.Any] = {"changed": answer["changed"], "status": answer["status"]}
    if module._diff:
        result["diff"] = {
            "before": {"primary": before.get("primary")},
            "after": {"primary": target},
        }
    if params["wait"] and answer["changed"] and not module.check_mode:
        result["status"], done = _wait(control, name, target, params["timeout"])
        if not done:
            last = result["status"]
            module.fail_json(
                msg=f"VM {name} does not run on {target} after {params['timeout']} s: it is "
                f"{last.get('state')} on {last.get('primary')} ({last.get('reason')}). "
                f"See `kvmft events --vm {name}` on both hosts.",
                code="timeout",
                **result,
            )
    module.exit_json(**result)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True, "aliases": ["vm"]},
            "target": {"type": "str", "required": True},
            "mode": {"type": "str", "choices": ["unplanned", "planned", "test"], "default": "unplanned"},
            "wait": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 60},
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
