# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be asked of the agent so that a VM becomes as desired. Pure: no socket, no clock."""

from __future__ import annotations

import dataclasses
import typing as t

DESIRED = ("enabled", "suspended", "disabled")


@dataclasses.dataclass(frozen=True)
class Plan:
    """`requests` are (op, args) in order; `before` and `after` are for the diff."""

    requests: tuple[tuple[str, dict[str, t.Any]], ...]
    before: dict[str, t.Any]
    after: dict[str, t.Any]

    @property
    def changed(self) -> bool:
        """True when there is anything to ask."""
        return bool(self.requests)


def plan(
    status: dict[str, t.Any],
    state: str,
    secondary: str | None = None,
    options: dict[str, float] | None = None,
    allowed_hosts: list[str] | None = None,
) -> Plan:
    """From the agent's `status` of the VM to `state`; None for what is left as it is.

    ValueError for a combination that cannot be had.
    """
    if state not in DESIRED:
        raise ValueError("state is {!r}; it must be one of {}".format(state, ", ".join(DESIRED)))
    desired = status.get("desired") or "disabled"
    if state == "enabled":
        made = _enabled(status, desired, secondary, options, allowed_hosts)
    elif state == "suspended" and desired == "disabled":
        raise ValueError("fault tolerance is not on, so that it cannot be suspended; enable it first")
    else:
        op = "vm_suspend" if state == "suspended" else "vm_disable"
        made = Plan(((op, {}),) if desired != state else (), {"state": desired}, {"state": state})
    if made.changed:
        _must_be_primary(status)
    return made


def _enabled(
    status: dict[str, t.Any],
    desired: str,
    secondary: str | None,
    options: dict[str, float] | None,
    allowed_hosts: list[str] | None,
) -> Plan:
    have = dict(status.get("options") or {})
    # Options that are not given keep their value: the agent takes the whole set.
    merged = {**have, **{name: each for name, each in (options or {}).items() if each is not None}}
    allowed_now = sorted(status.get("allowed_hosts") or [])
    allowed = allowed_now if allowed_hosts is None else sorted(set(allowed_hosts))
    others = _others(status, allowed) if allowed_hosts is not None else None
    if secondary:
        _may_have_secondary(status, secondary, allowed)
    before: dict[str, t.Any] = {"state": desired, "options": have}
    after: dict[str, t.Any] = {"state": "enabled", "options": merged}
    if secondary:
        before["secondary"], after["secondary"] = status.get("secondary") or None, secondary
    if allowed_hosts is not None:
        before["allowed_hosts"], after["allowed_hosts"] = allowed_now, allowed
    # What is stale here is not enabled, whatever was wanted: the agent says where the VM is.
    if desired == "enabled" and before == after and status.get("role") != "stale":
        return Plan((), before, after)
    args: dict[str, t.Any] = {"secondary": secondary, "options": merged}
    if others is not None:
        args["allowed_hosts"] = others
    return Plan((("vm_resume" if desired == "suspended" else "vm_enable", args),), before, after)


def plan_secondary(status: dict[str, t.Any], host: str) -> Plan:
    """Move the secondary of a VM that is enabled to `host`. ValueError when that cannot be had."""
    _must_be_enabled(status, "moved")
    _may_have_secondary(status, host, status.get("allowed_hosts") or [])
    now = status.get("secondary") or None
    requests = () if now == host else (("vm_enable", {"secondary": host}),)
    if requests:
        _must_be_primary(status)
    return Plan(requests, {"secondary": now}, {"secondary": host})


def plan_restart(status: dict[str, t.Any]) -> Plan:
    """Restart the standby, which is a change each time. ValueError when that cannot be had."""
    _must_be_enabled(status, "restarted")
    _must_be_primary(status)
    generation = status.get("generation")
    where = {"secondary": status.get("secondary")}
    return Plan(
        (("vm_restart_secondary", {}),),
        {**where, "generation": generation},
        {**where, "generation": "a later one"},
    )


def plan_host(now: dict[str, t.Any], state: str, reason: str | None) -> Plan:
    """From the maintenance `now` of a host, as its agent tells it, to `state`: active or maintenance.

    A `reason` of None leaves the one that is there.
    """
    on = state == "maintenance"
    kept = now.get("reason") or ""
    before = {"state": "maintenance" if now.get("on") else "active", "reason": kept}
    after = {"state": state, "reason": (kept if reason is None else reason) if on else ""}
    requests = (("host_maintenance", {"on": on, "reason": reason}),) if before != after else ()
    return Plan(requests, before, after)


