"""The primary's input watch on the VM's own NICs, from the first epoch or from a switchover on."""

from __future__ import annotations

from collections.abc import Callable

from kvmft.adapters.reactor import Reactor
from kvmft.adapters.taps import tap_of
from kvmft.worker.config import WorkerConfig
from kvmft.worker.guest_input import InputWatch
from kvmft.worker.link import AgentLink
from kvmft.worker.qemu import Qemu


class WatchedInput:
    """At most one InputWatch. `send` puts bytes on the FT log."""

    def __init__(
        self,
        reactor: Reactor,
        config: WorkerConfig,
        link: AgentLink,
        qemu: Qemu,
        send: Callable[[bytes], None],
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._link = link
        self._qemu = qemu
        self._send = send
        self._watch: InputWatch | None = None

    def begin(self) -> None:
        """Tell the secondary of packets for the guest, on all its NICs whose packets can be seen."""
        if self._watch is not None:
            return
        self._watch = watch = InputWatch(self._reactor, self._send)
        info = self._qemu.hmp("info network") if self._config.nics else ""
        for index, nic in enumerate(self._config.nics):
            interface = tap_of(info, self._config.qemu_pid, nic)
            if interface is None:
                continue
            try:
                watch.add(index, interface)
            except OSError as error:
                reason = f"input of {interface} is not carried over; clients send again: {error}"
                self._link.event("input_not_carried", reason)

    def cut(self, epoch: int) -> None:
        """The VM is about to be stopped for checkpoint `epoch`."""
        if self._watch is not None:
            self._watch.cut(epoch)

    def hand_over(self) -> None:
        """The VM stands still and does not run here any more."""
        if self._watch is not None:
            self._watch.hand_over()

    def forget(self) -> None:
        """Watch no more."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
