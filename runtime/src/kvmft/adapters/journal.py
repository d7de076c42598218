"""The secondary's commit journal: two slots in /run (memory), so that a commit survives a kill.

A checkpoint is received straight into the slot of its epoch's parity. Committing is one aligned
8-byte store, so a kill at any instant leaves either the old commit or the new one, never a mix:
the slot of the last commit is not written again before the next commit is applied. After a restart
of the worker the last commit is applied once more, which is harmless (redo).
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

SLOT_HEAD = struct.Struct("<QQ")
GROW = 4 << 20
NAMES = ("slot-0", "slot-1")


@dataclass
class _Slot:
    descriptor: int
    area: mmap.mmap
    size: int


class Journal:
    """Two slots and the number of the last commit, in `directory` (on a tmpfs)."""

    def __init__(self, directory: str, resume: bool = False) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = directory
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if resume else os.O_TRUNC)
        self._head_fd = os.open(os.path.join(directory, "head"), flags, 0o600)
        if os.fstat(self._head_fd).st_size < mmap.PAGESIZE:
            os.ftruncate(self._head_fd, mmap.PAGESIZE)
        self._head = mmap.mmap(self._head_fd, mmap.PAGESIZE)
        self._numbers = memoryview(self._head).cast("Q")
        self._slots = [self._open_slot(name, flags) for name in NAMES]

    def _open_slot(self, name: str, flags: int) -> _Slot:
        descriptor = os.open(os.path.join(self._directory, name), flags, 0o600)
        size = max(os.fstat(descriptor).st_size, GROW)
        os.ftruncate(descriptor, size)
        return _Slot(descriptor, mmap.mmap(descriptor, size), size)

    @property
    def committed(self) -> int:
        """The last committed epoch; 0 when there is none."""
        return int(self._numbers[0])

    def allocate(self, epoch: int, length: int) -> memoryview:
        """A writable view of `length` bytes for the body of checkpoint `epoch`.

        Raises OSError (ENOSPC) when /run has no room; the commit in the other slot stays.
        """
        slot = self._slots[epoch & 1]
        need = SLOT_HEAD.size + length
        if need > slot.size:
            size = -(-need // GROW) * GROW
            os.posix_fallocate(slot.descriptor, 0, size)
            slot.area = mmap.mmap(slot.descriptor, size)
            slot.size = size
        SLOT_HEAD.pack_into(slot.area, 0, epoch, length)
        return memoryview(slot.area)[SLOT_HEAD.size : need]

    def commit(self, epoch: int) -> None:
        """Make checkpoint `epoch`, whose bytes are all in its slot, the last commit."""
        self._numbers[0] = epoch

    def load(self) -> memoryview | None:
        """The body of the last commit, or None when there is none or the slot disagrees."""
        epoch = self.committed
        if epoch == 0:
            return None
        slot = self._slots[epoch & 1]
        marked, length = SLOT_HEAD.unpack_from(slot.area, 0)
        if marked != epoch or SLOT_HEAD.size + length > slot.size:
            return None
        return memoryview(slot.area)[SLOT_HEAD.size : SLOT_HEAD.size + length]

    def clear(self) -> None:
        """Forget every commit: this replica must not be activated."""
        self._numbers[0] = 0
