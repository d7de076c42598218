"""The story of an incident: where it begins and ends, in which order it is told, what it lacks."""

from __future__ import annotations

from typing import Any

import pytest

from kvmft.agent.history import merge, offset
from kvmft.cli import story


def event(host: str, seq: int, when: float, name: str, reason: str = "", **data: Any) -> dict[str, Any]:
    return {"seq": seq, "time": when, "host": host, "vm": "db1", "event": name, "reason": reason,
            "data": data}  # fmt: skip


def state(host: str, seq: int, when: float, word: str, role: str | None = None) -> dict[str, Any]:
    return event(host, seq, when, "state", word, state=word, **({"role": role} if role else {}))


PAIRING = [
    event("node-a", 1, 10.0, "enabled", "turned on"),
    event("node-a", 2, 10.1, "claim", purpose="create"),
    event("node-a", 3, 10.11, "claim_sent", base=0, asked=1),
    event("node-a", 4, 10.2, "verdict", won=True),
    event("node-a", 5, 11.0, "offer"),
    event("node-b", 1, 11.1, "offer_stored"),
    state("node-b", 2, 11.11, "protected", "secondary"),
    event("node-a", 6, 11.2, "claim", purpose="pair"),
    event("node-a", 7, 11.21, "claim_sent"),
    event("node-a", 8, 11.3, "verdict", won=True),
    event("node-a", 9, 11.31, "synced"),
    state("node-a", 10, 11.32, "protected", "primary"),
]
CUT = [
    event("node-b", 3, 20.300, "primary_lost", "no sign of life for 300 ms", detection_ms=300.0),
    state("node-b", 4, 20.301, "failing_over", "secondary"),
    event("node-b", 5, 20.330, "claim", purpose="solo"),
    event("node-b", 6, 20.331, "claim_sent", "asks to replace ...", base=2, asked=3),
    event("node-b", 7, 20.340, "verdict", "the arbiter swapped the record", won=True),
    event("node-b", 8, 20.350, "activated", "runs from commit 900", kind="unplanned"),
    event("node-b", 9, 20.351, "output_open"),
    state("node-b", 10, 20.36, "need_secondary", "secondary"),
    event("node-b", 11, 30.0, "synced"),
    state("node-b", 12, 30.1, "protected", "primary"),
]


def merged(*events: dict[str, Any]) -> list[dict[str, Any]]:
    logs: dict[str, list[dict[str, Any]]] = {}
    for each in events:
        logs.setdefault(each["host"], []).append(each)
    return merge(logs, {})


def test_a_power_cut_is_told_from_the_last_sign_of_life_to_protection() -> None:
    told = story.last_story("db1", merged(*PAIRING, *CUT))
    assert told is not None
    assert (told.kind, told.ended, told.lacking()) == ("takeover", True, [])
    assert told.began == pytest.approx(20.0)
    assert [(step.number, step.stage, step.ms) for step in told.steps] == [
        (1, "loss", 300.0), (2, "state failing_over", 301.0), (3, "claim", 330.0),
        (4, "sent", 331.0), (5, "verdict", 340.0), (6, "activated", 350.0), (7, "output", 351.0),
        (8, "state need_secondary", 360.0), (9, "sync", 10000.0), (10, "protected", 10100.0),
    ]  # fmt: skip
    text = story.render(told, {"node-a": "it is off."})
    assert text.splitlines()[0] == "db1: failover to node-b"
    assert "  1.     +300.0 ms  node-b     loss: no sign of life for 300 ms  [detection_ms=300.0]" in text
    assert "node-a did not answer, so its part is missing: it is off." in text


def test_without_a_failover_the_pairing_is_told() -> None:
    told = story.last_story("db1", merged(*PAIRING))
    assert told is not None
    assert (told.kind, told.ended, told.lacking()) == ("pairing", True, [])
    assert told.steps[0].ms == 0.0


@pytest.mark.parametrize("gone", range(len(CUT)))
def test_a_step_that_is_missing_is_named(gone: int) -> None:
    needed = {0: "loss", 2: "claim", 3: "sent", 4: "verdict", 6: "output", 9: "protected"}
    events = merged(*CUT[:gone], *CUT[gone + 1 :])
    told = story.tell("db1", events)
    if gone in needed:
        assert needed[gone] in told.lacking()
    elif gone != 5:
        assert told.lacking() == []
    else:
        assert told.kind == "stays", "without its activation nobody took over"


