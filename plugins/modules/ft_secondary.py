#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Move or test the secondary of a VM."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ft_secondary
short_description: Move or test the secondary of a VM
version_added: 0.1.0
description:
  - Moves the secondary of a VM that is enabled to another host, or tests that protection comes back by itself
    when the secondary ends.
  - The VM runs on and is not touched. It is unprotected until the new secondary is in sync.
  - It runs on the host that runs the VM.
options:
  name:
    description: Name of the VM in libvirt.
    type: str
    required: true
    aliases: [vm]
  state:
    description:
      - V(present) has the secondary on O(host). Running it again changes nothing. The agent asks first whether
        that host can take it, so a host that cannot take it costs no protection.
      - V(restarted) is a test. The QEMU of the standby is killed, as by a crash, and protection has to come back by
        itself. It is a change each time, and only a VM that is C(protected) is tested.
    type: str
    choices: [present, restarted]
    default: present
  host:
    description: Host, by its inventory name, for the secondary. Required with O(state=present), and only used there.
    type: str
  wait:
    description:
      - Wait until the VM is C(protected) by that secondary.
      - A VM that is switched off gets its secondary when it is started; for it the new host is only noted, and
        RV(protected=false) is returned with the reason.
    type: bool
    default: true
  timeout:
    description: Seconds to wait at most. After that the module fails and says what was reached; the agent goes on.
    type: int
    default: 600
extends_documentation_fragment:
  - kvmft.core.control
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: kvmft.core.ft_vm
  - module: kvmft.core.ft_failover
"""

EXAMPLES = r"""
- name: Free node-b for maintenance
  kvmft.core.ft_secondary:
    name: db1
    host: node-c

- name: Test that a secondary that crashes is replaced
  kvmft.core.ft_secondary:
    name: db1
    state: restarted
"""

RETURN = r"""
status:
  description: The VM as the agent showed it last; see M(kvmft.core.ft_vm_info) for its fields.
  returned: success, or when the wait timed out
  type: dict
  sample:
    vm: db1
    state: protected
    primary: node-a
    secondary: node-c
protected:
  description: Whether the VM is protected now. In check mode, whether it is before the change.
  returned: success, or when the wait timed out
  type: bool
reason:
  description: Why the VM is in its state.
  returned: success, or when the wait timed out
  type: str
code:
  description: Short name of the error.
  returned: failure
  type: str
  sample: not_protected
remedy:
  description: What to do about the error.
  returned: failure
  type: str
reasons:
  description: Every single reason, each with C(code), C(message) and C(remedy).
  returned: failure
  type: list
  elements: dict
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmft.core.plugins.module_utils import _desired
from ansible_collections.kvmft.core.plugins.module_utils._control import Control, ControlError

POLL = 0.25  # seconds between two looks at the status


def _wait(
    control: Control, params: dict[str, t.Any], earlier: int
) -> tuple[dict[str, t.Any], bool]:
    """The last status, and whether it is as asked for, after at most `timeout` seconds."""
    until = time.monotonic() + params["timeout"]
    while True:
        status = control.ask("vm_status", vm=params["name"])
        if params["state"] == "present":
            done = _desired.reached(status, "enabled", params["host"])
        else:
            done = _desired.protected_anew(status, earlier)
        if done:
            return status, True
        if _desired.hopeless(status) or time.monotonic() >= until:
            return status, False
        time.sleep(POLL)


def run(module: AnsibleModule, control: Control) -> None:
    """Look, plan, ask, wait."""
    params = module.params
    name = params["name"]
    before = status = control.ask("vm_status", vm=name)
    try:
        if params["state"] == "present":
            plan = _desired.plan_secondary(status, params["host"])
        else:
            plan = _desired.plan_restart(status)
    except ValueError as error:
        module.fail_json(msg=f"VM {name}: {error}.", code="not_possible", status=status)
    result: dict[str, t.Any] = {"changed": plan.changed}
    if module._diff:
        result["diff"] = {"before": plan.before, "after": plan.after}
    for op, args in plan.requests:
        status = control.ask(op, vm=name, check=module.check_mode, **args)["status"]
    done = True
    if params["wait"] and not module.check_mode:
        # The end of a standby is noticed a little later; a new pair has a later generation.
        status, done = _wait(control, params, before.get("generation") or 0)
    result.update(_desired.outcome(status))
    if not done:
        where = f" by {params['host']}" if params["host"] else ""
        module.fail_json(
            msg=f"VM {name} is not protected{where} after {params['timeout']} s: it is "
            f"{status.get('state')} ({status.get('reason')}). The VM runs on and the agent goes on "
            f"trying; see `kvmft events --vm {name}`, or raise timeout.",
            code="timeout",
            **result,
        )
    module.exit_json(**result)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True, "aliases": ["vm"]},
            "state": {"type": "str", "choices": ["present", "restarted"], "default": "present"},
            "host": {"type": "str"},
            "wait": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 600},
            "socket_path": {"type": "path", "default": "/run/kvmft/control.sock"},
        },
        required_if=[("state", "present", ("host",))],
        supports_check_mode=True,
    )
    if module.params["state"] == "restarted" and module.params["host"]:
        module.fail_json(
            msg="host is given with state=restarted, which restarts the secondary where it is. Leave "
            "host out, or move the secondary first with state=present.",
            code="not_possible",
        )
    try:
        run(module, Control(module.params["socket_path"]))
    except ControlError as error:
        module.fail_json(**error.to_result())


if __name__ == "__main__":
    main()
