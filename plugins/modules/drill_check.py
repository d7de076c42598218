#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A health check of a VM from outside, tried until it succeeds."""

from __future__ import annotations

DOCUMENTATION = r"""
module: drill_check
short_description: Check from outside whether a VM is healthy
version_added: 0.2.0
description:
  - Tries one check of type C(tcp), C(http) or C(icmp) until it succeeds or its tries are used up.
  - It runs where the check shall come from, by default the controller, and changes nothing.
options:
  check:
    description: The check as M(kvmft.core.drill_plan) returns it.
    type: dict
    required: true
  hosts:
    description: Addresses to ask where the check names none of its own. It succeeds when one of them answers.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode), when in diff mode.
    support: none
notes:
  - Headers may be secret. Run it with C(no_log), as the playbooks do.
author:
  - The kvmft authors (@kvmft)
"""

EXAMPLES = r"""
- name: See that the database accepts connections
  kvmft.core.drill_check:
    check: "{{ plan.steps[0].checks[0] }}"
    hosts: [192.0.2.50]
  delegate_to: localhost
"""

RETURN = r"""
ok:
  description: Whether it succeeded. The module fails when it did not.
  returned: always
  type: bool
attempts:
  description: Number of tries.
  returned: always
  type: int
seconds:
  description: Time from the first try to the end of the last.
  returned: always
  type: float
detail:
  description: What was seen at last.
  returned: always
  type: str
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmft.core.plugins.module_utils._drill_probe import attempt


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "check": {"type": "dict", "required": True},
            "hosts": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    check = module.params["check"]
    hosts = [check["host"]] if check["host"] else module.params["hosts"] or [""]
    begun, attempts = time.monotonic(), 0
    while True:
        attempts += 1
        for host in hosts:
            answer = attempt(check, host, check["timeout"])
            if answer.ok:
                break
        if answer.ok or attempts > check["retries"]:
            break
        time.sleep(check["delay"])
    seconds = round(time.monotonic() - begun, 3)
    seen = {"ok": answer.ok, "attempts": attempts, "seconds": seconds, "detail": answer.detail}
    if not answer.ok:
        module.fail_json(
            msg=f"{check['name']} failed {attempts} times in {seconds:.1f} s: {answer.detail}.", **seen
        )
    module.exit_json(changed=False, **seen)


if __name__ == "__main__":
    main()
