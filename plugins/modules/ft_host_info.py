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
  description: The host's name, versions, C(peers), C(arbiter) and C(vms).
  returned: success
  type: dict
  sample:
    host: node-a
    version: 0.1.0
    qemu: 7.2.22
    peers:
      node-b:
        reachable: true
        version: 0.1.0
    arbiter:
      type: etcd
      ok: true
      reason: etcd 3.4.23
probes:
  description: Probes with C(probe), C(ok), C(detail) and C(remedy).
  returned: when O(probe=true)
  type: list
  elements: dict
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
