"""The commits of a standby: journalled whole, then applied to its memory and disks, which are kept durable."""

from __future__ import annotations

import os

import numpy as np

from kvmft.adapters.deltas import Deltas
from kvmft.adapters.journal import Journal
from kvmft.adapters.memory import StandbyMemory
from kvmft.adapters.reactor import Reactor
from kvmft.core.wire import RUN_WORDS, CheckpointParts, split_checkpoint
from kvmft.errors import KvmftError
from kvmft.worker.config import WorkerConfig
from kvmft.worker.replica import ReplicaDisks

SYNC_EVERY = 0.2
"""Seconds between two flushes of the replica's disks while epochs come in."""


class Commits:
    """The journal and the replica's disks."""

    def __init__(self, reactor: Reactor, config: WorkerConfig) -> None:
        self._reactor = reactor
        self.journal = Journal(os.path.join(config.run_dir, "journal"), config.resume)
        self.disks = ReplicaDisks([(disk.path, disk.size) for disk in config.disks])
        self.last_commit = 0.0
        """When the last one was committed (seconds, monotonic); 0 before the first."""
        self._synced_at = 0.0
        self._unsynced = False

    def check(self, body: memoryview, memory: StandbyMemory) -> None:
        """WireError or KvmftError unless the memory of checkpoint `body` can be applied: it is committed next, and what was
        acknowledged must be of use (I4)."""
        parts = split_checkpoint(body)
        memory.check(_runs(parts.runs), len(parts.pages), _deltas(parts))

    def commit(self, epoch: int) -> None:
        """What was staged for `epoch` is the commit from now on."""
        self.journal.commit(epoch)
        self.last_commit = self._reactor.now()

    def apply(self, epoch: int, memory: StandbyMemory) -> None:
        """Bring `memory` and the disks to commit `epoch`; twice gives the same."""
        body = self.journal.load()
        if body is None:
            raise KvmftError(
                "journal_lost",
                f"The journal does not hold commit {epoch}.",
                "The replica is discarded; protection comes back by a new sync.",
            )
        parts = split_checkpoint(body)
        memory.apply(_runs(parts.runs), parts.pages, _deltas(parts))
        self.disks.apply(parts.writes, parts.write_data)
        self._unsynced = self._unsynced or len(parts.writes) > 0
        self.sync_disks()

    def device_state(self) -> memoryview:
        """The device state of the last commit."""
        body = self.journal.load()
        assert body is not None
        return split_checkpoint(body).device_state

    def sync_disks(self) -> None:
        """In the background, so that little is left to do when this side takes over."""
        if self._unsynced and self._reactor.now() > self._synced_at + SYNC_EVERY:
            self._synced_at, self._unsynced = self._reactor.now(), False
            self.disks.sync_later()


def apply_memory(memory: StandbyMemory, table: memoryview, data: memoryview) -> None:
    """Write pages in wire form into the standby's memory."""
    memory.apply(_runs(table), data)


def _runs(table: memoryview) -> np.ndarray:
    return np.frombuffer(table, dtype="<u8").reshape(-1, RUN_WORDS)


def _deltas(parts: CheckpointParts) -> Deltas | None:
    return Deltas.read(parts.deltas) if len(parts.deltas) else None
