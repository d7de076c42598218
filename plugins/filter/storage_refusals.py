# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter kvmft.core.storage_refusals."""

from __future__ import annotations

import typing as t

from ansible_collections.kvmft.core.plugins.plugin_utils import _storage

DOCUMENTATION = r"""
name: storage_refusals
short_description: Why the logical volume of the pool cannot be made or mounted
version_added: 0.1.0
author: The kvmft authors
description: Compares the wanted logical volume with what is on a host, so that nothing is overwritten.
options:
  _input:
    description: What C(roles/storage/files/volumes.py) printed on the host.
    type: dict
    required: true
  wanted:
    description: C(kvmft_storage_lvm).
    type: dict
    required: true
  pool:
    description: Where it is to be mounted.
    type: str
    required: true
  create:
    description: Whether volume group, logical volume and file system may be made.
    type: bool
    required: true
"""

EXAMPLES = r"""
- name: Refuse to overwrite anything
  ansible.builtin.assert:
    that: >-
      look.stdout | from_json | kvmft.core.storage_refusals({'vg': 'vg0'}, pool='/srv/images', create=true) | length == 0
"""

RETURN = r"""
_value:
  description: Sentences, each with its remedy; empty when everything can go on.
  type: list
  elements: str
"""


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, t.Callable]:
        """Filters by name."""
        return {"storage_refusals": _storage.refusals}
