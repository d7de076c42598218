"""The VM's network output, held until the commit of its epoch: the redirectors and what waits in them (I2)."""

from __future__ import annotations

import os
from collections.abc import Callable

from kvmft.adapters.reactor import Reactor
from kvmft.adapters.redirector import RedirectorPort, Segment
from kvmft.errors import KvmftError
from kvmft.worker import qemu_setup
from kvmft.worker.config import WorkerConfig
from kvmft.worker.link import AgentLink
from kvmft.worker.mirrors import ASK_EVERY
from kvmft.worker.qemu import Qemu

RELEASE_BOUND = 2.0


class HeldOutput:
    """One redirector for each NIC. `on_output` is called when the guest sent something."""

    def __init__(
        self,
        reactor: Reactor,
        config: WorkerConfig,
        link: AgentLink,
        qemu: Qemu,
        on_output: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._link = link
        self._qemu = qemu
        self._on_output = on_output
        self.ports: list[RedirectorPort] = []
        self.held: dict[int, list[tuple[RedirectorPort, Segment]]] = {}
        self._first_release = True

    @property
    def held_bytes(self) -> int:
        """Bytes of output that wait."""
        return sum(port.held_bytes for port in self.ports)

    def install(self) -> None:
        """From now on output is held; KvmftError when QEMU does not connect to us."""
        for nic in self._config.nics:
            out, back = (
                os.path.join(self._qemu.directory, f"kvmft-{nic}-{way}.sock") for way in ("out", "in")
            )
            port = RedirectorPort(self._reactor, out, back, self._on_output, self._qemu.owner)
            self.ports.append(port)
            qemu_setup.install_redirector(self._qemu.monitor, nic, self._qemu.directory)
        if not (
            self._reactor.run_until(lambda: all(port.connected for port in self.ports), 5)
            and self._connected_for_qemu(5)
        ):
            raise KvmftError(
                "redirector_not_connected",
                "QEMU did not connect to the sockets that capture its network output.",
                f"Check that QEMU's user may enter {self._qemu.directory}.",
            )

    def _connected_for_qemu(self, seconds: float) -> bool:
        monitor = self._qemu.monitor
        return self._reactor.run_until(
            lambda: qemu_setup.redirectors_connected(monitor, self._config.nics), seconds, ASK_EVERY
        )

    def cut(self, epoch: int) -> None:
        """What was sent since the last cut waits for the commit of `epoch`."""
        segments = []
        for port in self.ports:
            port.drain()
            segments.append((port, port.cut()))
        self.held[epoch] = segments

    def release(self, until: int) -> None:
        """Let out what waits for the commit of epoch `until` or of one before."""
        for epoch in sorted(epoch for epoch in self.held if epoch <= until):
            for port, segment in self.held.pop(epoch):
                port.release(segment)
                if self._first_release and segment.packets:
                    self._first_release = False
                    self._link.event("released", "the first output that waited for a commit went out",
                                     epoch=epoch, packets=segment.packets)  # fmt: skip

    def release_all(self, taken: int) -> tuple[int, int]:
        """With the VM stopped, let out everything, also what came after epoch `taken`, and wait until
        QEMU has read it; the number of packets and of bytes that went out."""
        packets = size = 0
        for port in self.ports:
            port.drain()
            self.held.setdefault(taken + 1, []).append((port, port.cut()))
        for epoch in sorted(self.held):
            for port, segment in self.held[epoch]:
                packets, size = packets + segment.packets, size + len(segment.data)
                port.release(segment)
        self.held.clear()
        self._reactor.run_until(lambda: all(port.idle for port in self.ports), RELEASE_BOUND)
        return packets, size

    def remove(self) -> None:
        """Take the redirectors out of QEMU; those that a worker before us left as well."""
        qemu_setup.remove_redirectors(self._qemu.monitor, self._config.nics, self._qemu.directory)

    def close(self) -> None:
        """Close our ends."""
        for port in self.ports:
            port.close()
        self.ports.clear()

    def throw_away(self) -> int:
        """Nothing that waits may go out any more; the number of its packets."""
        packets = sum(segment.packets for parts in self.held.values() for __, segment in parts)
        self.held.clear()
        return packets
