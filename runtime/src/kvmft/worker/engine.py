"""The checkpoint engine of a primary: QEMU stopped, saved, scanned, copied, running again.

The order inside a checkpoint is the order of `take`; each step says why it stands where it does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvmft.adapters.linux import PAGE
from kvmft.adapters.memory import GuestMemory
from kvmft.adapters.qmp import Command, Monitor, MonitorError, Reply, command
from kvmft.adapters.reactor import Reactor
from kvmft.core.wire import (
    WRITE_WORDS,
    FrameType,
    checkpoint_head,
    checkpoint_length,
    encode_header,
)
from kvmft.worker.disklog import DiskLog
from kvmft.worker.pagebuffer import PageBuffer
from kvmft.worker.shadow import Encoded, Shadow

JOINED = 256 << 10
"""Bytes: so many are copied in the time of a few system calls."""


@dataclass(frozen=True)
class Checkpoint:
    """What one stop yielded. `parts` are the frame's buffers, in order; the page buffer is reused
    by the next checkpoint, so they must be sent before it. `pages`: how many were written. `pause` in seconds; it ended
    at `until` (monotonic). `saved`: bytes of pages that need not be sent."""

    epoch: int
    parts: list[bytes | bytearray | memoryview]
    pages: int
    pause: float
    until: float
    saved: int
    audit: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes that this checkpoint would have if all its pages were sent whole: what pause and commit take goes by them, as
        each page is copied and compared, whatever is sent of it."""
        return sum(map(len, self.parts)) + self.saved


@dataclass(frozen=True)
class Copied:
    """Ranges (n, 2) of guest memory, and their bytes one after the other."""

    ranges: np.ndarray
    data: memoryview


