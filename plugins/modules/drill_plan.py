#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The start order and the health checks of a drill, understood and filled in."""

from __future__ import annotations

DOCUMENTATION = r"""
module: drill_plan
short_description: Read what a drill shall do
version_added: 0.2.0
description:
  - Reads the groups, VMs, health checks and objectives of a drill, refuses what it does not understand, and returns
    the VMs in the order in which they are treated. The playbooks C(drill_planned), C(drill_unplanned) and
    C(drill_test) begin with it.
  - Runs on the controller and changes nothing.
options:
  groups:
    description:
      - Groups of VMs in their start order. Each has C(name) and C(vms), and may have C(health) and C(objectives)
        for all of its VMs.
    type: list
    elements: dict
    default: []
  vms:
    description: VMs as names, or as mappings with C(name), C(address), C(health), C(probe), C(objectives), C(readdress).
    type: list
    elements: raw
    default: []
  vm:
    description: One VM; beside O(groups) or O(vms) the only one of them that is drilled.
    type: str
    default: ''
  objectives:
    description: Objectives of all VMs in milliseconds, C(rto_ms), C(rpo_ms) and C(reprotect_ms).
    type: dict
    default: {}
  network_map:
    description: By the host on which VMs arrive, a mapping from bridge to bridge.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode), when in diff mode.
    support: none
notes:
  - Health checks may have headers that are secret. Run it with C(no_log), as the playbooks do.
author:
  - The kvmft authors (@kvmft)
"""

EXAMPLES = r"""
- name: Read the start order
  kvmft.core.drill_plan:
    groups:
      - name: directory
        vms: [dir1]
      - name: database
        vms:
          - name: db1
            address: 192.0.2.50
            health:
              - type: tcp
                port: 5432
    objectives:
      rto_ms: 1000
  delegate_to: localhost
  register: plan
"""

RETURN = r"""
steps:
  description: The VMs in their order, each with its checks, its probe and its objectives, defaults filled in.
  returned: success
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmft.core.plugins.module_utils._drill_plan import PlanError, plan


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "groups": {"type": "list", "elements": "dict", "default": []},
            "vms": {"type": "list", "elements": "raw", "default": []},
            "vm": {"type": "str", "default": ""},
            "objectives": {"type": "dict", "default": {}},
            "network_map": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        steps = plan(**module.params)
    except PlanError as error:
        module.fail_json(msg=str(error), code="plan")
    module.exit_json(changed=False, steps=steps)


if __name__ == "__main__":
    main()
