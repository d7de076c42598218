# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures of a failover, from the events of all hosts. Pure: no socket, no clock."""

from __future__ import annotations

import typing as t

FIGURES = ("kind", "epoch", "activation_ms", "since_loss_ms", "carried_packets")
SLACK = 0.5  # seconds by which two hosts' corrected clocks may still differ


def takeover(events: list[dict[str, t.Any]], target: str, since: float) -> dict[str, t.Any] | None:
    """The last time that `target` began to run the VM, at `since` (Unix time) or later.

    `events` are those of one VM on all hosts in one order, each with `at`, a Unix time on one clock.
    None when there is none, as when the host that has the event did not answer.
    """
    found = None
    for event in events:
        if (
            event.get("event") == "activated"
            and event.get("host") == target
            and _at(event) >= since - SLACK
        ):
            found = event
    if found is None:
        return None
    figures = {name: (found.get("data") or {}).get(name) for name in FIGURES}
    stopped = _stopped(events, target, since, _at(found)) if figures["kind"] == "planned" else None
    outage = None if stopped is None else round((_at(found) - stopped) * 1000, 1)
    return {**figures, "outage_ms": outage}


def _stopped(
    events: list[dict[str, t.Any]], target: str, since: float, until: float
) -> float | None:
    """When the old primary began the switchover that ended at `until`."""
    at = None
    for event in events:
        data = event.get("data") or {}
        if (
            event.get("event") == "state"
            and data.get("state") == "failing_over"
            and event.get("host") != target
            and since - SLACK <= _at(event) <= until
        ):
            at = _at(event)
    return at


def _at(event: dict[str, t.Any]) -> float:
    return float(event.get("at", event.get("time", 0.0)))
