"""The file arbiter's own dangers: kills between any two steps, hung mounts, old names freed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from kvmft.adapters import arbiter_client
from kvmft.adapters.filearbiter import KEEP, FileArbiter, Files
from kvmft.adapters.reactor import Reactor
from kvmft.ports import Unclear, vm_key
from tests.contract.backends import CLUSTER, FileBackend
from tests.contract.sides import Side, pair, uuid


class Steps(Files):
    """Counts every operation and kills its process before operation `fatal` (from 1)."""

    def __init__(self, fatal: int = 0) -> None:
        self.fatal, self.done = fatal, 0

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("_") or name in ("fatal", "done"):
            return value
        self.done += 1
        if self.done == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return value


def _operations(directory: Path) -> int:
    """How many file operations a claim takes."""
    backend = FileBackend(directory)
    a, __ = pair(backend, directory / "state")
    steps = Steps()
    counted = a.restarted(FileArbiter(str(backend.directory), steps))
    counted.client.solo()
    assert str(counted.wait()) == "WON"
    return steps.done


def _claim_and_exit(side: Side, arbiter: FileArbiter) -> None:
    again = Side(Reactor(), arbiter, side.directory, side.me, side.uuid)
    again.client.solo()
    again.reactor.run_until(lambda: bool(again.verdicts), 10)
    os._exit(0)


def test_a_claimant_killed_at_any_step_leaves_a_right_answer(tmp_path: Path) -> None:
    """The secondary's process is killed with -9 before each single operation in turn. The primary
    then claims; the killed one comes back with what it had on disk: exactly one has won."""
    (tmp_path / "count").mkdir()
    operations = _operations(tmp_path / "count")
    assert operations > 20
    winners = set()
    for fatal in range(1, operations + 1):
        directory = tmp_path / str(fatal)
        directory.mkdir()
        backend = FileBackend(directory)
        a, b = pair(backend, directory / "state")
        child = os.fork()
        if child == 0:
            _claim_and_exit(b, FileArbiter(str(backend.directory), Steps(fatal)))
        __, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        a.client.solo()
        back = b.restarted(backend.arbiter()[0])
        back.client.solo()
        told = [str(a.verdicts[2] if a.verdicts[2:] else a.wait()),
                str(back.verdicts[0] if back.verdicts else back.wait())]  # fmt: skip
        assert sorted(told) == ["LOST", "WON"], (fatal, told)
        winners.add(told[0])
        shutil.rmtree(directory)
    assert winners == {"WON", "LOST"}, "the kills were all on one side of the link"


class HungMount(Files):
    """Blocks in an operation, as a hard mount does whose server is away."""

    def __init__(self, operation: str) -> None:
        self.operation, self.back, self.blocked = operation, threading.Event(), 0

    def __getattribute__(self, name: str) -> Any:
        if name == super().__getattribute__("operation"):
            self.blocked += 1
            super().__getattribute__("back").wait(60)
        return super().__getattribute__(name)


class Beside(threading.Thread):
    """Turns a hundred times a second, if this process may run at all."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.turns, self.end = 0, threading.Event()

    def run(self) -> None:
        while not self.end.wait(0.01):
            self.turns += 1


@pytest.mark.parametrize("operation", ["open_directory", "names", "write", "link", "sync"])
def test_a_hung_mount_blocks_nothing_else_and_its_answer_counts_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    monkeypatch.setattr(arbiter_client, "PATIENCE", 0.3)
    backend = FileBackend(tmp_path)
    a, b = pair(backend, tmp_path / "state")
    files = HungMount(operation)
    a = a.restarted(FileArbiter(str(backend.directory), files))
    a.client.solo()
    beside, ticks = Beside(), [0]

    def tick() -> None:
        ticks.append(beside.turns)
        a.reactor.call_later(0.01, tick)

    beside.start()
    tick()
    a.noted("it has not come back yet")
    assert a.undecided_for(1.0)
    beside.end.set()
    ticks.append(beside.turns)
    assert max(after - before for before, after in zip(ticks, ticks[1:], strict=False)) < 25, "the reactor stood still"
    assert files.blocked == 1, "one thread waits, however often it was asked again"
    files.back.set()
    assert str(a.wait()) == "WON"
    b.client.solo()
    assert str(b.wait()) == "LOST"


