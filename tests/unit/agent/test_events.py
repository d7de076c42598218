"""The events log: numbered, chained, bounded; a torn line, a full disk and a rotation harm nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmft.agent import chain, events
from kvmft.agent.events import EventLog


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def put(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in lines))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "events.jsonl"


@pytest.fixture
def log(path: Path) -> EventLog:
    made = EventLog(str(path), "node-a")
    for number in range(1, 9):
        made.add("db1" if number % 2 else "db2", "claim" if number == 4 else "state", f"no. {number}")
    return made


def test_each_line_names_the_hash_of_the_line_before_it(log: EventLog, path: Path) -> None:
    lines = lines_of(path)
    named = [json.loads(line)["prev"] for line in lines]
    assert named == [chain.FIRST, *map(chain.digest, lines[:-1])]
    found = log.verify()
    assert found.intact and not found.remarks
    assert (found.events, found.first, found.last, found.receipts) == (8, 1, 8, 1)


ALTERATIONS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "altered": lambda lines: [line.replace(b"no. 4", b"no. 5") for line in lines],
    "made unreadable": lambda lines: [*lines[:3], b"{", *lines[4:]],
    "removed": lambda lines: lines[:3] + lines[4:],
    "inserted": lambda lines: [*lines[:4], lines[3], *lines[4:]],
    "inserted unreadable": lambda lines: [*lines[:4], b"{", *lines[4:]],
    "exchanged": lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
    "without its hash": lambda lines: [*lines[:3], _without_hash(lines[3]), *lines[4:]],
    "first removed": lambda lines: lines[1:],
    "last removed": lambda lines: lines[:-1],
    "last altered": lambda lines: [*lines[:-1], lines[-1].replace(b"no. 8", b"no. 9")],
    "one more at the end": lambda lines: [*lines, b"{}"],
}


def _without_hash(line: bytes) -> bytes:
    event = json.loads(line)
    del event["prev"]
    return json.dumps(event).encode()


@pytest.mark.parametrize("name", sorted(set(ALTERATIONS) - {"first removed"}))
def test_what_was_done_to_the_log_is_found(log: EventLog, path: Path, name: str) -> None:
    put(path, ALTERATIONS[name](lines_of(path)))
    assert not log.verify().intact


def test_a_head_kept_elsewhere_shows_that_a_log_was_cut_and_gone_on_with(
    log: EventLog, path: Path
) -> None:
    kept = log.verify()
    put(path, lines_of(path)[:-2])
    again = EventLog(str(path), "node-a")  # an agent that was restarted knows no better
    again.add("db1", "state", "another 7")
    again.add("db1", "state", "another 8")
    assert again.verify().intact
    assert not again.verify((kept.last, kept.head)).intact
    again.add("db1", "state", "9")
    newer = again.verify()
    assert again.verify((newer.last, newer.head)).intact


def test_the_oldest_lines_missing_is_told_as_what_a_rotation_does(log: EventLog, path: Path) -> None:
    put(path, ALTERATIONS["first removed"](lines_of(path)))
    found = log.verify()
    assert found.intact and "rotated away" in found.remarks[0]
    assert not log.verify((1, chain.digest(b"the first line"))).intact


@pytest.mark.parametrize("cut", [1, 20])
def test_a_torn_last_line_is_told_and_breaks_no_chain(path: Path, log: EventLog, cut: int) -> None:
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - cut)
    again = EventLog(str(path), "node-a")
    again.add("db1", "verdict", "after the power cut")
    found = again.verify()
    assert found.intact, found.problems
    assert [remark for remark in found.remarks if "torn" in remark] or cut == 1
    read = again.read(None, 0, 100)
    assert read[-1]["reason"] == "after the power cut"
    assert [event["seq"] for event in read] == list(range(1, len(read) + 1))


def test_a_line_of_zeros_as_a_file_system_leaves_it_is_a_torn_line(path: Path, log: EventLog) -> None:
    with path.open("ab") as file:
        file.write(b"\0" * 5000)
    again = EventLog(str(path), "node-a")
    again.add("db1", "state", "on")
    found = again.verify()
    assert found.intact and len(found.remarks) == 1


def test_lines_of_a_version_without_chain_are_accepted_at_the_beginning_only(path: Path) -> None:
    path.parent.mkdir()
    old = [json.dumps({"seq": n, "time": 1.0, "host": "a", "vm": None, "event": "state",
                       "reason": "", "data": {}}).encode() for n in (1, 2)]  # fmt: skip
    put(path, old)
    log = EventLog(str(path), "a")
    assert log.add(None, "state", "new")["seq"] == 3
    assert log.verify().intact
    put(path, [old[0], old[1].replace(b"state", b"other"), *lines_of(path)[2:]])
    assert not log.verify().intact, "the last old line is covered by the first new one"


def test_a_rotated_log_keeps_chain_numbers_and_bounds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEP_BYTES", 4000)
    log = EventLog(str(path), "node-a")
    for number in range(100):
        log.add("db1", "state", f"{number}")
        assert sum(each.stat().st_size for each in path.parent.iterdir()) < 2 * (4000 + 500)
    assert sorted(each.name for each in path.parent.iterdir()) == ["events.jsonl", "events.jsonl.1"]
    found = log.verify()
    assert found.intact and found.last == 100
    seen = [event["seq"] for event in log.read(None, 0, 1000)]
    assert seen == list(range(seen[0], 101)) and len(seen) > 20
    old = path.with_name("events.jsonl.1")
    put(old, lines_of(old)[:-1])
    assert not log.verify().intact, "a line was removed at the seam of the two files"


def test_a_restart_right_after_a_rotation_goes_on(path: Path, log: EventLog) -> None:
    os.replace(path, f"{path}.1")
    again = EventLog(str(path), "node-a")
    assert again.add(None, "agent_started", "")["seq"] == 9
    assert again.verify().intact


def test_read_gives_the_last_ones_of_a_vm_after_a_number(log: EventLog) -> None:
    assert [event["seq"] for event in log.read("db1", 0, 2)] == [5, 7]
    assert [event["seq"] for event in log.read(None, 6, 100)] == [7, 8]
    assert log.read("nobody", 0, 5) == []


def test_reading_is_bounded_in_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_ANSWER", 20_000)
    log = EventLog(str(path), "node-a")
    for __ in range(40):
        log.add("db1", "state", "x" * 100_000, figures="y" * 100_000)
    read = log.read(None, 0, 1000)
    assert 2 <= len(read) < 8 and read[-1]["seq"] == 40
    assert max(map(len, lines_of(path))) < 2 * events.MAX_TEXT


def test_a_full_disk_loses_events_and_says_so_when_there_is_room_again(
    log: EventLog, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, before[1]))
        assert log.add("db1", "claim", "the disk takes a part of this")["seq"] is None
        assert log.add("db1", "claim", "and nothing of this")["seq"] is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "the disk takes a part of this" in capfd.readouterr().err
    log.add("db1", "state", "there is room again")
    assert [(event["event"], event["reason"]) for event in log.read(None, 8, 100)] == [
        ("events_lost", "2 events could not be written"), ("state", "there is room again")
    ]  # fmt: skip
    assert log.verify().intact


def test_readers_in_threads_see_whole_lines_while_it_rotates(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEP_BYTES", 3000)
    log = EventLog(str(path), "node-a")
    log.add("db1", "state", "0")
    wrong: list[list[int]] = []
    stop = threading.Event()

    def reader() -> None:
        while not stop.is_set():
            seen = [event["seq"] for event in log.read(None, 0, 10)]
            if seen != list(range(seen[0], seen[0] + len(seen))):
                wrong.append(seen)

    threads = [threading.Thread(target=reader) for __ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(400):
        log.add("db1", "state", f"{number}")
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
