"""The campaign's judgements: a second active side, both calling themselves primary, losses, the report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lab.faults import report
from tests.lab.faults.frames import Burst, Takeover, second_active
from tests.lab.faults.ground import Ground, Sides
from tests.lab.faults.judge import Verdict, judge_postgres, judge_quick, problems_of
from tests.lab.faults.rows import ROWS, Row, Watch
from tests.lab.faults.timeline import Shown, double_claims


def burst(host: str, first: float, frames: int = 3) -> Burst:
    return Burst(f"node-{host}", first, first + 0.01, frames)


def took(host: str, at: float) -> Takeover:
    return Takeover(f"node-{host}", at)


def test_one_side_alone_is_fine() -> None:
    assert second_active([burst("a", 0), burst("a", 1)], []) == 0


def test_a_clean_takeover_is_fine() -> None:
    assert second_active([burst("a", 0), burst("b", 5), burst("b", 6)], [took("b", 5.05)]) == 0


def test_frames_of_the_old_side_after_the_new_one_was_heard_count() -> None:
    bursts = [burst("a", 0), burst("b", 5), burst("a", 5.5, 7), burst("b", 6)]
    assert second_active(bursts, [took("b", 5.05)]) == 7


def test_frames_of_the_old_side_before_the_new_one_was_heard_do_not_count() -> None:
    assert second_active([burst("a", 0), burst("a", 5.2), burst("b", 5.4)], [took("b", 5.0)]) == 0


def test_back_and_forth_is_fine_in_the_order_of_the_takeovers() -> None:
    bursts = [burst("a", 0), burst("b", 5), burst("a", 20), burst("a", 21)]
    assert second_active(bursts, [took("b", 5.0), took("a", 20.1)]) == 0
    assert second_active([*bursts, burst("b", 22)], [took("b", 5.0), took("a", 20.1)]) == 3


def claims(at: float, host: str, role: str = "primary", running: bool = True) -> Shown:
    return Shown(at, f"node-{host}", "protected", "", role, running)


def test_both_calling_themselves_primary_is_measured() -> None:
    assert double_claims([claims(0, "a"), claims(0, "b", "secondary", False)], 9) == 0
    assert double_claims([claims(0, "a"), claims(2, "b"), claims(5, "a", "stale", False)], 9) == 3
    assert double_claims([claims(0, "a"), claims(2, "b")], 9) == 7


def test_a_host_that_does_not_answer_claims_nothing() -> None:
    assert double_claims([claims(0, "a"), Shown(1, "node-a", None), claims(2, "b")], 9) == 0


def lines(*entries: dict[str, Any]) -> list[str]:
    return [json.dumps(entry) + "\n" for entry in entries]


BASE = {"kind": "base", "length": 5, "registers": {"d0": "old"}}


def op(name: str, called: float, returned: float | None, **fields: Any) -> dict[str, Any]:
    return {"kind": "op", "op": name, "called": called, "returned": returned, **fields}


GOOD = [
    BASE,
    op("read", 0, 1, key="d0", value="old"),
    op("append", 1, 2, value="x", index=5),
    op("append", 2, None, value="y"),
    op("length", 3, 4, index=7),
    op("write", 1, 2, key="d0", value="new"),
    op("cas", 3, 4, key="d0", value="newer", expected="new", seen="new"),
    {"kind": "echo", "at": 1.0},
    {"kind": "echo", "at": 1.5},
    {"kind": "echo", "at": 4.0},
    {"kind": "log", "base": 5, "records": ["x", "y"]},
]


def test_a_good_history_is_accepted() -> None:
    verdict = judge_quick(lines(*GOOD), injected=1.2)
    assert (verdict.lost, verdict.duplicates, verdict.linearizable) == (0, 0, True)
    assert (verdict.operations, verdict.open, verdict.gap) == (6, 1, 2.5)
    assert problems_of(verdict, False) == []


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"kind": "log", "base": 5, "records": ["y"]}, "missing"),
        ({"kind": "log", "base": 5, "records": ["x", "y", "x"]}, "more than once"),
        (op("read", 5, 6, key="d0", value="old"), "not linearizable"),
        ({"kind": "reset", "of": "a", "at": 3.0, "reason": "closed"}, "broke"),
    ],
)
def test_what_must_not_be_is_named(changed: dict[str, Any], word: str) -> None:
    verdict = judge_quick(lines(*GOOD, changed), injected=1.2)
    assert any(word in text for text in problems_of(verdict, False))


def test_a_guest_that_cannot_be_read_proves_nothing() -> None:
    verdict = judge_quick(lines(*GOOD[:-1]), injected=1.2)
    assert problems_of(verdict, True) == ["the guest could not be read at the end"]


def test_resets_of_a_guest_that_reboots_are_allowed() -> None:
    assert problems_of(Verdict(resets=3), True) == []
    assert problems_of(Verdict(resets=3), False) == ["3 connections broke"]


def test_the_databases_rows_are_judged() -> None:
    log = lines({"kind": "commit", "seq": 1, "sent": 0, "answered": 1},
                {"kind": "commit", "seq": 2, "sent": 1, "answered": 2})  # fmt: skip
    assert judge_postgres(log, 0, [1, 2, 3]).linearizable
    assert judge_postgres(log, 0, [1]).lost == 1
    assert judge_postgres(log, 0, [1, 2, 2]).duplicates == 1
    assert not judge_postgres(log, 0, None).finished


def nothing(_ground: Ground, _sides: Sides, _watch: Watch) -> None:
    """An injection that does nothing."""


def result(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "row": "r", "run": 1, "lost": 0, "duplicates": 0, "second_active": 0, "resets": 0,
        "operations": 9, "linearizable": True, "gap_ms": 400.0, "reprotected_s": 3.0, "moved": True,
        "problems": [],
    }  # fmt: skip
    return value | changes


def test_a_row_is_summed_up() -> None:
    row = Row("r", "fault", nothing, True, 1.0)
    found = report.summarise([result(), result(run=2, gap_ms=900.0, reprotected_s=5.0)], row)
    assert (found["verdict"], found["gap_ms"]["max"], found["reprotected_s"]["max"]) == ("ok", 900, 5)
    slow = report.summarise([result(), result(gap_ms=1100.0)], row)
    assert slow["verdict"] == "slow in 1"
    failed = report.summarise([result(lost=2, problems=["2 acknowledged records are missing"])], row)
    assert (failed["verdict"], failed["lost"]) == ("FAILED", 2)
    text = report.table([result(lost=2, problems=["2 acknowledged records are missing"])], [row])
    assert "run 1: 2 acknowledged records are missing" in text


def test_every_row_of_the_failure_table_is_there() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for word in ("host-primary", "host-secondary", "qemu-primary", "qemu-secondary", "agent-primary",
                 "agent-secondary", "freeze-primary-30s", "ft-cut", "ft-cut-in", "ft-cut-out",
                 "arbiter-cut", "both-cut-ft-back", "both-cut-arbiter-back", "disk-full", "io-error",
                 "both-power-primary-first", "both-power-secondary-first", "both-power-at-once",
                 "guest-reboot", "guest-poweroff", "guest-panic"):  # fmt: skip
        assert word in names
