#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turn fault tolerance of a VM on or off, or suspend it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ft_vm
short_description: Turn fault tolerance of a VM on or off
version_added: 0.1.0
description:
  - Protects a VM of libvirt with a secondary on another host, suspends that protection, or ends it.
  - The VM may be running; it goes on running whatever the outcome.
  - Every reason against protecting a VM is reported at once, each with its remedy.
options:
  name:
    description: Name of the VM in libvirt.
    type: str
    required: true
    aliases: [vm]
  state:
    description:
      - V(enabled) protects the VM, and resumes a suspended protection.
      - V(suspended) keeps the settings and stops protecting. The VM runs on without a secondary.
      - V(disabled) ends protection and forgets the settings.
    type: str
    choices: [enabled, suspended, disabled]
    default: enabled
  secondary:
    description:
      - Host, by its inventory name, for the secondary. Without it the agent chooses.
      - Only used with O(state=enabled).
    type: str
  options:
    description: Settings of this VM; those that are not given keep their value. All in milliseconds.
    type: dict
    suboptions:
      interval_ms:
        description: Longest time between two checkpoints.
        type: float
      min_interval_ms:
        description: Shortest time between two checkpoints.
        type: float
      detection_ms:
        description: Silence after which the other side counts as lost.
        type: float
      hold_bound_ms:
        description: Time after which a VM whose output has to wait is paused.
        type: float
      agent_grace_ms:
        description: Time that a restarting agent has before its silence counts.
        type: float
  wait:
    description:
      - Wait until the state is reached, so for V(enabled) until the first sync is done and the VM is C(protected).
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
  - module: kvmft.core.ft_vm_info
  - module: kvmft.core.ft_failover
"""

EXAMPLES = r"""
- name: Protect the database and wait until it is protected
  kvmft.core.ft_vm:
    name: db1
    state: enabled

- name: Tune the interval
  kvmft.core.ft_vm:
    name: db1
    options:
      interval_ms: 10

- name: Suspend protection during maintenance of the other host
  kvmft.core.ft_vm:
    name: db1
    state: suspended

- name: End protection
  kvmft.core.ft_vm:
    name: db1
    state: disabled
"""

RETURN = r"""
status:
  description: The VM as the agent showed it last.
  returned: success, or when the wait timed out
  type: dict
  contains:
    state:
      description: One of C(disabled), C(starting), C(protected), C(need_secondary), C(suspended), C(failing_over), C(fenced).
      type: str
    reason:
      description: Why it is in that state.
      type: str
    primary:
      description: Host that runs the VM.
      type: str
    secondary:
      description: Host of the secondary.
      type: str
  sample:
    vm: db1
    state: protected
    primary: node-a
    secondary: node-b
code:
  description: Short name of the error.
  returned: failure
  type: str
  sample: not_compliant
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


def _wait(control: Control, name: str, state: str, timeout: int) -> tuple[dict[str, t.Any], bool]:
    """The last status, and whether it is `state`, after at most `timeout` seconds."""
    until = time.monotonic() + timeout
    while True:
        status = control.ask("vm_status", vm=name)
        if _desired.reached(status, state):
            return status, True
        if _desired.hopeless(status) or time.monotonic() >= until:
            return status, False
        time.sleep(POLL)


def run(module: AnsibleModule, control: Control) -> None:
    """Look, plan, ask, wait."""
    params = module.params
    name, state = params["name"], params["state"]
    status = control.ask("vm_status", vm=name)
    try:
        plan = _desired.plan(status, state, params["secondary"], params["options"])
    except ValueError as error:
        module.fail_json(msg=f"VM {name}: {error}.", code="not_possible", status=status)
    result: dict[str, t.Any] = {"changed": plan.changed, "status": status}
    if module._diff:
        result["diff"] = {"before": plan.before, "after": plan.after}
    for op, args in plan.requests:
        answer = control.ask(op, vm=name, check=module.check_mode, **args)
        result["status"] = answer["status"]
    if params["wait"] and not module.check_mode:
        result["status"], done = _wait(control, name, state, params["timeout"])
        if not done:
            last = result["status"]
            module.fail_json(
                msg=f"VM {name} did not become {state} within {params['timeout']} s: it is "
                f"{last.get('state')} ({last.get('reason')}). The VM runs on and the agent goes on "
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
            "state": {"type": "str", "choices": ["enabled", "suspended", "disabled"], "default": "enabled"},
            "secondary": {"type": "str"},
            "options": {
                "type": "dict",
                "options": {
                    "interval_ms": {"type": "float"},
                    "min_interval_ms": {"type": "float"},
                    "detection_ms": {"type": "float"},
                    "hold_bound_ms": {"type": "float"},
                    "agent_grace_ms": {"type": "float"},
                },
            },
            "wait": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 600},
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