def on_host(info: dict[str, t.Any]) -> dict[str, t.Any]:
    """What would have to leave the host of this `host_info`: names of VMs that run there, and of those
    that have their secondary there. Disks of the past, which never start, may stay."""
    by_role: dict[str, list[str]] = {"primary": [], "secondary": []}
    for vm in info.get("vms") or []:
        if vm.get("role") in by_role and not vm.get("switched_off"):
            by_role[vm["role"]].append(vm["vm"])
    return {
        "primaries": sorted(by_role["primary"]),
        "secondaries": sorted(by_role["secondary"]),
        "empty": not any(by_role.values()),
    }


def refuses_failover(status: dict[str, t.Any], target: str, mode: str) -> str | None:
    """Why a failover to `target` would be refused or come to nothing now, or None."""
    state = status.get("state")
    # While the secondary takes over by itself, an order for the same changes nothing.
    able = ("protected",) if mode == "planned" else ("protected", "failing_over")
    if status.get("primary") == target or state in able:
        return None
    return "VM {} is {} ({}), so no secondary can take it over{}. Wait for `protected`.".format(
        status.get("vm"), state, status.get("reason"), " without loss" if mode == "planned" else ""
    )


def reached(status: dict[str, t.Any], state: str, secondary: str | None = None) -> bool:
    """True when a VM with this `status` is in the state that `state` asks for, with its secondary on
    `secondary` if that is given.

    A VM that is switched off is as enabled as it can be: protection begins when it is started.
    """
    if state != "enabled":
        return status.get("state") == state
    there = not secondary or status.get("secondary") == secondary
    return there and (status.get("state") == "protected" or waits_for_start(status))


def protected_anew(status: dict[str, t.Any], earlier: int) -> bool:
    """True when the VM is protected by a pair of a later generation than `earlier`."""
    return status.get("state") == "protected" and (status.get("generation") or 0) > earlier


def waits_for_start(status: dict[str, t.Any]) -> bool:
    """True when the VM is switched off and will be protected once somebody starts it."""
    return status.get("desired") == "enabled" and bool(status.get("switched_off"))


def hopeless(status: dict[str, t.Any]) -> bool:
    """True when no waiting helps: only a person can go on from here."""
    return status.get("state") == "fenced"


def outcome(status: dict[str, t.Any]) -> dict[str, t.Any]:
    """What every module that changes a VM returns of it."""
    return {
        "status": status,
        "protected": status.get("state") == "protected",
        "reason": status.get("reason") or "",
    }


def _must_be_primary(status: dict[str, t.Any]) -> None:
    if status.get("role") == "secondary":
        raise ValueError(
            "it runs on {0}, and this host has its secondary; run the module on {0}".format(
                status.get("primary")
            )
        )


def _must_be_enabled(status: dict[str, t.Any], what: str) -> None:
    desired = status.get("desired") or "disabled"
    if desired != "enabled":
        raise ValueError(
            f"fault tolerance is {desired}, so that no secondary can be {what}; enable it with ft_vm"
        )


def _may_have_secondary(status: dict[str, t.Any], host: str, allowed: list[str]) -> None:
    if host == status.get("primary"):
        raise ValueError(
            f"it runs on {host}, so that its secondary cannot be there; name another host, or fail "
            "it over first"
        )
    if allowed and host not in allowed:
        raise ValueError(
            "its secondary shall be on {}, which is not among allowed_hosts ({})".format(
                host, ", ".join(allowed)
            )
        )


def _others(status: dict[str, t.Any], allowed: list[str]) -> list[str]:
    """The allowed hosts without the one that runs the VM, which is what its agent is told."""
    primary = status.get("primary")
    others = [host for host in allowed if host != primary]
    if allowed and len(others) == len(allowed):
        raise ValueError(
            "it runs on {}, which is not among allowed_hosts ({}); add it, or fail the VM over "
            "first".format(primary, ", ".join(allowed))
        )
    if allowed and not others:
        raise ValueError(
            f"allowed_hosts has only {primary}, which runs it; add a host for the secondary, or give "
            "an empty list for all hosts"
        )
    return others
