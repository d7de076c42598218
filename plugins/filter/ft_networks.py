# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter kvmft.core.ft_networks."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.kvmft.core.plugins.plugin_utils import _networks

DOCUMENTATION = r"""
name: ft_networks
short_description: FT and migration networks with all of their settings
version_added: 0.1.0
author: The kvmft authors
description:
  - Fills what the entries of C(kvmft_networks) leave out from the simple variables C(kvmft_ft_address),
    C(kvmft_ft_interface), C(kvmft_migration_address), C(kvmft_migration_interface), C(kvmft_networks_prefix),
    C(kvmft_networks_mtu) and C(kvmft_networks_min_speed_mbit).
  - An empty list stands for one network per purpose, from the simple variables alone.
options:
  _input:
    description: C(kvmft_networks) of a host.
    type: list
    elements: dict
    required: true
  variables:
    description: The variables of that host, or those of them that are named above.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the FT address of a peer
  ansible.builtin.debug:
    msg: >-
      {{ (hostvars['node-b'].kvmft_networks | default([]) | kvmft.core.ft_networks(hostvars['node-b'])
         | selectattr('purpose', 'contains', 'ft') | first).address }}
"""

RETURN = r"""
_value:
  description: Networks with C(purpose), C(interface), C(address), C(prefix), C(mtu), C(min_speed_mbit) and C(device).
  type: list
  elements: dict
"""


def ft_networks(networks: t.Any, variables: t.Any) -> list[dict[str, t.Any]]:
    """See DOCUMENTATION."""
    try:
        return _networks.normalised(networks, variables)
    except _networks.NetworksError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, t.Callable]:
        """Filters by name."""
        return {"ft_networks": ft_networks}
