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
      - Host, by its inventory name, for the secondary. Without it the agent chooses, and keeps its choice.
      - When the VM is protected already and its secondary is elsewhere, it is moved. The VM runs on, and is
        unprotected until the new secondary is in sync. The agent asks first whether the host can take it.
      - The host that runs the VM is refused, so after a failover name another one, or leave this out.
      - Only used with O(state=enabled).
    type: str
  allowed_hosts:
    description:
      - Hosts, by their inventory names, on which the VM may run or have its secondary.
        The host that runs it now must be among them. The list holds on after failovers.
      - An empty list allows all hosts. Without this option the list stays as it is; at first it is empty.
      - A secondary that is on a host which is not allowed any more stays there until it is made anew;
        name O(secondary) too to move it.
      - Only used with O(state=enabled).
    type: list
    elements: str
  options:
    description:
      - Settings of this VM; those that are not given keep their value. Times are in milliseconds.
      - New values count from the next pairing on, which O(state=suspended) and O(state=enabled) bring about.
      - Only used with O(state=enabled).
    type: dict
    suboptions:
      interval_ms:
        description: Longest time between two checkpoints, kept while no output of the VM waits for one.
        type: float
      min_interval_ms:
        description: Shortest time that the VM runs between two checkpoints while its output waits for one.
        type: float
      max_added_latency_ms:
        description:
          - How long output may wait for its checkpoint. A VM that changes much memory is given shorter intervals for it.
          - If it cannot be kept, C(objective_missed) of the status says why.
        type: float
      max_pause_share:
        description: Most of the time that the VM may stand still for checkpoints, between V(0.01) and V(0.9).
        type: float
      delta_mib:
        description:
          - Memory on the primary's host for the pages that were sent last, in MiB. Of a page that is in it only what changed is
            sent. V(0) sends all pages whole.
        type: float
      detection_ms:
        description: Silence on both networks, FT and management, after which the other side counts as lost.
        type: float
      ft_silence_ms:
        description:
          - Silence on the FT network alone after which the other side counts as lost although it shows life on the management
            network. It must be at least O(options.detection_ms).
        type: float
      hold_bound_ms:
        description: Time after which a VM whose output has to wait is paused.
        type: float
      agent_grace_ms:
        description: Time that a restarting agent has before its silence counts.
        type: float
      realtime:
        description:
          - Whether the replication's processes and QEMU's main thread have the lowest real-time priority while the VM is
            protected, so that a checkpoint does not wait behind ordinary work of the host.
        type: bool
      replay_input:
        description:
          - Whether packets that reached the VM since its last checkpoint are put in again after an unplanned failover,
            so that clients need not wait until they send them again by themselves.
        type: bool
      sync_mib_s:
        description: Most that a sync sends, in MiB per second. V(0) is without a bound.
        type: float
      true_time:
        description:
          - Whether a VM on KVM that reads KVM's clock (kvmclock, or Hyper-V's reference time) has the time put forward by
            which checkpoints and failovers stop it.
        type: bool
  wait:
    description:
      - Wait until the state is reached, so for V(enabled) until the first sync is done and the VM is C(protected).
      - A VM that is switched off cannot be protected before it is started, which the agent then sees by itself.
        For it V(enabled) counts as reached, with RV(protected=false) and the reason in RV(reason).
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
  - module: kvmft.core.ft_secondary
"""

EXAMPLES = r"""
- name: Protect the database and wait until it is protected
  kvmft.core.ft_vm:
    name: db1
    state: enabled

- name: Tune how long output may wait, and how much of the time the VM may stand still
  kvmft.core.ft_vm:
    name: db1
    options:
      max_added_latency_ms: 20
      max_pause_share: 0.3

- name: Keep it on three hosts of many, with the secondary on node-c; moves it there if it is elsewhere
  kvmft.core.ft_vm:
    name: db1
    allowed_hosts: [node-a, node-b, node-c]
    secondary: node-c

- name: Enable a VM that may be off, and say whether it is protected now
  kvmft.core.ft_vm:
    name: db2
    options:
      sync_mib_s: 100
  register: db2

- name: Say so
  ansible.builtin.debug:
    msg: "{{ 'protected' if db2.protected else db2.reason }}"

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
    allowed_hosts:
      description: Hosts that may run the VM or have its secondary. Empty for all.
      type: list
      elements: str
    switched_off:
      description: Whether the VM is switched off; then it is protected once it is started.
      type: bool
  sample:
    vm: db1
    state: protected
    primary: node-a
    secondary: node-b
    allowed_hosts: []
    switched_off: false
protected:
  description: Whether the VM is protected now. In check mode, whether it is before the change.
  returned: success, or when the wait timed out
  type: bool
reason:
  description: Why the VM is in its state.
  returned: success, or when the wait timed out
  type: str
  sample: the VM is off; protection begins when it is started
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


def _wait(
    control: Control, params: dict[str, t.Any], status: dict[str, t.Any]
) -> tuple[dict[str, t.Any], bool]:
    """The last status, and whether it is as asked for, after at most `timeout` seconds.

    `status` is that of the request: of a VM that is not there any more, and is forgotten, no other can be had.
    """
    until = time.monotonic() + params["timeout"]
    while not _desired.reached(status, params["state"], params["secondary"]):
        if _desired.hopeless(status) or time.monotonic() >= until:
            return status, False
        time.sleep(POLL)
        status = control.ask("vm_status", vm=params["name"])
    return status, True


def run(module: AnsibleModule, control: Control) -> None:
    """Look, plan, ask, wait."""
    params = module.params
    name, state = params["name"], params["state"]
    status = control.ask("vm_status", vm=name)
    try:
        plan = _desired.plan(
            status, state, params["secondary"], params["options"], params["allowed_hosts"]
        )
    except ValueError as error:
        module.fail_json(msg=f"VM {name}: {error}.", code="not_possible", status=status)
    result: dict[str, t.Any] = {"changed": plan.changed}
    if module._diff:
        result["diff"] = {"before": plan.before, "after": plan.after}
    for op, args in plan.requests:
        status = control.ask(op, vm=name, check=module.check_mode, **args)["status"]
    done = True
    if params["wait"] and not module.check_mode:
        status, done = _wait(control, params, status)
    result.update(_desired.outcome(status))
    if not done:
        module.fail_json(
            msg=f"VM {name} did not become {state} within {params['timeout']} s: it is "
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
            "state": {"type": "str", "choices": ["enabled", "suspended", "disabled"], "default": "enabled"},
            "secondary": {"type": "str"},
            "allowed_hosts": {"type": "list", "elements": "str"},
            "options": {
                "type": "dict",
                "options": {
                    "interval_ms": {"type": "float"},
                    "min_interval_ms": {"type": "float"},
                    "max_added_latency_ms": {"type": "float"},
                    "max_pause_share": {"type": "float"},
                    "delta_mib": {"type": "float"},
                    "detection_ms": {"type": "float"},
                    "ft_silence_ms": {"type": "float"},
                    "hold_bound_ms": {"type": "float"},
                    "agent_grace_ms": {"type": "float"},
                    "realtime": {"type": "bool"},
                    "replay_input": {"type": "bool"},
                    "sync_mib_s": {"type": "float"},
                    "true_time": {"type": "bool"},
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
