#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Other bridges and other addresses for a VM that arrived at another site."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_network
short_description: Give a running VM the networks of the site where it arrived
version_added: 0.2.0
description:
  - Hangs interfaces of a running VM on other bridges, and gives the guest other addresses by its guest agent.
  - Run it on the host that runs the VM, as root.
options:
  name:
    description: Name of the VM in libvirt.
    type: str
    required: true
    aliases: [vm]
  bridges:
    description: From the bridge on which interfaces hang to the one on which they shall. Both must exist on this host.
    type: dict
    default: {}
  addresses:
    description:
      - What interfaces of a Linux guest shall have, each with C(interface) or C(mac), C(address) with its prefix, and
        perhaps C(gateway). Other addresses of the same family are taken from these interfaces.
      - They are gone when the guest starts anew, unless its own configuration has them.
    type: list
    elements: dict
    default: []
  timeout:
    description: Seconds that the guest agent may take for each answer.
    type: int
    default: 30
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode), when in diff mode.
    support: none
author:
  - The kvmft authors (@kvmft)
"""

EXAMPLES = r"""
- name: Have the networks of the second site
  kvmft.core.guest_network:
    name: db1
    bridges:
      br-site-a: br-site-b
    addresses:
      - interface: eth0
        address: 198.51.100.50/24
        gateway: 198.51.100.1
"""

RETURN = r"""
changes:
  description: What was changed, or would be, as sentences.
  returned: success
  type: list
  elements: str
  sample: ["52:54:00:93:00:51 went from br-site-a to br-site-b"]
"""

import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmft.core.plugins.module_utils._guest import (
    Agent,
    GuestError,
    Virsh,
    address_changes,
    bridge_changes,
    plug,
)

COMMAND_SECONDS = 20.0


def _must_be_bridges(names: list[str]) -> None:
    for name in names:
        if not re.fullmatch(r"[^/\s]{1,15}", name) or not os.path.isdir(f"/sys/class/net/{name}/bridge"):
            raise GuestError(f"There is no bridge {name} on this host. Create it, or correct kvmft_drill_network_map.")


def run(module: AnsibleModule) -> list[str]:
    """Look at everything first, then change it."""
    params, changes = module.params, []
    virsh = Virsh(params["timeout"])
    agent = Agent(virsh, params["name"])
    plugs, commands = [], []
    if params["bridges"]:
        _must_be_bridges([*params["bridges"], *params["bridges"].values()])
        plugs = bridge_changes(virsh.run("dumpxml", params["name"]), params["bridges"])
    if params["addresses"]:
        rows = [{key: str(row.get(key) or "") for key in ("interface", "mac", "address", "gateway")}
                for row in params["addresses"]]  # fmt: skip
        commands = address_changes(agent.interfaces(), rows)
    for each in plugs:
        if not module.check_mode:
            plug(virsh, params["name"], each)
        changes.append(f"{each['mac']} went from {each['old']} to {each['new']}")
    for command in commands:
        if not module.check_mode:
            code, __, said = agent.execute(command, COMMAND_SECONDS)
            if code:
                raise GuestError(f"In the guest, {' '.join(command)} ended with {code}: {said.strip()}. Only Linux guests "
                                 "with the program ip can be given other addresses.")  # fmt: skip
        changes.append(" ".join(command))
    return changes


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True, "aliases": ["vm"]},
            "bridges": {"type": "dict", "default": {}},
            "addresses": {"type": "list", "elements": "dict", "default": []},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    try:
        changes = run(module)
    except GuestError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(changes), changes=changes)


if __name__ == "__main__":
    main()
