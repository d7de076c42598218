# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter kvmft.core.preflight."""

from __future__ import annotations

import typing as t

from ansible_collections.kvmft.core.plugins.plugin_utils import _preflight

DOCUMENTATION = r"""
name: preflight
short_description: Everything that is wrong with an inventory and its hosts
version_added: 0.1.0
author: The kvmft authors
description: Judges what was seen on the hosts and what the inventory says of them, all of it at once.
options:
  _input:
    description:
      - By name of host or arbiter, C(variables) of the inventory, and of hosts that were examined C(limits), C(begun) and
        C(seen), which is what C(roles/preflight/files/probe.py) printed there.
    type: dict
    required: true
  hosts:
    description: Hosts of the group kvmft_hosts.
    type: list
    elements: str
    required: true
  arbiters:
    description: Machines of the group kvmft_arbiter.
    type: list
    elements: str
    required: true
  ended:
    description: The controller's time after the last host was examined, in seconds since 1970.
    type: float
    required: true
  ignore:
    description: Findings, by C(id), that are left out.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Judge hosts that were examined before
  ansible.builtin.set_fact:
    judged: "{{ examined | kvmft.core.preflight(['node-a', 'node-b'], ['witness'], now().timestamp()) }}"
"""

RETURN = r"""
_value:
  description:
    - C(findings) are rows with C(id), C(severity), C(host), C(what), C(have), C(need) and C(remedy), C(ok) tells whether none
      of them is an error, C(ignored) are those left out, and C(table) are lines for people.
  type: dict
"""


def preflight(
    examined: dict[str, t.Any], hosts: list[str], arbiters: list[str], ended: float, ignore: list[str] | None = None
) -> dict[str, t.Any]:  # fmt: skip
    """See DOCUMENTATION."""
    found = _preflight.judge(hosts, arbiters, examined, float(ended))
    kept = [each for each in found if each["id"] not in (ignore or [])]
    return {
        "version": 1,
        "ok": not any(each["severity"] == _preflight.ERROR for each in kept),
        "hosts": list(hosts),
        "findings": kept,
        "ignored": [each for each in found if each not in kept],
        "table": _preflight.table(kept, len(found) - len(kept)),
    }


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, t.Callable]:
        """Filters by name."""
        return {"preflight": preflight}
