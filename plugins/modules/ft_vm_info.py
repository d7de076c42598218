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
  description: Status of each VM.
  returned: success
  type: list
  elements: dict
  sample:
    - vm: db1
      state: protected
      desired: enabled
      primary: node-a
      secondary: node-b
      epoch: 4711
findings:
  description: Reasons against protecting O(name), each with C(code), C(message) and C(remedy).
  returned: when O(check=true)
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
