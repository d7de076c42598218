"""Guest memory: tracked and read on the primary, written on the secondary.

Shapes: *ranges* are (n, 2) uint64 arrays of host virtual addresses [start, end); *tables* are (n, 3)
uint64 arrays of (block index, offset in block, length), the form that crosses the wire.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvmft.adapters import inject, linux
from kvmft.adapters.deltas import Deltas, malformed
from kvmft.adapters.digests import runs_of
from kvmft.adapters.pagemap import Pagemap
from kvmft.adapters.sparse import data_extents
from kvmft.adapters.userfault import Userfault
from kvmft.errors import KvmftError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
]  # fmt: skip
_libc.process_vm_readv.restype = ctypes.c_ssize_t

_WORDS = linux.PAGE // 8
_WEIGHTS = np.random.Generator(np.random.PCG64(0x6B766D6674)).integers(
    0, 1 << 63, _WORDS, dtype=np.uint64
) * np.uint64(2) + np.uint64(1)
"""Odd 64-bit weights, the same on both hosts: a page's hash is its words' weighted sum."""
_HASH_CHUNK = 4 << 20
_READ_CHUNK = 1 << 30


@dataclass(frozen=True)
class RamBlock:
    """One of QEMU's RAM blocks: `hva` is its address in QEMU, 0 where it need not be known.

    `kind` is `anon` (private memory) or `memfd` (shared; `memfd_path` opens it).
    """

    name: str
    hva: int
    size: int
    kind: str
    memfd_path: str | None = None


def _nothing() -> None:
    pass


def _empty() -> np.ndarray:
    return np.zeros((0, 2), dtype=np.uint64)


def hash_pages(data: memoryview | bytearray | np.ndarray) -> np.ndarray:
    """One 64-bit hash per 4-KiB page of `data`, for comparing replicas (not for security)."""
    words = np.frombuffer(data, dtype=np.uint64).reshape(-1, _WORDS)
    with np.errstate(over="ignore"):
        return np.asarray((words * _WEIGHTS).sum(axis=1, dtype=np.uint64))


def drop_zero_pages(table: np.ndarray, data: memoryview) -> tuple[np.ndarray, memoryview]:
    """Leave out the pages that are all zero: the table and data of the others."""
    pages = np.frombuffer(data, dtype=np.uint64).reshape(-1, _WORDS)
    return keep_pages(table, data, pages.any(axis=1))


def keep_pages(
    table: np.ndarray, data: memoryview, keep: np.ndarray
) -> tuple[np.ndarray, memoryview]:
    """The table and data of those pages, in order, for which `keep` (bool, one a page) is true."""
    if keep.all():
        return table, data
    pages = np.frombuffer(data, dtype=np.uint64).reshape(-1, _WORDS)
    counts = (table[:, 2] // linux.PAGE).astype(np.int64)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    step = (np.arange(len(pages)) - first).astype(np.uint64) * np.uint64(linux.PAGE)
    blocks = np.repeat(table[:, 0], counts)[keep]
    offsets = (np.repeat(table[:, 1], counts) + step)[keep]
    if not len(blocks):
        return np.zeros((0, 3), dtype=np.uint64), memoryview(b"")
    begins = np.ones(len(blocks), dtype=bool)
    begins[1:] = (blocks[1:] != blocks[:-1]) | (offsets[1:] != offsets[:-1] + linux.PAGE)
    at = np.flatnonzero(begins)
    lengths = np.diff(np.append(at, len(blocks))).astype(np.uint64) * np.uint64(linux.PAGE)
    kept = np.column_stack((blocks[at], offsets[at], lengths))
    return kept, memoryview(np.ascontiguousarray(pages[keep])).cast("B")


class GuestMemory:
    """The running VM's memory, seen from outside QEMU."""

    def __init__(self) -> None:
        self.blocks: list[RamBlock] = []
        self._pid = 0
        self._remote_fd: int | None = None
        self._tracking = False

    def attach(self, pid: int, blocks: list[RamBlock], lasting: bool = True) -> None:
        """Begin to track all writes to `blocks` of QEMU process `pid`.

        Not `lasting`: QEMU closes its descriptor at once and ours is the only one, so that the kernel ends
        the tracking with this process, however it ends (fs/userfaultfd.c: `userfaultfd_release`).
        """
        self._pid, self.blocks = pid, blocks
        self._starts = np.array([block.hva for block in blocks], dtype=np.uint64)
        self._order = np.argsort(self._starts)
        self._pagemap = Pagemap(pid)
        remote = inject.find_userfaultfd(pid)
        if remote is not None and not lasting:
            raise KvmftError(
                "memory_tracked",
                f"The memory of QEMU process {pid} is tracked already.",
                "Wait until the migration, snapshot, forecast or protection that does so has ended.",
            )
        remote = inject.make_userfaultfd(pid) if remote is None else remote
        try:
            fetched = inject.fetch_fd(pid, remote)
        finally:
            if not lasting:
                inject.close_remote_fd(pid, remote)
        self._remote_fd = remote if lasting else None
        self._userfault = Userfault(fetched)
        self._tracking = True
        try:
            for block in blocks:
                self._userfault.register(block.hva, block.size)
                self._userfault.protect(block.hva, block.size)
        except (OSError, KvmftError):
            if not lasting:
                # What was registered goes with the only descriptor; the rest may be another's.
                self._tracking = False
                self._userfault.close()
                self._pagemap.close()
            raise

    def detach(self) -> None:
        """End tracking and leave QEMU as it was before `attach`."""
        if not self._tracking:
            return
        remote, self._remote_fd, self._tracking = self._remote_fd, None, False
        try:
            for block in self.blocks:
                self._userfault.unregister(block.hva, block.size)
            if remote is not None:
                inject.close_remote_fd(self._pid, remote)
        except (OSError, KvmftError):
            if os.path.exists(f"/proc/{self._pid}/exe"):
                raise
        finally:
            self._userfault.close()
            self._pagemap.close()

    def with_pages(self, ranges: np.ndarray, index: int, numbers: np.ndarray) -> np.ndarray:
        """`ranges` and, besides, the pages `numbers` of block `index`; in order of address."""
        block = self.blocks[index]
        inside = (ranges[:, 0] >= block.hva) & (ranges[:, 0] < block.hva + block.size)
        wanted = np.zeros(block.size // linux.PAGE, dtype=bool)
        for start, end in ((ranges[inside] - np.uint64(block.hva)) // linux.PAGE).tolist():
            wanted[int(start) : int(end)] = True
        wanted[numbers] = True
        rows = [
            (block.hva + first * linux.PAGE, block.hva + end * linux.PAGE)
            for first, end in runs_of(np.flatnonzero(wanted))
        ]
        mine = np.array(rows, dtype=np.uint64).reshape(-1, 2)
        result = np.concatenate([ranges[~inside], mine])
        return np.asarray(result[np.argsort(result[:, 0])])

    def keep(self, name: str = "kvmft-base") -> list[tuple[RamBlock, int]]:
        """Every block's content as an open memfd that outlives QEMU, which must be stopped.

        Shared memory is kept as it is; of private memory, the pages that are not zero are copied.
        """
        kept: list[tuple[RamBlock, int]] = []
        populated = self.populated()
        for block in self.blocks:
            if block.memfd_path is not None:
                kept.append((block, os.open(block.memfd_path, os.O_RDWR | os.O_CLOEXEC)))
                continue
            descriptor = os.memfd_create(name)
            os.ftruncate(descriptor, block.size)
            inside = (populated[:, 0] >= block.hva) & (populated[:, 0] < block.hva + block.size)
            for start, end in _split(populated[inside], _HASH_CHUNK).tolist():
                buffer = bytearray(end - start)
                self.read(np.array([[start, end]], dtype=np.uint64), memoryview(buffer))
                table = np.array([[0, start - block.hva, end - start]], dtype=np.uint64)
                table, data = drop_zero_pages(table, memoryview(buffer))
                position = 0
                for __, offset, length in table.tolist():
                    os.pwrite(descriptor, data[position : position + length], offset)
                    position += length
            kept.append((block, descriptor))
        return kept

    def populated(self) -> np.ndarray:
        """Ranges that may hold something other than zeros."""
        found: list[np.ndarray] = []
        for block in self.blocks:
            if block.memfd_path is None:
                found += self._pagemap.populated(block.hva, block.hva + block.size)
                continue
            # Another process may have filled a memfd: QEMU's page tables need not know of it.
            descriptor = os.open(block.memfd_path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                extents = [
                    (block.hva + start, block.hva + end)
                    for start, end in data_extents(descriptor, block.size)
                ]
            finally:
                os.close(descriptor)
            found.append(np.array(extents, dtype=np.uint64).reshape(-1, 2))
        return np.concatenate(found) if found else _empty()

    def collect(self, protect: bool = True) -> np.ndarray:
        """Ranges written since the last call, re-protected in the same system call.

        The VM must be stopped and its I/O drained: a DMA into a pinned page that is protected
        meanwhile would be missed. To count pages alone (a forecast) it may run.
        """
        found: list[np.ndarray] = []
        for block in self.blocks:
            found += self._pagemap.written(block.hva, block.hva + block.size, protect)
        return np.concatenate(found) if found else _empty()

    def read(self, ranges: np.ndarray, into: memoryview) -> int:
        """Copy `ranges`, one after the other, to the front of `into`; the number of bytes."""
        if not len(ranges):
            return 0
        lengths = ranges[:, 1] - ranges[:, 0]
        if int(lengths.max()) > _READ_CHUNK:
            ranges = _split(ranges, _READ_CHUNK)
            lengths = ranges[:, 1] - ranges[:, 0]
        total = int(lengths.sum())
        vectors = np.column_stack((ranges[:, 0], lengths))
        target = ctypes.addressof(ctypes.c_char.from_buffer(into))
        done = 0
        local = np.zeros((1, 2), dtype=np.uint64)
        for first in range(0, len(vectors), linux.UIO_MAXIOV):
            part = np.ascontiguousarray(vectors[first : first + linux.UIO_MAXIOV])
            size = int(part[:, 1].sum())
            local[0] = (target + done, size)
            count = _libc.process_vm_readv(
                self._pid, local.ctypes.data, 1, part.ctypes.data, len(part), 0
            )
            if count != size:
                why = os.strerror(ctypes.get_errno()) if count < 0 else f"{count} of {size} bytes"
                raise KvmftError(
                    "guest_memory_unreadable",
                    f"Guest memory of QEMU process {self._pid} cannot be read: {why}.",
                    "If QEMU still runs, kvmft-agent lacks CAP_SYS_PTRACE.",
                )
            done += size
        return total

    def to_table(self, ranges: np.ndarray) -> np.ndarray:
        """The table (block, offset, length) of `ranges`, in their order."""
        if not len(ranges):
            return np.zeros((0, 3), dtype=np.uint64)
        ordered = self._starts[self._order]
        block = self._order[np.searchsorted(ordered, ranges[:, 0], side="right") - 1]
        offset = ranges[:, 0] - self._starts[block]
        return np.column_stack((block.astype(np.uint64), offset, ranges[:, 1] - ranges[:, 0]))

    def page_hashes(self, index: int, between: Callable[[], None] = _nothing) -> np.ndarray:
        """One hash per page of block `index`; unpopulated pages count as zeros.

        `between` is called every few milliseconds of it.
        """
        block = self.blocks[index]
        hashes = np.zeros(block.size // linux.PAGE, dtype=np.uint64)
        table_ranges = self.populated()
        inside = (table_ranges[:, 0] >= block.hva) & (table_ranges[:, 0] < block.hva + block.size)
        for start, end in _split(table_ranges[inside], _HASH_CHUNK).tolist():
            buffer = bytearray(end - start)
            self.read(np.array([[start, end]], dtype=np.uint64), memoryview(buffer))
            first = (start - block.hva) // linux.PAGE
            hashes[first : first + (end - start) // linux.PAGE] = hash_pages(buffer)
            between()
        return hashes


def _split(ranges: np.ndarray, size: int) -> np.ndarray:
    pieces = [
        (start, min(start + size, end))
        for begin, end in ranges.tolist()
        for start in range(begin, end, size)
    ]
    return np.array(pieces, dtype=np.uint64).reshape(-1, 2)


class StandbyMemory:
    """The standby's memory, written through its memfds while its QEMU waits in `inmigrate`."""

    def __init__(self, pid: int, blocks: list[RamBlock]) -> None:
        self.blocks = blocks
        self._areas: list[memoryview] = []
        self._descriptors: list[int] = []
        for block in blocks:
            if block.memfd_path is None:
                raise KvmftError(
                    "standby_memory_private",
                    f"RAM block {block.name} of the standby (process {pid}) is not shared.",
                    "The standby must use <source type='memfd'/> and <access mode='shared'/>.",
                )
            descriptor = os.open(block.memfd_path, os.O_RDWR | os.O_CLOEXEC)
            self._descriptors.append(descriptor)
            self._areas.append(memoryview(mmap.mmap(descriptor, block.size)))

    def check(self, table: np.ndarray, size: int, deltas: Deltas | None = None) -> None:
        """KvmftError `memory_table_malformed` unless the runs of `table` (n, 3) have `size` bytes, and they and the pages
        of `deltas` are all in this memory."""
        sizes = np.array([block.size for block in self.blocks], dtype=np.uint64)
        blocks, offsets, lengths = table[:, 0], table[:, 1], table[:, 2]
        good = int(lengths.sum()) == size and (
            not len(table)
            or bool((blocks < len(sizes)).all())
            and bool((lengths <= sizes.max()).all())
            and bool((offsets <= sizes.max()).all())
            and bool((offsets + lengths <= sizes[blocks.astype(np.int64)]).all())
        )
        if not good:
            raise malformed("it names places outside the standby's memory, or more than came")
        if deltas is not None:
            deltas.check([block.size for block in self.blocks])

    def apply(self, table: np.ndarray, data: memoryview, deltas: Deltas | None = None) -> None:
        """Write the runs of `table` (n, 3), whose bytes follow one another in `data`, then the words of `deltas`.

        Everything is checked before the first byte is written, so that a malformed checkpoint
        changes nothing.
        """
        self.check(table, len(data), deltas)
        position = 0
        areas = self._areas
        for block, offset, length in table.tolist():
            areas[block][offset : offset + length] = data[position : position + length]
            position += length
        if deltas is not None:
            deltas.apply([np.frombuffer(area, dtype=np.uint64, count=len(area) // 8) for area in areas])

    def page_hashes(self, index: int, between: Callable[[], None] = _nothing) -> np.ndarray:
        """One hash per page of block `index`; unpopulated pages count as zeros.

        `between` is called every few milliseconds of it.
        """
        block = self.blocks[index]
        hashes = np.zeros(block.size // linux.PAGE, dtype=np.uint64)
        for begin, end in data_extents(self._descriptors[index], block.size):
            for start in range(begin, end, _HASH_CHUNK):
                stop = min(start + _HASH_CHUNK, end)
                view = self._areas[index][start:stop]
                hashes[start // linux.PAGE : stop // linux.PAGE] = hash_pages(view)
                between()
        return hashes

    def fill(self, index: int, start: int, data: memoryview) -> None:
        """Write `data` at offset `start` of block `index`; it must fit (a base of ours, not input)."""
        self._areas[index][start : start + len(data)] = data

    def extents(self, index: int) -> list[tuple[int, int]]:
        """The extents [start, end) of block `index` that have memory behind them."""
        return list(data_extents(self._descriptors[index], self.blocks[index].size))

    def view(self, index: int, start: int, end: int) -> memoryview:
        """The bytes [start, end) of block `index`."""
        return self._areas[index][start:end]

    def close(self) -> None:
        """Let go of the memory; the standby keeps it."""
        self._areas.clear()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
