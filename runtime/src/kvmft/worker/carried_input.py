"""Packets for the guest that came to the other side, put in here once the VM runs here."""

from __future__ import annotations

from collections.abc import Callable

from kvmft.adapters.reactor import Reactor
from kvmft.adapters.tap_end import TapEnd
from kvmft.adapters.taps import GuestInput, address_of, tap_of
from kvmft.errors import KvmftError
from kvmft.worker.config import WorkerConfig
from kvmft.worker.guest_input import Replay
from kvmft.worker.link import AgentLink
from kvmft.worker.standby_qemu import StandbyQemu

INPUT_BOUND = 4 << 20
"""Bytes of carried input that wait for the VM; more is dropped, as a network may."""

CLEAR_EVERY = 1.0
"""Seconds from one clearing of the taps to the next, at least."""


class CarriedInput:
    """What no commit covers (`replay`), what came to the stopped primary during a switchover, and what waits in the taps."""

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
        self._interfaces: list[tuple[str | None, bytes | None]] = []
        self._told: set[str] = set()
        self._clear_from = 0.0
        self._runs = False

    def look(self) -> None:
        """Find the tap of each NIC and the NIC's Ethernet address, as far as there are such: early, not when the VM shall run."""
        nics, pid = self._config.nics, self._config.qemu_pid
        info = self._qemu.hmp("info network") if nics else ""
        self._interfaces = [(tap_of(info, pid, nic), address_of(info, nic)) for nic in nics]

    # -- before the VM runs -------------------------------------------------------------------------

    def clear(self, now: float) -> None:
        """The primary was heard at `now`: what lies in the taps has reached the VM there. Thrown away now and then, it leaves room
        for what is put in or drawn here. What comes after the primary's last word is kept for the VM: a neighbour may ask for it."""
        if now >= self._clear_from:
            self._clear_from = now + CLEAR_EVERY
            self._at_ends(lambda end, address: end.clear())

    def draw(self) -> None:
        """The VM is dead elsewhere: have the network bring its packets here, where they wait until it runs."""
        drawn = self._at_ends(lambda end, address: end.announce(address) if address else None)
        if drawn:
            self._link.event("input_drawn", "packets for the VM come here from now on and wait for it", interfaces=drawn)

    def _at_ends(self, do: Callable[[TapEnd, bytes | None], object]) -> list[str]:
        """`do` it at QEMU's end of each tap; those at which it was done. Elsewhere the VM runs as well, and its clients wait
        longer: that is told once."""
        done = []
        for name, address in self._interfaces:
            if name is None:
                continue
            try:
                end = TapEnd(self._config.qemu_pid, name)
                try:
                    do(end, address)
                finally:
                    end.close()
                done.append(name)
            except (KvmftError, OSError) as error:
                if name not in self._told:
                    self._told.add(name)
                    self._link.event("input_not_drawn", f"{name} is not cleared, and draws no packets: {error}")
        return done

    # -- while it runs ------------------------------------------------------------------------------

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
            name = self._interfaces[index][0] if index < len(self._interfaces) else None
            try:
                self._taps[index] = GuestInput(self._reactor, name) if name else None
            except OSError as error:
                self._link.event("input_not_carried", f"input of {name} is dropped: {error}")
                self._taps[index] = None
        return self._taps[index]
