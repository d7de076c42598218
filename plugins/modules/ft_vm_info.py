#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Status of fault-tolerant VMs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ft_vm_info
short_description: Show the fault tolerance of VMs
version_added: 0.1.0
description:
  - Returns the status of one VM, or of all VMs that are protected on this host.
options:
  name:
    description: Name of the VM in libvirt. Without it, all that kvmft knows on this host.
    type: str
    aliases: [vm]
  check:
    description: Also return every reason why O(name) could not be protected now.
    type: bool
    default: false
extends_documentation_fragment:
  - kvmft.core.control
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
seealso:
  - module: kvmft.core.ft_vm
"""

EXAMPLES = r"""
- name: Look at one VM
  kvmft.core.ft_vm_info:
    name: db1
  register: db1

- name: Stop where it is not protected
  ansible.builtin.assert:
    that: db1.vms[0].state == 'protected'
"""

RETURN = r"""
vms:
  description:
    - Status of each VM. Figures that do not exist yet are null; a VM that is not enabled has none.
  returned: success
  type: list
  elements: dict
  contains:
    vm:
      description: Name of the VM in libvirt.
      type: str
    uuid:
      description: The VM's UUID.
      type: str
    state:
      description: One of C(disabled), C(starting), C(protected), C(need_secondary), C(suspended), C(failing_over), C(fenced).
      type: str
    reason:
      description: Why it is in that state.
      type: str
    desired:
      description: What was asked for, C(enabled), C(suspended) or C(disabled).
      type: str
    role:
      description:
        - What this host has of it. C(primary) runs it, C(secondary) has its standby, C(stale) has disks of the past that never
          start, C(none) is an ordinary VM.
      type: str
    primary:
      description: Host that runs the VM.
      type: str
    secondary:
      description: Host of the secondary, or the one that it shall be on. Empty or null when there is none yet.
      type: str
    generation:
      description: Newest generation of the right to run that this host knows. Each failover and each new pair has a later one.
      type: int
    epoch:
      description: Last commit that the secondary holds.
      type: int
    epochs:
      description: Number of commits since this pair began.
      type: int
    interval_ms:
      description: Time in milliseconds between two checkpoints, the median of the last ones.
      type: float
    objective_missed:
      description: Why output waits longer than C(max_added_latency_ms), in a sentence; null when it does not.
      type: str
    beacons_missed:
      description: Why the secondary shows no life on the management network, in a sentence; null when it does.
      type: str
    last_commit_age_ms:
      description: Time in milliseconds since the last commit.
      type: float
    sync_percent:
      description: Progress of the sync.
      type: float
    pause_ms:
      description: How long the VM stood still for each of the last checkpoints.
      type: dict
      contains:
        p50:
          description: Half of them are at most this, in milliseconds.
          type: float
        p99:
          description: 99 of 100 are at most this, in milliseconds.
          type: float
        max:
          description: The greatest of them, in milliseconds.
          type: float
    commit_ms:
      description: How long the last checkpoints took from the capture to their acknowledgement.
      type: dict
      contains:
        p50:
          description: Half of them are at most this, in milliseconds.
          type: float
        p99:
          description: 99 of 100 are at most this, in milliseconds.
          type: float
        max:
          description: The greatest of them, in milliseconds.
          type: float
    pages_per_epoch:
      description: Pages of 4 KiB in each of the last checkpoints.
      type: dict
      contains:
        p50:
          description: Half of them are at most this.
          type: float
        p99:
          description: 99 of 100 are at most this.
          type: float
        max:
          description: The greatest of them.
          type: float
    log_bandwidth_bytes_s:
      description: Bytes per second on the FT log.
      type: int
    held_bytes:
      description: Output of the VM that waits for a commit.
      type: int
    guest_clock_loss_ppm:
      description: Share of the time that the VM stood still, in parts per million.
      type: int
    sync:
      description: What this pair's sync sent, and what it left out because the secondary had it already.
      type: dict
      contains:
        memory_bytes:
          description: Bytes of memory sent.
          type: int
        memory_left_out_bytes:
          description: Bytes of memory that were alike.
          type: int
        disk_bytes:
          description: Bytes of disks sent.
          type: int
        disk_left_out_bytes:
          description: Bytes of disks that were alike.
          type: int
    unprotected_seconds:
      description: Time in which the VM ran here and should have been protected, but was not.
      type: float
    unprotected_seconds_month:
      description: The same in this calendar month (UTC).
      type: float
    accelerator:
      description: C(kvm) or C(tcg).
      type: str
    running:
      description: Whether the VM runs here. False for a standby.
      type: bool
    switched_off:
      description: Whether it is switched off here on purpose; an enabled VM is protected once it is started.
      type: bool
    options:
      description: Settings of this VM as given to M(kvmft.core.ft_vm).
      type: dict
    allowed_hosts:
      description: Hosts that may run the VM or have its secondary. Empty for all.
      type: list
      elements: str
    arbiter:
      description: What decides who runs it.
      type: dict
      contains:
        type:
          description: C(etcd), C(file) or C(none).
          type: str
        ok:
          description: Whether this host can ask it. Null before the first try.
          type: bool
  sample:
    - vm: db1
      uuid: 9d5e6b1c-4b55-4a8b-9a63-5a3e6a1f7c10
      state: protected
      reason: the secondary holds a commit and the arbiter knows
      desired: enabled
      role: primary
      primary: node-a
      secondary: node-b
      generation: 4
      epoch: 4711
      running: true
      switched_off: false
      options:
        interval_ms: 10
      allowed_hosts: []
findings:
  description: Reasons against protecting O(name), each with C(code), C(message) and C(remedy).
  returned: when O(check=true)
  type: list
  elements: dict
  contains:
    code:
      description: Short name of the reason.
      type: str
    message:
      description: What stands against it, as a sentence.
      type: str
    remedy:
      description: What to do about it, as a sentence.
      type: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmft.core.plugins.module_utils._control import Control, ControlError


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "aliases": ["vm"]},
            "check": {"type": "bool", "default": False},
            "socket_path": {"type": "path", "default": "/run/kvmft/control.sock"},
        },
        required_if=[("check", True, ("name",))],
        supports_check_mode=True,
    )
    name = module.params["name"]
    control = Control(module.params["socket_path"])
    result: dict[str, t.Any] = {"changed": False}
    try:
        result["vms"] = [control.ask("vm_status", vm=name)] if name else control.ask("vm_list")
        if module.params["check"]:
            result["findings"] = control.ask("vm_check", vm=name)["findings"]
    except ControlError as error:
        module.fail_json(**error.to_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
