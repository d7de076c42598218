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
  - It may run on either host of the pair.
options:
  name:
    description: Name of the VM in libvirt.
    type: str
    required: true
    aliases: [vm]
  target:
    description: Host, by its inventory name, that shall run the VM afterwards. It must have the secondary.
    type: str
    required: true
  mode:
    description:
      - V(unplanned) has the secondary take over at its last commit, as after the loss of the primary's host.
        What the guest did after that commit is gone, and nobody outside has seen it. The old primary is ended.
      - V(planned) hands the running VM over after one last commit, so that nothing at all is lost. Packets that
        reach the old host meanwhile are carried over, and connections stay. The old primary
        becomes the standby from the memory and the disks that it has, so only what differs is sent, not
        everything. Only a VM that is C(protected) is handed over. When it fails the VM goes on where it was, and
        the module fails with the reason.
      - V(test) is not offered by this version; the agent says so and nothing changes.
    type: str
    choices: [unplanned, planned, test]
    default: unplanned
  wait:
    description: Wait until the VM runs on O(target).
    type: bool
    default: true
  wait_protected:
    description:
      - Wait also until the VM is C(protected) again, by a new secondary, before the module returns.
        Also when it runs on O(target) already. It implies O(wait=true).
      - The default is V(false), because the failover is done when the VM runs on O(target), and where the
        other host is really lost there may be nobody to protect it for hours. Set it in drills, and where the
        next task needs the protection, as a failover back does.
    type: bool
    default: false
  timeout:
    description:
      - Seconds to wait at most, for O(wait) and O(wait_protected) together. After an unplanned failover the
        new secondary may need a sync of all that differs; give it the time.
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
  - module: kvmft.core.ft_secondary
"""

EXAMPLES = r"""
- name: Rehearse the loss of the primary
  kvmft.core.ft_failover:
    name: db1
    target: node-b
    mode: unplanned

- name: Move the VM away without losing anything, and go on when it is protected again
  kvmft.core.ft_failover:
    name: db1
    target: node-b
    mode: planned
    wait_protected: true
    timeout: 600
  register: moved

- name: Say how long nobody ran it
  ansible.builtin.debug:
    msg: "{{ moved.failover.outage_ms }} ms"
"""

RETURN = r"""
status:
  description: The VM as the agent showed it last; see M(kvmft.core.ft_vm_info) for its fields.
  returned: success, or when the wait timed out
  type: dict
  sample:
    vm: db1
    state: need_secondary
    primary: node-b
protected:
  description: Whether the VM is protected now. In check mode, whether it is before the change.
  returned: success, or when the wait timed out
  type: bool
reason:
  description: Why the VM is in its state.
  returned: success, or when the wait timed out
  type: str
  sample: took over from node-a
failover:
  description: The figures of this failover.
  returned: changed, when it was waited for and O(target)'s events could be read
  type: dict
  contains:
    kind:
      description: V(planned), V(ordered) by a person or a module, or V(unplanned) when the loss came first.
      type: str
    epoch:
      description: Commit from which the VM runs on.
      type: int
    activation_ms:
      description: Time in milliseconds that loading the devices and starting the VM took, without the arbiter.
      type: float
    since_loss_ms:
      description: Time in milliseconds from the loss of the primary to a running VM. Null when nothing was lost.
      type: float
    outage_ms:
      description:
        - Time in milliseconds from the order on the old primary to a running VM on O(target), which is at least as
          long as the VM stood still. Null for other modes than V(planned).
      type: float
    carried_packets:
      description: Packets for the VM that reached the old host while it stood still, and were carried over.
      type: int
  sample:
    kind: planned
    epoch: 4711
    activation_ms: 38.2
    since_loss_ms: null
    outage_ms: 71.5
    carried_packets: 3
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
from ansible_collections.kvmft.core.plugins.module_utils import _desired, _takeover
from ansible_collections.kvmft.core.plugins.module_utils._control import Control, ControlError

POLL = 0.25  # seconds between two looks at the status
SETTLED = ("protected", "need_secondary", "starting", "suspended", "disabled")
EVENTS = 500  # as many of the VM's newest events have those of a failover among them


def _wait(
    control: Control, params: dict[str, t.Any], earlier: int
) -> tuple[dict[str, t.Any], bool]:
    """The last status, and whether the VM is as asked for, after at most `timeout` seconds."""
    until = time.monotonic() + params["timeout"]
    while True:
        status = control.ask("vm_status", vm=params["name"])
        there = status.get("primary") == params["target"] and status.get("state") in SETTLED
        if there and (not params["wait_protected"] or _desired.protected_anew(status, earlier)):
            return status, True
        if time.monotonic() >= until:
            return status, False
        time.sleep(POLL)


def _figures(control: Control, name: str, target: str, since: float) -> dict[str, t.Any] | None:
    """What the events say of it. That they cannot be read does not undo a failover."""
    try:
        found = control.ask("events_cluster", vm=name, limit=EVENTS)
    except ControlError:
        return None
    return _takeover.takeover(found["events"], target, since)


def _refuse(module: AnsibleModule, sentence: str) -> None:
    module.fail_json(msg=sentence, code="not_protected", remedy="Wait for `protected`.")


def run(module: AnsibleModule, control: Control) -> None:
    """Look, ask, wait."""
    params = module.params
    name, target = params["name"], params["target"]
    before = control.ask("vm_status", vm=name)
    begun = time.time()
    refusal = _desired.refuses_failover(before, target, params["mode"])
    if refusal and before.get("state") == "starting" and not module.check_mode:
        # The standby would ignore the order: it has nothing whole yet that it could run.
        _refuse(module, refusal)
    # Also asked when the VM runs there already: the agent refuses modes that it does not offer.
    answer = control.ask(
        "vm_failover", vm=name, mode=params["mode"], target=target, check=module.check_mode
    )
    if refusal and module.check_mode:
        _refuse(module, refusal)
    changed, status, done = answer["changed"], answer["status"], True
    result: dict[str, t.Any] = {"changed": changed}
    if module._diff:
        result["diff"] = {
            "before": {"primary": before.get("primary")},
            "after": {"primary": target},
        }
    waits = params["wait_protected"] or (params["wait"] and changed)
    if waits and not module.check_mode:
        # The pair of before may be shown until its end is noticed; a later one has a later generation.
        earlier = (before.get("generation") or 0) if changed else -1
        status, done = _wait(control, params, earlier)
        figures = _figures(control, name, target, begun) if changed else None
        if figures is not None:
            result["failover"] = figures
    result.update(_desired.outcome(status))
    if not done:
        what = "is not protected again on" if status.get("primary") == target else "does not run on"
        module.fail_json(
            msg=f"VM {name} {what} {target} after {params['timeout']} s: it is "
            f"{status.get('state')} on {status.get('primary')} ({status.get('reason')}). "
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
            "wait_protected": {"type": "bool", "default": False},
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
