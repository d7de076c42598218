# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM's states over the time of a drill, and its receipts, from the events of all hosts. Pure."""

from __future__ import annotations

import typing as t

STATES = ("protected", "failing_over", "running", "off")
"""`running` is without protection: after a failover, or while a new secondary is synced."""
LOSSES = ("primary_lost", "failover_asked")
"""Said by the standby of a protected VM."""
RECEIPTS = ("claim", "claim_sent", "verdict")
_UNPROTECTED = ("need_secondary", "starting", "suspended")


def segments(
    events: list[dict[str, t.Any]], begin: float, end: float, host: str
) -> list[dict[str, t.Any]]:
    """`{"state", "host", "from", "to"}` without holes from `begin` to `end` (Unix time).

    `events` are those of one VM in one order, each with `at`. At `begin` it is protected and runs on
    `host`. Signs of before `begin` are left out.
    """
    made: list[dict[str, t.Any]] = []
    state, since = "protected", begin
    for event in events:
        at = _at(event)
        if not begin <= at <= end:
            continue
        then, where = _after(event, state, host)
        if (then, where) != (state, host):
            _add(made, state, host, since, at)
            state, host, since = then, where, at
    _add(made, state, host, since, end)
    return made


def observed(
    marks: list[tuple[float, str, str]], begin: float, end: float, host: str
) -> list[dict[str, t.Any]]:
    """The same from what the playbook saw, where events are missing: (time, state, host) marks."""
    made: list[dict[str, t.Any]] = []
    state, since = "protected", begin
    for at, then, where in sorted(marks):
        at = min(max(at, begin), end)
        if (then, where) != (state, host):
            _add(made, state, host, since, at)
            state, host, since = then, where, at
    _add(made, state, host, since, end)
    return made


def _after(event: dict[str, t.Any], state: str, host: str) -> tuple[str, str]:
    """State and host after `event`. What the standby says of itself is no state of the VM."""
    name, data, told_by = event.get("event"), event.get("data") or {}, str(event.get("host"))
    if name == "activated":
        return "running", told_by
    if (name in LOSSES and state == "protected") or (name == "vm_died" and told_by == host):
        return "failing_over", host
    if name != "state":
        return state, host
    word = data.get("state")
    if word == "failing_over":
        return "failing_over", host
    if told_by != host:
        return state, host
    if word == "protected" and data.get("role") != "secondary":
        return "protected", host
    if word in _UNPROTECTED and state != "failing_over":
        return "running", host
    if word == "disabled":
        return "off", host
    return state, host


def _add(made: list[dict[str, t.Any]], state: str, host: str, begin: float, end: float) -> None:
    if end > begin:
        made.append({"state": state, "host": host, "from": begin, "to": end})


def receipts(events: list[dict[str, t.Any]], begin: float, end: float) -> list[dict[str, t.Any]]:
    """Who claimed which generation, and what the arbiter said: the events that are receipts."""
    found = []
    for event in events:
        if event.get("event") not in RECEIPTS or not begin <= _at(event) <= end:
            continue
        data = event.get("data") or {}
        found.append({
            "at": _at(event),
            "host": str(event.get("host") or ""),
            "seq": event.get("seq"),
            "event": event["event"],
            "won": data.get("won"),
            "generation": data.get("generation"),
            "base": data.get("base"),
            "asked": data.get("asked"),
            "nonce": data.get("nonce"),
            "reason": str(event.get("reason") or ""),
        })  # fmt: skip
    return found


def moment(
    events: list[dict[str, t.Any]], name: str, begin: float, end: float, **data: str
) -> float | None:
    """When the first event `name` with this data came in the given time."""
    for event in events:
        given = event.get("data") or {}
        if (
            event.get("event") == name
            and begin <= _at(event) <= end
            and all((given.get(key) if key != "host" else event.get("host")) == each
                    for key, each in data.items())
        ):  # fmt: skip
            return _at(event)
    return None


def _at(event: dict[str, t.Any]) -> float:
    return float(event.get("at", event.get("time", 0.0)))
