"""The story of a failover or a pairing, told from the events of all hosts; pure.

An incident begins with the first sign of a loss (or with an order) and ends when the VM is
protected again, or is not to be protected any more. Times count from the loss: for a silence that is
the last sign of life and not the moment at which it was noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SIGNALS = ("primary_lost", "secondary_lost", "vm_died", "failover_asked", "cold_boot")
STAGES = {
    "primary_lost": "loss", "secondary_lost": "loss", "vm_died": "loss", "failover_asked": "order",
    "enabled": "order", "suspended": "order", "disabled": "order", "placed": "placement", "claim": "claim", "claim_sent": "sent",
    "arbiter": "arbiter", "verdict": "verdict", "loaded": "loaded", "activated": "activated",
    "output_open": "output", "released": "output", "vm_killed": "fenced", "fenced": "fenced",
    "offer": "pairing", "offer_stored": "pairing", "synced": "sync", "cold_boot": "cold boot",
}  # fmt: skip
"""What a step is, by its event. Others are shown by the event's own name."""
_RIGHT = ("claim", "sent", "verdict")
WANTED = {
    "takeover": ("loss", *_RIGHT, "activated", "output", "protected"),
    "ordered": ("order", *_RIGHT, "activated", "output", "protected"),
    "switchover": ("state failing_over", *_RIGHT, "activated", "output", "protected"),
    "stays": ("loss", *_RIGHT, "output", "protected"),
    "open": ("loss", *_RIGHT),
    "pairing": (*_RIGHT, "pairing", *_RIGHT, "sync", "protected"),
    "leaving": ("order",),
}
"""Stages that a story of each kind must have, in this order."""
QUIET = ("role", "state", "seq")
"""Figures that no step repeats."""
SAID = {"sent": ("base", "asked", "nonce"), "verdict": ("won", "base", "asked", "nonce", "generation")}
"""Figures that a stage's text has in words already; JSON has them."""


@dataclass(frozen=True)
class Step:
    """One step: milliseconds from the loss, host, stage, reason and figures of the event."""

    number: int
    ms: float
    host: str
    stage: str
    reason: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Story:
    """`kind`: takeover (another host runs the VM now; ordered by a person: ordered; planned:
    switchover), stays (the primary went on alone), open (nobody has won the right yet), pairing, or
    leaving (turned off or suspended). `began`: Unix time of the loss. `ended`: protected again."""

    vm: str
    kind: str
    began: float
    ended: bool
    steps: tuple[Step, ...]

    def lacking(self) -> list[str]:
        """The stages that must be there, in this order, and are not."""
        stages = [step.stage for step in self.steps]
        lacking, at = [], 0
        for stage in WANTED[self.kind]:
            try:
                at = stages.index(stage, at) + 1
            except ValueError:
                lacking.append(stage)
        return lacking


def incidents(events: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Cut one VM's merged events into incidents; the last one may not have ended."""
    found: list[list[dict[str, Any]]] = []
    current: list[dict[str, Any]] | None = None
    for event in events:
        if current is None:
            if not _begins(event):
                continue
            current = []
            found.append(current)
        current.append(event)
        if _ends(event):
            current = None
    return found


def _state(event: dict[str, Any]) -> str | None:
    return event["data"].get("state") if event["event"] == "state" else None


def _begins(event: dict[str, Any]) -> bool:
    orders = (*SIGNALS, "enabled", "suspended", "disabled", "claim")
    return event["event"] in orders or _state(event) in ("failing_over", "starting")


def _ends(event: dict[str, Any]) -> bool:
    """A standby says `protected` too; only the side that runs the VM can say that it is so."""
    state = _state(event)
    protected = state == "protected" and event["data"].get("role") != "secondary"
    return protected or state in ("disabled", "suspended") and "role" not in event["data"]


def tell(vm: str, events: Sequence[dict[str, Any]]) -> Story:
    """The story of one incident (at least one event)."""
    began = _at(events[0])
    for event in events:
        if event["event"] in SIGNALS:
            began = _at(event) - float(event["data"].get("detection_ms") or 0) / 1000
            break
    steps = tuple(
        Step(number, round((_at(event) - began) * 1000, 1), event["host"], _stage(event),
             event["reason"], _figures(event))
        for number, event in enumerate(events, 1)
    )  # fmt: skip
    last = events[-1]
    return Story(vm, _kind(events), began, _state(last) == "protected" and _ends(last), steps)


def last_story(vm: str, events: Iterable[dict[str, Any]], back: int = 0) -> Story | None:
    """The newest incident that was a failover, or else a pairing; `back` counts older ones."""
    told = [tell(vm, each) for each in incidents(events)]
    chosen = [each for each in told if each.kind not in ("pairing", "leaving")] or told
    return chosen[-1 - back] if back < len(chosen) else None


def _at(event: dict[str, Any]) -> float:
    return float(event.get("at", event["time"]))


def _stage(event: dict[str, Any]) -> str:
    state = _state(event)
    if state is not None:
        return "protected" if _ends(event) and state == "protected" else f"state {state}"
    return STAGES.get(event["event"], event["event"])


def _kind(events: Sequence[dict[str, Any]]) -> str:
    names = [event["event"] for event in events]
    for event in events:
        if event["event"] == "activated":
            kinds = {"ordered": "ordered", "planned": "switchover"}
            return kinds.get(event["data"].get("kind", ""), "takeover")
    if "suspended" in names or "disabled" in names:
        return "leaving"
    if any(name in SIGNALS for name in names) or any(_state(e) == "failing_over" for e in events):
        won = any(event["event"] == "verdict" and event["data"].get("won") for event in events)
        return "stays" if won else "open"
    return "pairing"


def _figures(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event["data"].items()
            if value is not None and key not in QUIET}  # fmt: skip


TITLES = {
    "takeover": "failover to {to}",
    "ordered": "failover to {to}, ordered by a person",
    "switchover": "planned switchover to {to}",
    "leaving": "fault tolerance was suspended or turned off",
    "stays": "the VM went on alone",
    "pairing": "pairing",
    "open": "a loss that nobody has the right to act on yet",
}


def render(story: Story, missing: dict[str, str]) -> str:
    """The story as people read it; `missing` says of hosts why they did not answer."""
    to = next((step.host for step in story.steps if step.stage == "activated"), "")
    lines = [f"{story.vm}: {TITLES[story.kind].format(to=to)}"]
    for step in story.steps:
        said = SAID.get(step.stage, ())
        figures = " ".join(f"{key}={value}" for key, value in step.figures.items()
                           if key not in said)  # fmt: skip
        tail = f"  [{figures}]" if figures else ""
        lines.append(f"{step.number:3d}. {_span(step.ms)}  {step.host:10s} {step.stage}: "
                     f"{step.reason}{tail}")  # fmt: skip
    if not story.ended:
        lines.append("     not protected again yet")
    lines += [f"     {host} did not answer, so its part is missing: {why}"
              for host, why in sorted(missing.items())]  # fmt: skip
    return "\n".join(lines)


def _span(ms: float) -> str:
    return f"{ms:+10.1f} ms" if abs(ms) < 100_000 else f"{ms / 1000:+10.1f} s "
