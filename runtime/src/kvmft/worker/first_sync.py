"""The first sync: all memory that differs is sent while the mirrors copy the disks, until only rounds are left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvmft.adapters.memory import GuestMemory
from kvmft.adapters.reactor import Reactor
from kvmft.core.wire import FrameType, encode_header
from kvmft.worker import qemu_setup
from kvmft.worker.config import WorkerConfig
from kvmft.worker.disk_capture import DiskCapture
from kvmft.worker.mirrors import ASK_EVERY, Mirrors
from kvmft.worker.peerlink import PeerLink
from kvmft.worker.qemu import Qemu
from kvmft.worker.resync import Known

BULK_CHUNK = 1 << 20


class FirstSync:
    """Fills the standby. `under_way` tells whether the sync is still wanted, `on_done` is called
    when all memory was sent once, and every mirror has copied its disk and rests."""

    def __init__(
        self,
        reactor: Reactor,
        config: WorkerConfig,
        peer: PeerLink,
        qemu: Qemu,
        mirrors: Mirrors,
        capture: DiskCapture,
        under_way: Callable[[], bool],
        on_done: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._peer = peer
        self._qemu = qemu
        self._mirrors = mirrors
        self._capture = capture
        self._under_way = under_way
        self._on_done = on_done
        self.known: Known | None = None
        """What the secondary has already; there once this side's memory is known."""
        self.percent = 0.0
        """How much of the sync is done; 100 when the VM is protected."""
        self.sent_memory = 0
        self._bulk_total = self._bulk_sent = 0
        self._bulk_done = False

    def expect(self, memory: GuestMemory) -> None:
        """Make room for what the secondary will say that it has of `memory` and of the disks."""
        self.known = Known(
            [block.size for block in memory.blocks],
            [disk.size for disk in self._config.disks],
            self._config.session.encode(),
        )

    def start(self, memory: GuestMemory) -> None:
        """Begin the first copy of all populated memory, beside the mirrors that were started."""
        assert self.known is not None
        ranges = self.known.to_copy(memory)
        self._bulk_total = int((ranges[:, 1] - ranges[:, 0]).sum())

        def sent() -> None:
            self._bulk_done = True

        self._send_memory(memory, ranges, True, sent)
        self._poll_mirrors()

    def send_round(self, memory: GuestMemory, ranges: np.ndarray, then: Callable[[], None]) -> None:
        """Send what was written since the last round: `ranges` (n, 2), and the disks' writes."""
        self._capture.flush()
        self._send_memory(memory, ranges, False, then)

    def _poll_mirrors(self) -> None:
        if not self._under_way():
            return
        self._capture.flush()
        found = qemu_setup.jobs(self._qemu.monitor)
        names = self._mirrors.names
        if not self._mirrors.go_on(found):
            return
        length = sum(int(found[name]["len"]) for name in names) + self._bulk_total
        done = sum(int(found[name]["offset"]) for name in names) + self._bulk_sent
        self.percent = round(min(99.0, 100.0 * done / max(1, length)), 1)
        if self._bulk_done and all(found[name]["ready"] for name in names):
            if not qemu_setup.at_rest(found):
                qemu_setup.rest(self._qemu.monitor, names)
                self._reactor.call_later(ASK_EVERY, self._poll_mirrors)
                return
            self._capture.settle()
            self._on_done()
            return
        self._reactor.call_later(0.05, self._poll_mirrors)

    def _send_memory(
        self, memory: GuestMemory, ranges: np.ndarray, fresh: bool, then: Callable[[], None]
    ) -> None:
        """Send `ranges` (n, 2) as MEMORY frames, BULK_CHUNK at a time, while the VM runs.

        `fresh`: nothing was sent of them yet, so what the standby has alike is left out.
        """
        assert self.known is not None
        known = self.known
        pieces = iter(_chunks(ranges, BULK_CHUNK))

        def pump() -> None:
            if not self._peer.connected:
                return
            for piece in pieces:
                size = int((piece[:, 1] - piece[:, 0]).sum())
                buffer = bytearray(size)
                memory.read(piece, memoryview(buffer))
                table, data = memory.to_table(piece), memoryview(buffer)
                if fresh:
                    table, data = known.differing(table, data)
                    self._bulk_sent += size
                if len(table):
                    rows = np.ascontiguousarray(table, dtype="<u8").tobytes()
                    head = encode_header(FrameType.MEMORY, 0, 8 + len(rows) + len(data))
                    self._peer.send(head, len(table).to_bytes(8, "little"), rows, data)
                    self.sent_memory += len(data)
                if not self._peer.connected:
                    return
                bound = self._config.sync_bandwidth
                if bound and len(data):
                    self._reactor.call_later(len(data) / bound, pump)
                elif self._peer.queued:
                    self._peer.when_drained(pump)
                else:
                    self._reactor.call_later(0, pump)
                return
            then()

        pump()

    def figures(self) -> dict[str, int]:
        """Bytes that the sync sent, and bytes that the secondary had already."""
        return {
            "memory_bytes": self.sent_memory,
            "memory_left_out_bytes": 4096 * (self.known.pages_left_out if self.known else 0),
            **self._capture.figures(),
        }


def _chunks(ranges: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut `ranges` (n, 2) into groups of at most `size` bytes each, splitting long ranges."""
    groups: list[list[tuple[int, int]]] = [[]]
    room = size
    for start, end in ranges.tolist():
        while start < end:
            take = min(room, end - start)
            groups[-1].append((start, start + take))
            start += take
            room -= take
            if room == 0:
                groups.append([])
                room = size
    return [np.array(group, dtype=np.uint64) for group in groups if group]
