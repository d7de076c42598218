"""Captured disk writes, in the order in which the guest made them, ready for the wire."""

from __future__ import annotations

import struct
from collections.abc import Callable

from kvmft.core.wire import OP_FLUSH, OP_WRITE, OP_ZERO

_ROW = struct.Struct("<4Q")


class DiskLog:
    """One ordered log of all disks of a VM: a table of rows (disk, op, offset, length) and data.

    Order across disks is kept, because a guest may rely on it (a journal on one, data on another).
    """

    def __init__(self) -> None:
        self._rows = bytearray()
        self._data = bytearray()

    def __bool__(self) -> bool:
        return bool(self._rows)

    @property
    def size(self) -> int:
        """Bytes waiting, table included."""
        return len(self._rows) + len(self._data)

    def add(self, disk: int, op: int, offset: int, length: int, data: memoryview | bytes) -> None:
        """Append one operation; `data` is copied."""
        self._rows += _ROW.pack(disk, op, offset, length)
        self._data += data

    def cut(self) -> tuple[bytearray, bytearray]:
        """Take everything: (table, data). The log is empty afterwards."""
        taken = (self._rows, self._data)
        self._rows, self._data = bytearray(), bytearray()
        return taken


class DiskSink:
    """The NBD server's sink for one disk."""

    def __init__(self, log: DiskLog, disk: int, on_growth: Callable[[], None]) -> None:
        self._log = log
        self._disk = disk
        self._on_growth = on_growth

    def write(self, offset: int, data: memoryview) -> None:
        """The guest (or the mirror's copy) wrote `data` at `offset` (bytes)."""
        self._log.add(self._disk, OP_WRITE, offset, len(data), data)
        self._on_growth()

    def zero(self, offset: int, length: int) -> None:
        """The range reads as zeros from now on."""
        self._log.add(self._disk, OP_ZERO, offset, length, b"")
        self._on_growth()

    def flush(self) -> None:
        """The guest asked for durability; the secondary syncs at this point of the log."""
        self._log.add(self._disk, OP_FLUSH, 0, 0, b"")
