#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run a program in a guest by its QEMU guest agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_command
short_description: Run a program in a VM by its guest agent
version_added: 0.2.0
description:
  - Runs a program inside a VM through the QEMU guest agent, waits for it, and returns what it printed.
  - Run it on the host that runs the VM, as root. The guest needs C(qemu-guest-agent), and the VM the channel
    C(org.qemu.guest_agent.0).
options:
  name:
    description: Name of the VM in libvirt.
    type: str
    required: true
    aliases: [vm]
  command:
    description: The program and its arguments. No shell is used.
    type: list
    elements: str
    required: true
  rc:
    description: Exit code that the program must have.
    type: int
    default: 0
  stdout:
    description: Regular expression that must be found in what it printed.
    type: str
    default: ''
  timeout:
    description: Seconds that the program may take.
    type: int
    default: 30
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: partial
    details: In check mode the agent is asked whether it is there, and nothing is run.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode), when in diff mode.
    support: none
notes:
  - What a program changes is not known, so that it always reports a change. Set C(changed_when).
author:
  - The kvmft authors (@kvmft)
"""

EXAMPLES = r"""
- name: See that the database is open
  kvmft.core.guest_command:
    name: db1
    command: [/usr/bin/pg_isready, -q]
  changed_when: false
"""

RETURN = r"""
rc:
  description: The program's exit code; minus the signal that ended it.
  returned: when it was run
  type: int
stdout:
  description: What it printed.
  returned: when it was run
  type: str
stderr:
  description: Its errors.
  returned: when it was run
  type: str
"""

import re

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmft.core.plugins.module_utils._guest import Agent, GuestError, Virsh


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True, "aliases": ["vm"]},
            "command": {"type": "list", "elements": "str", "required": True},
            "rc": {"type": "int", "default": 0},
            "stdout": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not params["command"]:
        module.fail_json(msg="command is empty. Give the program to run in the guest.")
    agent = Agent(Virsh(params["timeout"]), params["name"])
    try:
        if module.check_mode:
            agent.ask("guest-ping")
            module.exit_json(changed=True)
        code, out, err = agent.execute(params["command"], params["timeout"])
    except GuestError as error:
        module.fail_json(msg=str(error))
    seen = {"changed": True, "rc": code, "stdout": out, "stderr": err}
    program = params["command"][0]
    if code != params["rc"]:
        module.fail_json(msg=f"{program} ended with {code}, not {params['rc']}.", **seen)
    if not re.search(params["stdout"], out):
        module.fail_json(msg=f"{program} printed nothing that matches.", **seen)
    module.exit_json(**seen)


if __name__ == "__main__":
    main()
