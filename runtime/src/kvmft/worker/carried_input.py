"""Packets for the guest that came to the other side, put in here once the VM runs here."""

from __future__ import annotations

from kvmft.adapters.reactor import Reactor
from kvmft.adapters.taps import GuestInput, tap_of
from kvmft.worker.config import WorkerConfig
from kvmft.worker.guest_input import Replay
from kvmft.worker.link import AgentLink
from kvmft.worker.standby_qemu import StandbyQemu

INPUT_BOUND = 4 << 20
"""Bytes of carried input that wait for the VM; more is dropped, as a network may."""


class CarriedInput:
    """What no commit covers (`replay`), and what came to the stopped primary during a switchover."""

    def __init__(
        self, reactor: Reactor, config: WorkerConfig, link: AgentLink, qemu: StandbyQemu
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._link = link
        self._qemu = qemu
        self.replay = Replay()
        self._input: list[tuple[int, bytes]] = []
        self._input_bytes = 0
        self._taps: dict[int, GuestInput | None] = {}
        self._runs = False

    def carry_in(self, index: int, packet: bytes) -> None:
        """A packet that reached the stopped primary: for the VM once it runs here."""
        if self._runs:
            self._put(index, packet)
        elif self._input_bytes + len(packet) <= INPUT_BOUND:
            self._input.append((index, packet))
            self._input_bytes += len(packet)

    def vm_runs(self) -> tuple[int, int]:
        """The VM runs here: put in what waits, and from now on what comes; the numbers of packets
        that were carried over and replayed."""
        self._runs = True
        replayed = sum(self._put(index, packet) for index, packet in self.replay.take())
        carried = sum(self._put(index, packet) for index, packet in self._input)
        self._input.clear()
        return carried, replayed

    def _put(self, index: int, packet: bytes) -> bool:
        tap = self._tap(index)
        return tap is not None and tap.put(packet)

    def _tap(self, index: int) -> GuestInput | None:
        if index not in self._taps:
            nics, pid = self._config.nics, self._config.qemu_pid
            name = tap_of(self._qemu.hmp, pid, nics[index]) if index < len(nics) else None
            try:
                self._taps[index] = GuestInput(self._reactor, name) if name else None
            except OSError as error:
                self._link.event("input_not_carried", f"input of {name} is dropped: {error}")
                self._taps[index] = None
        return self._taps[index]