def test_while_the_mount_hangs_the_other_side_may_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arbiter_client, "PATIENCE", 0.3)
    backend = FileBackend(tmp_path)
    a, b = pair(backend, tmp_path / "state")
    files = HungMount("link")
    a = a.restarted(FileArbiter(str(backend.directory), files))
    a.client.solo()
    a.noted("it has not come back yet")
    b.client.solo()
    assert str(b.wait()) == "WON"
    files.back.set()
    assert str(a.wait()) == "LOST"


class LateLink(Files):
    """Its link is on its way for as long as it is told to wait. The server has the file by its
    handle: what happens to the temporary name meanwhile means nothing."""

    def __init__(self) -> None:
        self.paused, self.go_on = threading.Event(), threading.Event()

    def link(self, old: str, new: str, at: int) -> None:
        kept = f"handle-{old}"
        super().link(old, kept, at)
        self.paused.set()
        self.go_on.wait(60)
        try:
            super().link(kept, new, at)
        finally:
            os.unlink(kept, dir_fd=at)


@pytest.mark.parametrize("later", [1, KEEP - 1, KEEP, KEEP + 1, 3 * KEEP])
def test_a_link_of_the_past_wins_nothing_also_when_its_name_is_free_again(
    tmp_path: Path, later: int
) -> None:
    """A claimant is paused between its look and its link, while others change the record so often
    that the name which it aims at was used and removed."""
    backend = FileBackend(tmp_path)
    key = vm_key(CLUSTER, uuid())
    direct, __ = backend.arbiter()
    assert direct.swap(key, None, b"0").succeeded
    late, replies = LateLink(), []

    def claim() -> None:
        try:
            replies.append(FileArbiter(str(backend.directory), late).swap(key, b"0", b"late"))
        except Unclear:
            replies.append(None)

    thread = threading.Thread(target=claim)
    thread.start()
    assert late.paused.wait(10)
    for number in range(later):
        assert direct.swap(key, str(number).encode(), str(number + 1).encode()).succeeded
    aimed = backend.folder(key.rsplit("/", 1)[1]) / "gen-2"
    assert aimed.exists() == (later <= KEEP)
    late.go_on.set()
    thread.join(20)
    assert replies[0] is None or not replies[0].succeeded
    assert direct.swap(key, b"no", b"no").current == str(later).encode()
    assert direct.swap(key, str(later).encode(), b"next").succeeded


def test_old_generations_and_what_killed_claimants_left_are_removed(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path)
    arbiter, vm = backend.arbiter()[0], uuid()
    assert arbiter.swap(vm_key(CLUSTER, vm), None, b"0").succeeded
    (backend.folder(vm) / ".new-2-0123456789abcdef").write_bytes(b"left by a kill")
    for number in range(40):
        new = str(number + 1).encode()
        assert arbiter.swap(vm_key(CLUSTER, vm), str(number).encode(), new).succeeded
    names = sorted(path.name for path in backend.folder(vm).iterdir())
    assert names == sorted(f"gen-{number}" for number in range(41 - KEEP + 1, 42))


class Vanishing(Files):
    """The server goes away after so many operations: all others end with ESTALE."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("_") or name == "left":
            return value
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        return value


def test_an_error_at_any_step_is_unclear_and_asking_again_ends_right(tmp_path: Path) -> None:
    (tmp_path / "count").mkdir()
    backend = FileBackend(tmp_path)
    for after in range(_operations(tmp_path / "count")):
        key, direct = vm_key(CLUSTER, f"vm-e{after}"), backend.arbiter()[0]
        assert direct.swap(key, None, b"base").succeeded
        try:
            told = FileArbiter(str(backend.directory), Vanishing(after)).swap(key, b"base", b"mine")
        except Unclear:
            told = None
        again = direct.swap(key, b"base", b"mine")
        assert again.succeeded or again.current == b"mine", after
        assert told is None or told.succeeded, after
        if told is not None:
            assert not again.succeeded, "two changes for one"
