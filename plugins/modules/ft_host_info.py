#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Versions, peers and arbiter of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ft_host_info
short_description: Show a host's versions, peers, arbiter and protected VMs
version_added: 0.1.0
description:
  - Returns what the agent knows of its host and of those that it works with.
options:
  probe:
    description: Also probe, by doing, whether this host can protect a VM. This takes some seconds.
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
  - module: kvmft.core.ft_host
"""

EXAMPLES = r"""
- name: Look at the host
  kvmft.core.ft_host_info:
    probe: true
  register: host

- name: Stop where a probe failed
  ansible.builtin.assert:
    that: host.probes | rejectattr('ok') | list | length == 0
"""

RETURN = r"""
host:
  description: What the agent knows of its host.
  returned: success
  type: dict
  contains:
    host:
      description: The host's inventory name.
      type: str
    version:
      description: Version of kvmft.
      type: str
    qemu:
      description: Version of the installed QEMU. Both hosts of a pair need the same.
      type: str
    libvirt:
      description: Version of libvirt.
      type: str
    kernel:
      description: Release of the running kernel.
      type: str
    python:
      description: Version of the Python that runs the agent.
      type: str
    accelerator:
      description: C(kvm) where this host's /dev/kvm starts a QEMU, else C(tcg).
      type: str
    peers:
      description:
        - The other hosts of the cluster by name. Each has C(reachable) and C(version), and if it is not reachable
          C(reason), else whether it is in C(maintenance).
      type: dict
    arbiter:
      description: What decides who runs a VM.
      type: dict
      contains:
        type:
          description: C(etcd), C(file) or C(none).
          type: str
        ok:
          description: Whether this host can ask it. Null before the first try.
          type: bool
        reason:
          description: Its version, or why it cannot be asked.
          type: str
    maintenance:
      description: Whether the host is in maintenance, so that no new secondary is placed on it; see M(kvmft.core.ft_host).
      type: dict
      contains:
        "on":
          description: Whether it is.
          type: bool
        reason:
          description: What was given as the reason.
          type: str
        since:
          description: Unix time at which it began. Null when it is not in maintenance.
          type: float
    vms:
      description: Status of each VM that kvmft knows on this host; see M(kvmft.core.ft_vm_info) for the fields.
      type: list
      elements: dict
  sample:
    host: node-a
    version: 0.1.0
    qemu: 7.2.22
    libvirt: 9.0.0
    kernel: 6.12.9+bpo-amd64
    python: 3.11.2
    accelerator: kvm
    peers:
      node-b:
        reachable: true
        version: 0.1.0
        maintenance: false
    arbiter:
      type: etcd
      ok: true
      reason: etcd 3.4.23
    maintenance:
      "on": false
      reason: ""
      since: null
    vms: []
probes:
  description: What was probed, in the order in which failures should be mended.
  returned: when O(probe=true)
  type: list
  elements: dict
  contains:
    probe:
      description: What was probed.
      type: str
    ok:
      description: Whether it worked.
      type: bool
    detail:
      description: What was found.
      type: str
    remedy:
      description: What to do about it. Empty when it worked.
      type: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmft.core.plugins.module_utils._control import Control, ControlError


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "probe": {"type": "bool", "default": False},
            "socket_path": {"type": "path", "default": "/run/kvmft/control.sock"},
        },
        supports_check_mode=True,
    )
    control = Control(module.params["socket_path"])
    result: dict[str, t.Any] = {"changed": False}
    try:
        result["host"] = control.ask("host_info")
        if module.params["probe"]:
            result["probes"] = control.ask("doctor")
    except ControlError as error:
        module.fail_json(**error.to_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
