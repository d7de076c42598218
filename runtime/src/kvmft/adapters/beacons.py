"""Beacons over UDP on the management network, driven by the reactor."""

from __future__ import annotations

import socket
from collections.abc import Callable

from kvmft.adapters.reactor import READ, Reactor
from kvmft.errors import KvmftError

READS_PER_TURN = 64
"""So many datagrams are read in one turn of the reactor, whoever sends them."""
ROOM = 256
"""Bytes of a datagram that are looked at; a longer one is no beacon."""


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class BeaconSocket:
    """One UDP socket of this host's management address. `on_datagram(data)` gets what comes from the
    peer's address and port alone: the kernel leaves out the rest."""

    def __init__(
        self,
        reactor: Reactor,
        address: str,
        ports: tuple[int, int],
        on_datagram: Callable[[bytes], None],
    ) -> None:
        """Bound to the first free port of the inclusive range; KvmftError `beacons_no_port`."""
        self._reactor = reactor
        self._on_datagram = on_datagram
        self._sock = _bind(address, ports)
        self._connected = False

    @property
    def port(self) -> int:
        """Where the peer's beacons are awaited."""
        return int(self._sock.getsockname()[1])

    def connect(self, address: str, port: int) -> None:
        """The peer's beacons come from there, and ours go there; KvmftError `management_network_down`."""
        try:
            self._sock.connect((address, port))
        except OSError as error:
            raise KvmftError(
                "management_network_down",
                f"There is no way to {address} for beacons: {error}.",
                "Check the management address of the other host in the inventory, and the routes here.",
            ) from error
        self._connected = True
        self._reactor.add(self._sock.fileno(), READ, self._ready)

    def send(self, data: bytes) -> None:
        """Send one datagram, or not: what does not go out at once is as good as lost on the way."""
        if self._connected:
            try:
                self._sock.send(data)
            except OSError:
                pass  # no route, a full queue, or the answer to an earlier one that nobody awaited

    def close(self) -> None:
        """Give the port back. Idempotent."""
        self._reactor.remove(self._sock.fileno())
        self._sock.close()

    def _ready(self, _mask: int) -> None:
        for __ in range(READS_PER_TURN):
            try:
                data = self._sock.recv(ROOM)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error of one that was sent; the next read goes on behind it
            self._on_datagram(data)


def _bind(address: str, ports: tuple[int, int]) -> socket.socket:
    last: OSError | None = None
    for port in range(ports[0], ports[1] + 1):
        sock = socket.socket(_family(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind((address, port))
        except OSError as error:
            sock.close()
            last = error
            continue
        return sock
    raise KvmftError(
        "beacons_no_port",
        f"No UDP port of {ports[0]}-{ports[1]} on {address} can be bound: {last}.",
        "Check that the management interface has this address, and widen ft_log_ports if all are in use.",
    )
