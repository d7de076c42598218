# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation that all modules of the collection share."""

from __future__ import annotations


class ModuleDocFragment:
    """How a module reaches the agent."""

    DOCUMENTATION = r"""
options:
  socket_path:
    description:
      - Control socket of the agent on the host that the module runs on.
    type: path
    default: /run/kvmft/control.sock
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode), when in diff mode.
  action_group:
    description: Use C(group/kvmft.core.ft) in C(module_defaults) to set defaults for these modules.
    support: full
    membership:
      - kvmft.core.ft
requirements:
  - a running C(kvmft-agent.service) on the host
notes:
  - Run it on a host of the cluster, as root or as a member of the group C(kvmft).
author:
  - The kvmft authors (@kvmft)
"""
