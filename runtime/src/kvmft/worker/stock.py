"""What the standby's host has of the VM already, told to the primary so that only the rest is sent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np

from kvmft.adapters.digests import digests_of
from kvmft.adapters.memory import StandbyMemory
from kvmft.adapters.reactor import Reactor
from kvmft.adapters.sparse import data_extents, punch_hole
from kvmft.core.wire import DISK_UNIT, MEMORY_UNIT, OF_DISK, OF_MEMORY, encode_digests
from kvmft.errors import KvmftError
from kvmft.worker.config import WorkerConfig
from kvmft.worker.link import AgentLink
from kvmft.worker.peerlink import PeerLink
from kvmft.worker.replica import ReplicaDisks

DIGEST_CHUNK = 4 << 20
"""Bytes hashed between two looks at what else is to be done."""


class Stock:
    """The memory that the former primary left on this host, and the disks of an earlier replica.
    `under_way` tells whether the primary still waits to hear of it."""

    def __init__(
        self,
        reactor: Reactor,
        config: WorkerConfig,
        link: AgentLink,
        peer: PeerLink,
        disks: ReplicaDisks,
        under_way: Callable[[], bool],
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._link = link
        self._peer = peer
        self._disks = disks
        self._under_way = under_way

    def tell(
        self, memory: StandbyMemory, done: Callable[[], None], failed: Callable[[str], None]
    ) -> None:
        """Fill `memory` with what was left here, and tell the primary what is in it and on the disks,
        a little at a time; then `done` is called, or `failed` with the reason."""
        frames = self._digest_frames(memory)

        def step() -> None:
            if not self._under_way():
                return
            try:
                frame = next(frames, None)
            except (KvmftError, OSError) as error:
                failed(f"the replica on {self._config.host} cannot be read: {error}")
                return
            if frame is None:
                done()
                return
            if frame:
                self._peer.send(frame)
            self._reactor.call_later(0, step)

        step()

    def _digest_frames(self, memory: StandbyMemory) -> Iterator[bytes]:
        """DIGESTS frames of the standby's memory and of the replica's disks; empty ones between."""
        key = self._config.session.encode()
        self._disks.settle()
        yield from self._take_base(memory)
        for index in range(len(memory.blocks)):
            for start, end in _steps(memory.extents(index)):
                found = digests_of(memory.view(index, start, end), MEMORY_UNIT, key)
                yield _digests(OF_MEMORY, index, start // MEMORY_UNIT, found)
        for index in range(len(self._config.disks)):
            for start, end in _steps(self._disks.extents(index, DISK_UNIT)):
                found = digests_of(self._disks.read(index, start, end), DISK_UNIT, key)
                yield _digests(OF_DISK, index, start // DISK_UNIT, found)

    def _take_base(self, memory: StandbyMemory) -> Iterator[bytes]:
        """Fill the standby from the memory that the former primary left on this host."""
        base = self._config.base
        if base is None:
            return
        for index, block in enumerate(memory.blocks):
            descriptor = base.blocks.get(block.name)
            if descriptor is None:
                continue
            try:
                source = os.open(f"/proc/{base.pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                self._link.event("base_lost", f"the next sync sends all memory: {error}")
                return
            try:
                size = min(block.size, os.fstat(source).st_size)
                for start, end in _steps(list(data_extents(source, size))):
                    data = os.pread(source, end - start, start)
                    memory.fill(index, start, memoryview(data))
                    punch_hole(source, start, end - start)  # so that it is not there twice
                    yield b""
            finally:
                os.close(source)


def _steps(extents: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut extents [start, end) into pieces of at most DIGEST_CHUNK bytes."""
    for begin, end in extents:
        for start in range(begin, end, DIGEST_CHUNK):
            yield start, min(start + DIGEST_CHUNK, end)


def _digests(of: int, index: int, first: int, found: np.ndarray) -> bytes:
    """A DIGESTS frame, or nothing where all is zero: that is what the primary assumes."""
    return encode_digests(of, index, first, found.tobytes()) if found.any() else b""