def test_steps_in_another_order_are_lacking() -> None:
    events = [CUT[0], *CUT[4:6], *CUT[2:4], *CUT[6:]]
    assert story.tell("db1", events).lacking() == ["verdict", "activated"]


def test_the_loss_of_a_secondary_is_a_story_of_its_own_kind() -> None:
    told = story.last_story("db1", merged(
        event("node-a", 1, 5.0, "secondary_lost", "closed", signal="closed"),
        state("node-a", 2, 5.0, "failing_over", "primary"),
        event("node-a", 3, 5.0, "claim"), event("node-a", 4, 5.0, "claim_sent"),
        event("node-a", 5, 5.1, "verdict", won=True),
        event("node-a", 6, 5.2, "output_open", packets=3),
        state("node-a", 7, 5.2, "need_secondary", "primary"),
    ))  # fmt: skip
    assert told is not None
    assert (told.kind, told.ended, told.lacking()) == ("stays", False, ["protected"])
    assert "not protected again yet" in story.render(told, {})


def test_a_loss_without_a_verdict_is_open_and_turning_off_is_no_failover() -> None:
    lost = story.tell("db1", merged(*CUT[:4]))
    assert lost.kind == "open" and lost.lacking() == ["verdict"]
    off = [
        event("node-b", 13, 40.0, "suspended", "asked by a person"),
        state("node-b", 14, 40.0, "failing_over", "primary"),
        event("node-b", 15, 40.1, "claim"),
        event("node-b", 16, 40.1, "verdict", won=True),
        state("node-b", 17, 40.2, "suspended"),
    ]
    everything = merged(*PAIRING, *CUT, *off)
    assert [story.tell("db1", each).kind for each in story.incidents(everything)] == [
        "pairing", "takeover", "leaving"
    ]  # fmt: skip
    told = story.last_story("db1", everything)
    assert told is not None and told.kind == "takeover"
    assert story.last_story("db1", everything, back=1) is None


def test_planned_and_ordered_failovers_are_told_as_such() -> None:
    for kind, first in (("planned", state("node-a", 1, 20.0, "failing_over", "primary")),
                        ("ordered", event("node-b", 2, 20.0, "failover_asked"))):  # fmt: skip
        activated = {**CUT[5], "data": {"kind": kind}}
        told = story.tell("db1", merged(first, *CUT[2:5], activated, *CUT[6:]))
        assert told.lacking() == [] and told.kind in ("switchover", "ordered")


# -- the order of several hosts' events --------------------------------------------------------------


def test_each_hosts_own_order_is_kept_whatever_its_clock_did() -> None:
    jumped = [event("b", 1, 100.0, "one"), event("b", 2, 40.0, "two"), event("b", 3, 101.0, "three")]
    steady = [event("a", 1, 50.0, "early"), event("a", 2, 100.5, "late")]
    order = [each["event"] for each in merge({"a": steady, "b": jumped}, {})]
    assert order == ["early", "one", "two", "late", "three"]


def test_a_clock_that_is_ahead_is_corrected() -> None:
    ahead = [event("b", 1, 1010.0, "second")]
    here = [event("a", 1, 1005.0, "third"), event("a", 2, 999.0, "never first")]
    assert [each["event"] for each in merge({"a": here, "b": ahead}, {"b": 10.0})] == [
        "second", "third", "never first"
    ]  # fmt: skip


def test_a_log_that_comes_unsorted_is_sorted_by_its_numbers() -> None:
    found = merge({"a": [event("a", 2, 2.0, "two"), event("a", 1, 1.0, "one")]}, {})
    assert [each["seq"] for each in found] == [1, 2]


@pytest.mark.parametrize(
    ("sent", "received", "theirs", "expected"),
    [
        (100.0, 100.2, 100.15, 0.0),  # what the way there and back explains
        (100.0, 100.002, 100.004, 0.0),  # in step
        (100.0, 100.2, 103.1, 3.0),
        (100.0, 100.2, 97.1, -3.0),
    ],
)
def test_by_how_much_a_clock_is_off(
    sent: float, received: float, theirs: float, expected: float
) -> None:
    assert offset(sent, received, theirs) == pytest.approx(expected)
