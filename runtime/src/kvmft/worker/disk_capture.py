"""The disks' writes on their way to the standby: from the mirrors, over one log, into epochs or at once."""

from __future__ import annotations

from collections.abc import Callable

from kvmft.adapters.digests import DigestTable
from kvmft.adapters.nbd import NbdServer
from kvmft.adapters.reactor import Reactor
from kvmft.core.wire import FrameType, encode_header
from kvmft.worker.config import WorkerConfig
from kvmft.worker.disklog import DiskLog, DiskSink
from kvmft.worker.peerlink import PeerLink
from kvmft.worker.resync import ResyncFilter

FLUSH_SIZE = 1 << 20
"""Bytes of writes that go to the standby as one frame before the first checkpoint."""
QUEUE_HIGH = 16 << 20
"""Bytes waiting for the FT log above which the disk capture stops answering."""
DISK_LOG_URGENT = 32 << 20
"""Bytes of one epoch's writes above which the next checkpoint is not waited for."""


class DiskCapture:
    """An NBD server for each disk, and one log of all their writes. `taken` tells the last checkpoint's
    number, 0 before the first; `on_urgent` is called when an epoch has many writes."""

    def __init__(
        self,
        reactor: Reactor,
        config: WorkerConfig,
        peer: PeerLink,
        taken: Callable[[], int],
        on_urgent: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._peer = peer
        self._taken = taken
        self._on_urgent = on_urgent
        self.log = DiskLog()
        self.servers: list[NbdServer] = []
        self.filters: list[ResyncFilter] = []

    def serve(
        self,
        index: int,
        path: str,
        owner: tuple[int, int],
        known: DigestTable,
        lost: Callable[[str], None],
    ) -> None:
        """Take the writes of disk number `index` at the socket `path`; what the standby has of it by
        `known` is left out. `lost` is told why its writes no longer come."""
        disk = self._config.disks[index]
        sink = ResyncFilter(
            DiskSink(self.log, index, self._disk_grew),
            known,
            disk.size,
            self._config.session.encode(),
        )
        self.filters.append(sink)
        self.servers.append(NbdServer(self._reactor, path, disk.size, sink, owner, lost))

    def _disk_grew(self) -> None:
        if self._taken() == 0:
            if self.log.size >= FLUSH_SIZE:
                self.flush()
        elif self.log.size > DISK_LOG_URGENT:
            self._on_urgent()
        if self._peer.queued > QUEUE_HIGH:
            for server in self.servers:
                server.hold()
            self._reactor.call_later(0.002, self._maybe_release_disks)

    def _maybe_release_disks(self) -> None:
        if self._peer.queued > QUEUE_HIGH // 2:
            self._reactor.call_later(0.002, self._maybe_release_disks)
            return
        self.release()

    def flush(self) -> None:
        """Before the first checkpoint, writes go to the replica as they come; it is not startable
        then, so nothing can be mixed."""
        if not self.log:
            return
        table, data = self.log.cut()
        rows = len(table) // 32
        head = encode_header(FrameType.DISK, 0, 8 + len(table) + len(data))
        self._peer.send(head, rows.to_bytes(8, "little"), table, data)

    def settle(self) -> None:
        """The mirrors have ended their copy: from now on every write is the guest's."""
        for each in self.filters:
            each.settle()
        self.flush()

    def release(self) -> None:
        """Answer the disks again, whatever is queued."""
        for server in self.servers:
            server.release()

    def close(self) -> None:
        """Take no more writes."""
        for server in self.servers:
            server.close()
        self.servers.clear()

    def figures(self) -> dict[str, int]:
        """Bytes that the sync sent, and bytes that the secondary had already."""
        return {
            "disk_bytes": sum(each.sent for each in self.filters),
            "disk_left_out_bytes": sum(each.left_out for each in self.filters),
        }
