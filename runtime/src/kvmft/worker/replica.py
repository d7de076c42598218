"""The replica's disks: captured writes applied in order; a durable mark says whether it may start."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator

from kvmft.adapters.durable import write_durably
from kvmft.adapters.sparse import data_extents, punch_hole
from kvmft.core.wire import OP_FLUSH, OP_WRITE, OP_ZERO, WRITE_WORDS, WireError
from kvmft.errors import KvmftError

SYNC_LOOKS = 0.02


class ReplicaDisks:
    """Image files of the replica, opened for writing. Sizes and offsets in bytes."""

    def __init__(self, disks: list[tuple[str, int]]) -> None:
        self._files: list[tuple[int, int]] = []
        self._syncing: threading.Thread | None = None
        self._sync_error: OSError | None = None
        for path, size in disks:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)
            self._files.append((descriptor, size))

    def apply(self, table: memoryview, data: memoryview) -> None:
        """Carry out the operations of one commit (or of the first sync), in order.

        Applying the same commit twice gives the same disks. Raises KvmftError `replica_disk` on a
        full disk or an I/O error, WireError when a row is outside its disk.
        """
        position = 0
        for disk, op, offset, length in _rows(table):
            if disk >= len(self._files):
                raise WireError(f"A disk write names disk {disk}, which does not exist.")
            descriptor, size = self._files[disk]
            if offset + length > size:
                raise WireError(f"A disk write ends at {offset + length}, beyond {size}.")
            try:
                if op == OP_WRITE:
                    if position + length > len(data):
                        raise WireError("The disk writes announce more data than was sent.")
                    _write_all(descriptor, data[position : position + length], offset)
                    position += length
                elif op == OP_ZERO:
                    self._zero(descriptor, offset, length)
                elif op != OP_FLUSH:
                    raise WireError(f"Disk operation {op} is unknown.")
            except OSError as error:
                raise KvmftError(
                    "replica_disk",
                    f"The replica's disk {disk} cannot be written on this host: {error}.",
                    "Free space in the storage pool or replace the device; protection then "
                    "comes back by itself.",
                ) from error

    def _zero(self, descriptor: int, offset: int, length: int) -> None:
        if length and not punch_hole(descriptor, offset, length):
            step = 1 << 20
            for start in range(offset, offset + length, step):
                _write_all(descriptor, memoryview(bytes(min(step, offset + length - start))), start)

    def extents(self, disk: int, unit: int) -> list[tuple[int, int]]:
        """The extents [start, end) of `disk` that hold data, widened to whole units of `unit` bytes
        (the last one may be short) and joined where they meet."""
        descriptor, size = self._files[disk]
        result: list[tuple[int, int]] = []
        for start, end in data_extents(descriptor, size):
            start, end = start // unit * unit, min(size, -(-end // unit) * unit)
            if result and start <= result[-1][1]:
                result[-1] = (result[-1][0], max(end, result[-1][1]))
            else:
                result.append((start, end))
        return result

    def read(self, disk: int, start: int, end: int) -> memoryview:
        """The bytes [start, end) of `disk`."""
        descriptor, _size = self._files[disk]
        data = bytearray(end - start)
        view, position = memoryview(data), 0
        while position < len(data):
            count = os.preadv(descriptor, [view[position:]], start + position)
            if count == 0:
                raise OSError(f"disk {disk} ends at {start + position}")
            position += count
        return view

    def sync_later(self) -> None:
        """Begin to write what was applied to the medium, unless that is under way already."""
        if self._syncing is None or not self._syncing.is_alive():
            self._syncing = threading.Thread(target=self._sync, name="sync")
            self._syncing.start()

    def sync_end(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until everything that was applied before the last `sync_later` is on the medium, and call `meanwhile` every
        SYNC_LOOKS seconds until it is: a busy device may take longer than the peer bears silence.

        KvmftError `replica_disk` when the device refused it.
        """
        while self._syncing is not None and self._syncing.is_alive():
            self._syncing.join(SYNC_LOOKS)
            meanwhile()
        if (fault := self.fault) is not None:
            raise fault from self._sync_error

    @property
    def fault(self) -> KvmftError | None:
        """`replica_disk` once the device refused what had been taken into memory: it is lost there,
        and the kernel says so only once (fsync(2))."""
        if self._sync_error is None:
            return None
        return KvmftError(
            "replica_disk",
            f"The replica's disks cannot be made durable on this host: {self._sync_error}.",
            "Replace the device; protection then comes back by itself.",
        )

    def settle(self) -> None:
        """From now on `read` returns what the medium holds: after a write error the kernel's cache
        still shows what the medium lost. KvmftError `replica_disk` when the device refuses writes."""
        self.sync()
        for descriptor, _size in self._files:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Have everything that was applied on the medium before this returns."""
        self.sync_end()
        self.sync_later()
        self.sync_end()

    def _sync(self) -> None:
        try:
            for descriptor, _size in self._files:
                os.fdatasync(descriptor)
        except OSError as error:
            self._sync_error = error

    def close(self) -> None:
        """Close the files."""
        for descriptor, _size in self._files:
            os.close(descriptor)
        self._files.clear()


def _rows(table: memoryview) -> Iterator[tuple[int, int, int, int]]:
    numbers = table.cast("Q") if table.c_contiguous else memoryview(bytes(table)).cast("Q")
    for index in range(0, len(numbers), WRITE_WORDS):
        yield tuple(numbers[index : index + WRITE_WORDS].tolist())  # type: ignore[misc]


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while len(data):
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def write_mark(state_dir: str, in_sync: bool, session: str) -> None:
    """Durably say whether the replica in `state_dir` may be activated, by session."""
    mark = {"in_sync": in_sync, "session": session}
    write_durably(os.path.join(state_dir, "replica.json"), json.dumps(mark).encode())


def read_mark(state_dir: str, session: str) -> bool:
    """True when the replica of `session` was marked as in sync."""
    try:
        with open(os.path.join(state_dir, "replica.json"), encoding="utf-8") as file:
            mark = json.load(file)
    except (OSError, ValueError):
        return False
    return bool(mark.get("in_sync")) and mark.get("session") == session
