# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter kvmft.core.ft_network_findings."""

from __future__ import annotations

import typing as t

from ansible_collections.kvmft.core.plugins.plugin_utils import _networks

DOCUMENTATION = r"""
name: ft_network_findings
short_description: What a host's FT and migration networks lack
version_added: 0.1.0
author: The kvmft authors
description:
  - Compares the wanted networks with the interfaces that were found on a host.
  - With O(to_be_managed=true) it says why they must not be configured, as where one would touch management.
options:
  _input:
    description: Networks as P(kvmft.core.ft_networks#filter) returns them.
    type: list
    elements: dict
    required: true
  found:
    description: What C(roles/preflight/files/probe.py) printed on the host.
    type: dict
    required: true
  to_be_managed:
    description: Whether they are about to be configured, rather than already there.
    type: bool
    default: false
  addresses:
    description: Addresses at which the host is managed.
    type: list
    elements: str
    default: []
  interface:
    description: The interface of management, where it is known.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Refuse to touch management
  ansible.builtin.assert:
    that: >-
      networks | kvmft.core.ft_network_findings(found, to_be_managed=true, addresses=[ansible_host]) | length == 0
"""

RETURN = r"""
_value:
  description: Dictionaries with C(id), C(what), C(have), C(need) and C(remedy); to be managed, sentences.
  type: list
"""


def ft_network_findings(
    networks: list[dict[str, t.Any]], found: dict[str, t.Any], to_be_managed: bool = False,
    addresses: list[str] | None = None, interface: str = "",
) -> list[t.Any]:  # fmt: skip
    """See DOCUMENTATION."""
    if to_be_managed:
        return _networks.refusals(networks, found, addresses or [], interface)
    return _networks.findings(networks, found)


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, t.Callable]:
        """Filters by name."""
        return {"ft_network_findings": ft_network_findings}
