"""Sending only what differs, until the replica is in sync: filters for disk and memory.

The disk's stands between the mirror and the FT log. A mirror copies the whole disk, and the guest's writes come in between; both pass here, in the order
in which the replica must see them. A unit of which nothing was sent yet still has at the peer what
the peer's digest says, so a write of the very same content is left out.

A mirror may begin by zeroing its target. Such a zero is only noted, and sent when the unit is written
otherwise or when the mirror has ended its copy: most units get the content back that they had.
"""

from __future__ import annotations

import numpy as np

from kvmft.adapters.digests import DigestTable, digests_of, runs_of
from kvmft.adapters.memory import GuestMemory, keep_pages
from kvmft.adapters.nbd import DiskReceiver
from kvmft.core.wire import DISK_UNIT, MEMORY_UNIT, OF_MEMORY, DigestsOf, WireError


class ResyncFilter:
    """A DiskReceiver before another one. `sent` and `left_out` count bytes of disk content."""

    def __init__(self, sink: DiskReceiver, table: DigestTable, size: int, key: bytes) -> None:
        self._sink = sink
        self._table = table
        self._size = size
        self._key = key
        self._touched = np.zeros(table.units, dtype=bool)
        self._zero_noted = np.zeros(table.units, dtype=bool)
        self._settled = False
        self.sent = 0
        self.left_out = 0

    def write(self, offset: int, data: memoryview) -> None:
        """`data` is only valid during the call."""
        if self._settled:
            self._sink.write(offset, data)
            return
        unit = self._table.unit
        end = offset + len(data)
        first = -(-offset // unit)
        last = end // unit if end < self._size else self._table.units
        if first >= last:
            self._send(offset, data)
            return
        if first * unit > offset:
            self._send(offset, data[: first * unit - offset])
        whole = data[first * unit - offset : min(last * unit, self._size) - offset]
        self._write_whole(first, whole)
        if last * unit < end:
            self._send(last * unit, data[last * unit - offset :])

    def _write_whole(self, first: int, data: memoryview) -> None:
        """Whole units from `first` on: those that the peer has already are left out."""
        unit = self._table.unit
        digests = digests_of(data, unit, self._key)
        end = first + len(digests)
        known = self._table.same(first, digests) & ~self._touched[first:end]
        self._zero_noted[first:end] &= ~known
        self.left_out += int(known.sum()) * unit
        for start, stop in runs_of(np.flatnonzero(~known)):
            piece = data[start * unit : min(stop * unit, len(data))]
            # A note is void: the whole unit is written.
            self._zero_noted[first + start : first + stop] = False
            self._send((first + start) * unit, piece)

    def _send(self, offset: int, data: memoryview) -> None:
        unit = self._table.unit
        first, end = offset // unit, -(-(offset + len(data)) // unit)
        self._send_zeros(first, end)
        self._touched[first:end] = True
        self.sent += len(data)
        self._sink.write(offset, data)

    def _send_zeros(self, first: int, end: int) -> None:
        """Send the zeros that were noted for the units [first, end)."""
        unit = self._table.unit
        for start, stop in runs_of(np.flatnonzero(self._zero_noted[first:end]) + first):
            self._sink.zero(start * unit, min(stop * unit, self._size) - start * unit)
            self._touched[start:stop] = True
            self._zero_noted[start:stop] = False

    def zero(self, offset: int, length: int) -> None:
        """The range reads as zeros from now on."""
        if self._settled:
            self._sink.zero(offset, length)
            return
        unit, end = self._table.unit, offset + length
        first = -(-offset // unit)
        last = end // unit if end < self._size else self._table.units
        if first >= last:
            self._zero_part(offset, length)
            return
        if first * unit > offset:
            self._zero_part(offset, first * unit - offset)
        untouched = ~self._touched[first:last]
        self._zero_noted[first:last] |= untouched & ~self._table.zero(first, last)
        for start, stop in runs_of(np.flatnonzero(~untouched)):
            begin = (first + start) * unit
            self._sink.zero(begin, min((first + stop) * unit, self._size) - begin)
        if last * unit < end:
            self._zero_part(last * unit, end - last * unit)

    def _zero_part(self, offset: int, length: int) -> None:
        unit = self._table.unit
        first, end = offset // unit, -(-(offset + length) // unit)
        if self._table.zero(first, end).all() and not self._touched[first:end].any():
            return
        self._send_zeros(first, end)
        self._touched[first:end] = True
        self._sink.zero(offset, length)

    def flush(self) -> None:
        """The guest asked for durability."""
        self._sink.flush()

    def settle(self) -> None:
        """The mirror has ended its copy: send the zeros that stayed, pass everything from now on."""
        self._send_zeros(0, self._table.units)
        self._settled = True
        self._touched = self._zero_noted = np.zeros(0, dtype=bool)


class Known:
    """What the secondary said that it has: one table for each memory block and disk."""

    def __init__(self, memory_sizes: list[int], disk_sizes: list[int], key: bytes) -> None:
        self.memory = [DigestTable(size, MEMORY_UNIT) for size in memory_sizes]
        self.disks = [DigestTable(size, DISK_UNIT) for size in disk_sizes]
        self._key = key
        self.pages_left_out = 0

    def learn(self, told: DigestsOf) -> None:
        """Take a DIGESTS frame; WireError when it is about nothing that we have."""
        tables = self.memory if told.of == OF_MEMORY else self.disks
        if told.index >= len(tables):
            raise WireError(f"Digests of number {told.index} came, but there are {len(tables)}.")
        tables[told.index].learn(told)

    def to_copy(self, memory: GuestMemory) -> np.ndarray:
        """Ranges of the first copy: what is populated here, and what is not zero there."""
        ranges = memory.populated()
        for index, table in enumerate(self.memory):
            occupied = table.occupied()
            if len(occupied):
                ranges = memory.with_pages(ranges, index, occupied)
        return ranges

    def differing(self, table: np.ndarray, data: memoryview) -> tuple[np.ndarray, memoryview]:
        """Of pages in wire form, those that the secondary has otherwise."""
        keep = np.ones(len(data) // MEMORY_UNIT, dtype=bool)
        position = 0
        for block, offset, length in table.tolist():
            count, first = length // MEMORY_UNIT, offset // MEMORY_UNIT
            piece = data[position * MEMORY_UNIT : (position + count) * MEMORY_UNIT]
            theirs = self.memory[block]
            if theirs.known:
                same = theirs.same(first, digests_of(piece, MEMORY_UNIT, self._key))
            else:
                same = ~np.frombuffer(piece, dtype=np.uint64).reshape(count, -1).any(axis=1)
            keep[position : position + count] = ~same
            position += count
        self.pages_left_out += int((~keep).sum())
        return keep_pages(table, data, keep)
