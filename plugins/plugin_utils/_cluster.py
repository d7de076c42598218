# SPDX-License-Identifier: GPL-3.0-or-later
"""One picture of a cluster, from what the agents of its hosts say. Pure: no connection, no clock."""

from __future__ import annotations

import dataclasses
import typing as t

STATES = ("disabled", "starting", "protected", "need_secondary", "suspended", "failing_over", "fenced")
HOSTS, VMS = "ft_hosts", "ft_vms"
MAINTENANCE, UNREACHABLE = "ft_maintenance", "ft_unreachable"
# Who knows most of a VM: the host that runs it, then the one that stands by.
RANK = {"primary": 2, "secondary": 1}


@dataclasses.dataclass
class Entry:
    """A host of the inventory, with its variables and the groups that it belongs to."""

    variables: dict[str, t.Any]
    groups: list[str]


def picture(
    answers: t.Mapping[str, t.Mapping[str, t.Any]], silent: t.Mapping[str, str]
) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Hosts and VMs by name. `answers` are the `host_info` of each host that answered, by its name;
    `silent` has the others, each with the reason."""
    vms = {name: _vm(status) for name, status in sorted(_best(answers).items())}
    hosts = {name: _host(name, info, vms) for name, info in sorted(answers.items())}
    for name, reason in sorted(silent.items()):
        variables = {"ft_reachable": False, "ft_reason": reason}
        hosts[name] = Entry(variables, [HOSTS, UNREACHABLE])
    return hosts, vms


def _best(answers: t.Mapping[str, t.Mapping[str, t.Any]]) -> dict[str, t.Mapping[str, t.Any]]:
    """For each VM the status of the host that knows most of it. Of two that both say that they run it,
    the later generation is right: the other has not heard yet of the failover."""
    best: dict[str, t.Mapping[str, t.Any]] = {}
    for _name, info in sorted(answers.items()):
        for status in info.get("vms") or []:
            known = best.get(status["vm"])
            if known is None or _weight(status) > _weight(known):
                best[status["vm"]] = status
    return best


def _weight(status: t.Mapping[str, t.Any]) -> tuple[int, int]:
    return RANK.get(str(status.get("role")), 0), int(status.get("generation") or 0)


def _vm(status: t.Mapping[str, t.Any]) -> Entry:
    state = str(status.get("state"))
    primary, secondary = status.get("primary") or "", status.get("secondary") or ""
    groups = [VMS, f"ft_{state}"]
    if primary:
        groups.append(f"ft_primary_on_{primary}")
    if secondary and secondary != primary:
        groups.append(f"ft_secondary_on_{secondary}")
    variables = {
        "ft_state": state, "ft_reason": status.get("reason") or "", "ft_primary": primary,
        "ft_secondary": secondary, "ft_status": dict(status),
    }  # fmt: skip
    return Entry(variables, groups)


def _host(name: str, info: t.Mapping[str, t.Any], vms: t.Mapping[str, Entry]) -> Entry:
    # What agents call it, whatever the inventory does.
    called = info.get("host") or name
    maintenance = bool((info.get("maintenance") or {}).get("on"))
    variables = {
        "ft_reachable": True,
        "ft_reason": "",
        "ft_maintenance": maintenance,
        "ft_primaries": [vm for vm, entry in vms.items() if entry.variables["ft_primary"] == called],
        "ft_secondaries": [vm for vm, entry in vms.items() if entry.variables["ft_secondary"] == called],
        "ft_host": {key: value for key, value in info.items() if key != "vms"},
    }
    return Entry(variables, [HOSTS, *([MAINTENANCE] if maintenance else [])])
