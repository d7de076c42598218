"""Packets on their way to the guest, told to the secondary; and what the secondary does with them.

While the pair lives, each packet is told with the epoch in which it came (REPLAY frames). What came after the last
commit is known to nobody once the primary dies: put in again by the secondary, it saves the clients from waiting for
their own retransmission, 200 ms at least. During a planned switchover the packets that reach the stopped VM are
carried over (INPUT frames). A network may always duplicate or drop a packet, so neither a packet too many nor one too
few does harm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from kvmft.adapters.reactor import Reactor
from kvmft.adapters.taps import GuestInput
from kvmft.core.wire import FrameType, WireError, encode

EPOCH_PACKETS, EPOCH_BYTES = 256, 256 << 10
"""More is not told in one epoch: a stream that fills them is sent again by its sender anyway."""
KEPT_BYTES = 4 << 20


class InputWatch:
    """The primary's side: packet sockets on the VM's taps. `send` puts bytes on the FT log."""

    def __init__(self, reactor: Reactor, send: Callable[[bytes], None]) -> None:
        self._reactor = reactor
        self._send = send
        self._sources: list[GuestInput] = []
        self._epoch = 1
        self._packets, self._bytes = EPOCH_PACKETS, EPOCH_BYTES
        self._handing_over = False

    def add(self, nic: int, interface: str) -> None:
        """Watch the host's `interface` of the VM's NIC number `nic`. OSError when it cannot be."""
        source = GuestInput(self._reactor, interface)
        try:
            source.watch(partial(self._came, nic))
        except OSError:
            source.close()
            raise
        self._sources.append(source)

    def cut(self, epoch: int) -> None:
        """The VM is about to be stopped for checkpoint `epoch`: whether it read what nobody read here yet, and will read what
        comes until it stands still, is not known. So that belongs to the next epoch, and the VM may get it twice."""
        self._epoch = epoch + 1
        self._packets, self._bytes = EPOCH_PACKETS, EPOCH_BYTES
        for source in self._sources:
            source.go_on()

    def hand_over(self) -> None:
        """The VM does not run here any more: from now on every packet is carried over."""
        self._handing_over = True
        for source in self._sources:
            source.go_on()

    def _came(self, nic: int, packet: bytes) -> None:
        if self._handing_over:
            self._send(encode(FrameType.INPUT, nic, packet))
            return
        self._packets, self._bytes = self._packets - 1, self._bytes - len(packet)
        if self._packets < 0 or self._bytes < 0:
            for source in self._sources:
                source.rest()
            return
        self._send(encode(FrameType.REPLAY, self._epoch, bytes((nic,)) + packet))

    def close(self) -> None:
        """Watch no more."""
        for source in self._sources:
            source.close()
        self._sources.clear()


class Replay:
    """The secondary's side: packets that no commit covers, in the order in which they came."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, int, bytes]] = deque()
        self._bytes = 0

    def add(self, epoch: int, body: memoryview) -> None:
        """Keep a packet of `epoch`; WireError for a frame without one. Beyond a bound the oldest go."""
        if len(body) < 2:
            raise WireError(f"A REPLAY frame has {len(body)} bytes.")
        self._kept.append((epoch, body[0], bytes(body[1:])))
        self._bytes += len(body)
        while self._bytes > KEPT_BYTES:
            self._forget()

    def committed(self, epoch: int) -> None:
        """Commit `epoch` holds what the VM made of its packets, and of those before."""
        while self._kept and self._kept[0][0] <= epoch:
            self._forget()

    def _forget(self) -> None:
        __, __, packet = self._kept.popleft()
        self._bytes -= len(packet) + 1

    def take(self) -> Iterator[tuple[int, bytes]]:
        """The number of the NIC and the packet, for each that is left; none is kept."""
        while self._kept:
            __, nic, packet = self._kept.popleft()
            yield nic, packet
        self._bytes = 0
