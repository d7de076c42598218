"""The campaign's judgements: a second active side, both calling themselves primary, losses, the report."""

from __future__ import annotations

import json
import struct
import zlib
from types import SimpleNamespace
from typing import Any

import pytest

from tests.lab.faults import ground, report, rows
from tests.lab.faults.frames import Count, Frame, Segment, Takeover, count, parse, segment_of
from tests.lab.faults.ground import Ground, Sides
from tests.lab.faults.judge import Verdict, judge_postgres, judge_quick, problems_of
from tests.lab.faults.rows import ROWS, Row, Watch
from tests.lab.faults.timeline import Shown, double_claims


def frame(host: str, at: float, seq: int = 100, length: int = 10, ack: int = 50,
          checksum: int = 7) -> Frame:  # fmt: skip
    return Frame(f"node-{host}", at, Segment("7001>10.93.0.1:4", seq, length, ack, checksum))


def took(host: str, at: float) -> Takeover:
    return Takeover(f"node-{host}", at)


def test_one_side_alone_is_fine() -> None:
    assert count([frame("a", 0), frame("a", 1)], []) == Count()


def test_a_clean_takeover_is_fine() -> None:
    assert count([frame("a", 0), frame("b", 5), frame("b", 6)], [took("b", 5.05)]) == Count()


@pytest.mark.parametrize(
    "beyond",
    [
        frame("a", 5.5, seq=115),  # more was sent than the commit had sent
        frame("a", 5.5, ack=51),  # more was acknowledged than the commit had received
        frame("a", 5.5, seq=110, checksum=8),  # other bytes than the winner's in the same place
        Frame("node-a", 5.5),  # no TCP: nothing shows of when it is
        Frame("node-a", 5.5, Segment("7001>10.93.0.1:99", 100, 10, 50, 7)),  # unknown to the winner
    ],
)
def test_output_of_the_old_side_beyond_the_commit_counts(beyond: Frame) -> None:
    frames = [frame("a", 0), frame("b", 5, seq=110, checksum=9), beyond, frame("b", 6, seq=120)]
    assert count(frames, [took("b", 5.05)]) == Count(second_active=1)


@pytest.mark.parametrize("late", [frame("a", 5.5, seq=100), frame("a", 5.5, seq=110, checksum=9)])
def test_late_output_of_the_commit_itself_is_counted_apart(late: Frame) -> None:
    frames = [frame("a", 0), frame("b", 5, seq=110, checksum=9), late]
    assert count(frames, [took("b", 5.05)]) == Count(late=1)


def test_frames_of_the_old_side_before_the_new_one_was_heard_do_not_count() -> None:
    frames = [frame("a", 0), frame("a", 5.2, seq=900), frame("b", 5.4)]
    assert count(frames, [took("b", 5.0)]) == Count()


def test_back_and_forth_is_fine_in_the_order_of_the_takeovers() -> None:
    frames = [frame("a", 0), frame("b", 5), frame("a", 20), frame("a", 21, seq=300)]
    assert count(frames, [took("b", 5.0), took("a", 20.1)]) == Count()
    more = [*frames, frame("b", 22, seq=400)]
    assert count(more, [took("b", 5.0), took("a", 20.1)]) == Count(second_active=1)


def test_sequence_numbers_wrap_around() -> None:
    frames = [frame("b", 5, seq=2), frame("a", 5.5, seq=(1 << 32) - 8)]
    assert count(frames, [took("b", 5.0)]) == Count(late=1)


def test_a_segment_is_read_from_its_frame_and_survives_the_file() -> None:
    tcp = struct.pack("!HHIIBBHHH", 7001, 4, 100, 50, 5 << 4, 0x18, 0, 0, 0) + b"ok\n"
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, bytes(4),
                     bytes([10, 93, 0, 1]))  # fmt: skip
    ethernet = bytes(12) + b"\x08\x00"
    read = segment_of(ethernet + ip + tcp + b"padding")
    assert read == Segment("7001>10.93.0.1:4", 100, 3, 50, zlib.crc32(b"ok\n"))
    assert segment_of(bytes(12) + b"\x08\x06" + bytes(46)) is None
    frames = [Frame("node-a", 1.5, read), Frame("node-b", 2.5)]
    assert parse(f"{each}\n" for each in frames) == frames
    assert parse(["node-a 1.0 7001>10"]) == []


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


def test_healing_puts_no_cable_in_that_stays_out_not_even_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that waits for the arbiter needs only that moment."""
    cables: list[tuple[str, str, bool]] = []
    monkeypatch.setattr(ground.net, "cable", lambda lab, host, network, up: cables.append((host, network, up)))
    lab = SimpleNamespace(name="x", hosts=("node-a", "witness"), is_on=lambda host: True)
    made = ground.Ground(lab, None)  # type: ignore[arg-type]
    made.heal(but=("witness", "mgmt"))
    assert ("witness", "mgmt", True) not in cables
    assert {("witness", "ft", True), ("node-a", "mgmt", True), ("node-a", "ft", True)} <= set(cables)

    monkeypatch.setattr(rows.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(made, "cut_both_ways", lambda network: None)
    cables.clear()
    watch = SimpleNamespace(last_answer=lambda: 0.0, shown=lambda *states: True, problem=lambda text: None)
    monkeypatch.setattr(rows, "wait_until", lambda what, true, seconds: None)
    rows._both_cut("ft")(made, ground.Sides("node-a", "node-b"), watch)  # type: ignore[arg-type]
    arbiter = [up for host, network, up in cables if (host, network) == ("witness", "mgmt")]
    assert arbiter == [False, True, True], "out, in when its turn has come, and in with everything else"
