# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter kvmft.core.networkd_files."""

from __future__ import annotations

import typing as t

from ansible_collections.kvmft.core.plugins.plugin_utils import _networks

DOCUMENTATION = r"""
name: networkd_files
short_description: Configuration of systemd-networkd for FT and migration networks
version_added: 0.1.0
author: The kvmft authors
description: Makes the files that have systemd-networkd create bonds, VLANs and bridges and set MTU and addresses.
options:
  _input:
    description: Networks as P(kvmft.core.ft_networks#filter) returns them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show what would be written
  ansible.builtin.debug:
    msg: "{{ kvmft_networks | kvmft.core.ft_networks(hostvars[inventory_hostname]) | kvmft.core.networkd_files }}"
"""

RETURN = r"""
_value:
  description: Contents by file name, to be placed in C(/etc/systemd/network).
  type: dict
"""


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, t.Callable]:
        """Filters by name."""
        return {"networkd_files": _networks.networkd_files}
