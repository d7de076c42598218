"""What a checkpoint holds is the VM at one moment: its memory when it runs again, and nothing after it (I3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvmft.adapters.deltas import Deltas
from kvmft.adapters.qmp import Command, Reply
from kvmft.adapters.reactor import Reactor
from kvmft.core.wire import HEADER, split_checkpoint
from kvmft.worker.disklog import DiskLog
from kvmft.worker.engine import Checkpoint, Engine
from kvmft.worker.shadow import Shadow

PAGE = 4096
BASE = 1 << 30


class Memory:
    """Sixteen pages of a VM, and which of them were written."""

    def __init__(self) -> None:
        self.data = bytearray(16 * PAGE)
        self.dirty: set[int] = set()

    def write(self, page: int, text: bytes) -> None:
        self.data[page * PAGE : page * PAGE + len(text)] = text
        self.dirty.add(page)

    def collect(self) -> np.ndarray:
        found = [(BASE + page * PAGE, BASE + (page + 1) * PAGE) for page in sorted(self.dirty)]
        self.dirty.clear()
        return np.array(found, dtype=np.uint64).reshape(-1, 2)

    def read(self, ranges: np.ndarray, into: memoryview) -> int:
        position = 0
        for start, end in ranges.tolist():
            into[position : position + end - start] = self.data[start - BASE : end - BASE]
            position += end - start
        return position

    def to_table(self, ranges: np.ndarray) -> np.ndarray:
        rows = [(0, start - BASE, end - start) for start, end in ranges.tolist()]
        return np.array(rows, dtype=np.uint64).reshape(-1, 3)


class Qemu:
    """A monitor that answers through the reactor, and does to memory what is planned for each command."""

    def __init__(self, reactor: Reactor, state: Path) -> None:
        self.reactor, self.state = reactor, state
        self.plan: dict[str, Callable[[], None]] = {}
        self.refuses = ""
        self.asked: list[str] = []

    def batch(self, commands: list[Command], done: Callable[[list[Reply]], None],
              first: Callable[[Reply], None] | None = None) -> None:  # fmt: skip
        replies: list[Reply] = []

        def answer() -> None:
            name = commands[len(replies)].name
            self.asked.append(name)
            self.plan.get(name, lambda: None)()
            if name == "xen-save-devices-state":
                self.state.write_bytes(b"devices")
            replies.append({"error": {"desc": "no"}} if name == self.refuses else {"return": {}})
            if len(replies) == 1 and first is not None:
                first(replies[0])
            if len(replies) == len(commands):
                done(replies)
            else:
                self.reactor.call_later(0, answer)

        self.reactor.call_later(0, answer)


class Bench:
    """An engine, its VM, and the checkpoints that it took."""

    def __init__(self, folder: Path) -> None:
        self.reactor, self.memory = Reactor(), Memory()
        self.qemu = Qemu(self.reactor, folder / "state")
        self.failed: list[str] = []
        self.engine = Engine(self.reactor, self.qemu, self.memory, DiskLog(), str(folder / "state"),  # type: ignore[arg-type]
                             self.failed.append)  # fmt: skip

    def take(self, epoch: int, **more: Any) -> Checkpoint | None:
        taken: list[Checkpoint] = []
        self.engine.take(epoch, False, lambda: None, taken.append, **more)
        self.reactor.run_until(lambda: bool(taken or self.failed), 2)
        return taken[0] if taken else None


@pytest.fixture(params=["whole", "words"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    if request.param == "words":
        made.engine.shadow = Shadow([16 * PAGE], 16 * PAGE)
    return made


def applied(taken: Checkpoint, onto: bytes) -> bytes:
    """Memory after the secondary applied the checkpoint to `onto`, one run after the other, then the words."""
    body = memoryview(b"".join(bytes(part) for part in taken.parts))[HEADER.size :]
    parts = split_checkpoint(body)
    result, position = bytearray(onto), 0
    for __, offset, length in np.frombuffer(parts.runs, dtype="<u8").reshape(-1, 3).tolist():
        result[offset : offset + length] = parts.pages[position : position + length]
        position += length
    assert position == len(parts.pages) and bytes(parts.device_state) == b"devices"
    if len(parts.deltas):
        Deltas.read(parts.deltas).apply([np.frombuffer(result, dtype=np.uint64)])
    return bytes(result)


def test_what_a_device_writes_while_it_is_saved_belongs_to_the_checkpoint(bench: Bench) -> None:
    memory = bench.memory
    memory.write(3, b"guest")
    memory.write(5, b"guest")

    def device() -> None:
        memory.write(5, b"device")
        memory.write(9, b"device")

    bench.qemu.plan["xen-save-devices-state"] = device
    moments: list[bytes] = []

    def runs() -> None:
        moments.append(bytes(memory.data))
        memory.write(3, b"later")

    bench.qemu.plan["cont"] = runs
    taken = bench.take(1)
    assert taken is not None and taken.pages == 4
    assert applied(taken, bytes(16 * PAGE)) == moments[0], "the VM at the moment at which it ran again"

    bench.qemu.plan.clear()
    following = bench.take(2)
    assert following is not None and following.pages == 1
    assert (following.saved > 0) == (bench.engine.shadow is not None), "of a page that was sent before, only what is new"
    assert following.size > PAGE, "its size counts the page as if it were sent whole"
    assert applied(following, moments[0]) == bytes(memory.data), "what came later is part of the next one"


def test_memory_is_copied_once_the_vm_stands_still_and_not_before(bench: Bench) -> None:
    bench.memory.write(1, b"before")
    bench.qemu.plan["stop"] = lambda: bench.memory.write(1, b"last words")
    taken = bench.take(1)
    assert taken is not None and applied(taken, bytes(16 * PAGE)) == bytes(bench.memory.data)


def test_what_is_new_is_found_out_when_the_vm_runs_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, asked = bench.engine._encode, []

    def noted(*given: Any) -> Any:
        asked.append(list(bench.qemu.asked))
        return encode(*given)

    monkeypatch.setattr(bench.engine, "_encode", noted)
    bench.memory.write(1, b"x")
    assert bench.take(1) is not None
    assert [each[-1] for each in asked] == ["cont"], "never in the pause"


@pytest.mark.parametrize("command", ["stop", "xen-save-devices-state", "cont"])
def test_a_refusal_is_told_and_yields_no_checkpoint(bench: Bench, command: str) -> None:
    bench.qemu.refuses = command
    assert bench.take(1) is None
    assert bench.failed == ["QEMU refused a checkpoint: no"] and not bench.engine.busy


def test_the_last_checkpoint_leaves_the_vm_stopped(bench: Bench) -> None:
    bench.memory.write(2, b"x")
    taken = bench.take(1, last=True)
    assert taken is not None and taken.pages == 1 and "cont" not in bench.qemu.asked
