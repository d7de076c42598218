#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The events of all hosts in one order."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ft_events_info
short_description: Read the events of all hosts in one order
version_added: 0.2.0
description:
  - Returns what happened to one VM, or to all, as the agents of all hosts that answer wrote it down.
  - The order is that of C(kvmft events --cluster).
options:
  name:
    description: Name of the VM in libvirt. Without it, the events of all VMs and of the agents themselves.
    type: str
    aliases: [vm]
  limit:
    description: At most so many of the newest events.
    type: int
    default: 1000
extends_documentation_fragment:
  - kvmft.core.control
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
seealso:
  - module: kvmft.core.ft_vm_info
"""

EXAMPLES = r"""
- name: Read what happened to a VM
  kvmft.core.ft_events_info:
    name: db1
  register: history

- name: Show the arbiter's verdicts
  ansible.builtin.debug:
    msg: "{{ history.events | selectattr('event', 'equalto', 'verdict') | map(attribute='reason') }}"
"""

RETURN = r"""
events:
  description: The events, the oldest first.
  returned: success
  type: list
  elements: dict
  contains:
    at:
      description: Unix time on the asked host's clock; what other hosts' clocks are off is taken out.
      type: float
    time:
      description: Unix time on the clock of the host that wrote it.
      type: float
    host:
      description: Host that wrote it.
      type: str
    seq:
      description: Its number among the events of its host.
      type: int
    vm:
      description: The VM that it is about. Null when it is about the agent.
      type: str
    event:
      description: Short name of what happened.
      type: str
    reason:
      description: What happened and why, as a sentence.
      type: str
    data:
      description: Figures of it. Claims and verdicts carry generations here.
      type: dict
hosts:
  description: By host whether it answered (C(ok)), why not (C(reason)), and by how many seconds its clock is ahead (C(clock_ahead_s)).
  returned: success
  type: dict
now:
  description: Unix time on the asked host's clock.
  returned: success
  type: float
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmft.core.plugins.module_utils._control import Control, ControlError


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "aliases": ["vm"]},
            "limit": {"type": "int", "default": 1000},
            "socket_path": {"type": "path", "default": "/run/kvmft/control.sock"},
        },
        supports_check_mode=True,
    )
    try:
        found = Control(module.params["socket_path"]).ask(
            "events_cluster", vm=module.params["name"], limit=module.params["limit"]
        )
    except ControlError as error:
        module.fail_json(**error.to_result())
    module.exit_json(changed=False, events=found["events"], hosts=found["hosts"], now=time.time())


if __name__ == "__main__":
    main()