class Engine:
    """Takes checkpoints and copy rounds of one VM."""

    def __init__(
        self,
        reactor: Reactor,
        monitor: Monitor,
        memory: GuestMemory,
        disk_log: DiskLog,
        state_path: str,
        on_failed: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._monitor = monitor
        self._memory = memory
        self._disk_log = disk_log
        self._state_path = state_path
        self._on_failed = on_failed
        self._buffer, self._late_buffer = PageBuffer(), PageBuffer(1 << 20)
        self.stay_stopped = False
        self.shadow: Shadow | None = None
        """None: pages are sent whole."""
        self.busy = False
        """True while a checkpoint or a round is under way."""
        self.holds_vm = False
        """True from a stop of ours until the VM is known to run again; also after a failure."""
        self.on_last_stop: Callable[[], None] = lambda: None
        """Called as soon as the VM stands still for its last checkpoint here."""
        self.on_progress: Callable[[], None] = lambda: None
        """Called again and again while an audit hashes memory."""

    def take(
        self,
        epoch: int,
        audit: bool,
        at_stop: Callable[[], None],
        done: Callable[[Checkpoint], None],
        last: bool = False,
    ) -> None:
        """Take checkpoint `epoch`; `done` gets it when the VM runs again, or when it was taken if
        it is the `last` one, after which the VM stays stopped. With `stay_stopped` it stays so too:
        the VM was paused for good while the checkpoint was being taken.

        `at_stop` is called while the VM is stopped, after its device state was saved: it cuts the
        captured packets, which by then are all in our socket (QEMU's main loop writes them before
        it answers `stop`).
        """
        self.busy = self.holds_vm = True
        begun = self._reactor.now()
        rest: tuple[Any, Any, bytes] = (b"", b"", b"")
        late = copied = Copied(np.zeros((0, 2), dtype=np.uint64), memoryview(b""))

        def stopped(reply: Reply) -> None:
            # The VM stands still and its I/O is drained: memory is copied while QEMU saves the devices.
            nonlocal copied
            if "error" not in reply:
                if last:
                    self.on_last_stop()
                copied = self._copy(self._buffer)

        def saved(replies: list[Reply]) -> None:
            nonlocal late, rest
            if self._refused(replies):
                return
            # A device may write to memory while it is saved: those pages once more (I3).
            late = self._copy(self._late_buffer)
            # `stop` drained the disks, so each write is in the log of its own epoch (I3).
            table, data = self._disk_log.cut()
            at_stop()
            digests = self._memory.page_hashes(0, self.on_progress).tobytes() if audit else None
            stay = last or self.stay_stopped
            if not stay:
                self._batch([command("cont")], lambda replies: running(replies, digests))
            with open(self._state_path, "rb", buffering=0) as file:
                rest = (table, data, file.read())
            if stay:
                running([], digests)

        def running(replies: list[Reply], digests: bytes | None) -> None:
            if not self._refused(replies):
                self.busy, self.holds_vm = False, not replies
                until = self._reactor.now()
                # Only now, when the VM runs again, is it found out what of its pages is new.
                encoded = self._encode(copied, late)
                pages = (len(copied.data) + len(late.data)) // PAGE
                done(Checkpoint(epoch, _frame(epoch, encoded, *rest), pages, until - begun, until, encoded.saved, digests))

        # Not `live`: that would also let go of the disk images, and `cont` would have to open them again.
        save = command("xen-save-devices-state", filename=self._state_path, live=False)
        self._batch([command("stop"), save], saved, stopped)

    def _encode(self, copied: Copied, late: Copied) -> Encoded:
        parts = [(self._memory.to_table(each.ranges), each.data) for each in (copied, late)]
        return Encoded.whole(*parts) if self.shadow is None else self.shadow.encode(*parts)

    def _copy(self, buffer: PageBuffer) -> Copied:
        """Copy what was written since the last call; the VM must be stopped."""
        ranges = self._memory.collect()
        data = buffer.view(int((ranges[:, 1] - ranges[:, 0]).sum()) if len(ranges) else 0)
        self._memory.read(ranges, data)
        return Copied(ranges, data)

    def round(self, done: Callable[[np.ndarray, float], None]) -> None:
        """Scan dirty memory in a short stop; `done` gets the ranges (n, 2) and the pause.

        The caller copies while the VM runs: a page that changes meanwhile is dirty again and is
        part of a later round or of the first checkpoint, which alone must be consistent. With
        `stay_stopped` the VM stays stopped.
        """
        self.busy = self.holds_vm = True
        begun = self._reactor.now()

        def stopped(replies: list[Reply]) -> None:
            if self._refused(replies):
                return
            ranges = self._memory.collect()
            if self.stay_stopped:
                running([], ranges)
            else:
                self._batch([command("cont")], lambda replies: running(replies, ranges))

        def running(replies: list[Reply], ranges: np.ndarray) -> None:
            if not self._refused(replies):
                self.busy, self.holds_vm = False, not replies
                done(ranges, self._reactor.now() - begun)

        self._batch([command("stop")], stopped)

    def discard_state_file(self) -> None:
        """Remove the device state's file."""
        try:
            os.unlink(self._state_path)
        except FileNotFoundError:
            pass

    def _batch(
        self,
        commands: list[Command],
        done: Callable[[list[Reply]], None],
        first: Callable[[Reply], None] | None = None,
    ) -> None:
        try:
            self._monitor.batch(commands, done, first)
        except MonitorError as error:
            self.busy = False
            self._on_failed(str(error))

    def _refused(self, replies: list[Reply]) -> bool:
        for reply in replies:
            if "error" in reply:
                self.busy = False
                self._on_failed(f"QEMU refused a checkpoint: {reply['error'].get('desc')}")
                return True
        return False


def _frame(
    epoch: int, memory: Encoded, table: bytes | bytearray, data: bytes | bytearray, state: bytes
) -> list[bytes | bytearray | memoryview]:
    """The parts of a CHECKPOINT frame: `memory`, the disks' write `table` and `data`, and the devices' state."""
    runs = np.ascontiguousarray(memory.table, dtype="<u8")
    page_bytes = sum(map(len, memory.data))
    counts = (len(runs), page_bytes, len(table) // (8 * WRITE_WORDS), len(data), len(state), len(memory.deltas))
    front = encode_header(FrameType.CHECKPOINT, epoch, checkpoint_length(*counts)) + checkpoint_head(*counts) + runs.tobytes()
    # What is small is sent at once: each part is a system call and a TLS record here, and again there.
    back = (memory.deltas, table, data, state)
    joined = [b"".join(back)] if sum(map(len, back)) <= JOINED else list(back)
    return [front, *memory.data, *joined]
