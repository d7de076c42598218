"""The host's side of a VM's network interface: packets on their way to the guest, seen and put in.

Both are of use when a VM goes on elsewhere: see `kvmft.worker.guest_input`.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable

from kvmft.adapters.reactor import READ, Reactor

ETH_P_ALL = 0x0003
"""linux/if_ether.h"""
SOL_PACKET, PACKET_VNET_HDR = 263, 15
"""linux/socket.h, linux/if_packet.h: each packet is preceded by its offload header."""
PACKET_OUTGOING = 4
"""linux/if_packet.h: the kernel hands it to the interface, here: to the guest."""
VNET_HEADER = 10
"""Bytes of struct virtio_net_hdr."""
MAX_PACKET = (64 << 10) + 64
BURST = 256
BACKLOG = 4096
"""Packets that wait in a socket at most: its buffer is counted in whole pages."""


def tap_of(info: str, pid: int, nic: str) -> str | None:
    """The host's interface behind the NIC with libvirt alias `nic` of QEMU's process `pid`, whose monitor answers `info`
    to `info network`; None when it is no tap."""
    found = re.search(rf"\bhost{re.escape(nic)}: index=\d+,type=tap,(.*)", info)
    if found is None:
        return None
    name = re.search(r"ifname=([^,\s]+)", found[1])
    if name is not None:
        return name[1]
    descriptor = re.search(r"\bfd=(\d+)", found[1])
    if descriptor is None:
        return None
    return interface_of(pid, descriptor[1])


def interface_of(pid: int, descriptor: str) -> str | None:
    """The tap that `descriptor` of process `pid` is an end of; None when it is none, or closed by now."""
    try:
        with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii") as file:
            line = re.search(r"^iff:\s*(\S+)", file.read(), re.MULTILINE)
    except OSError:
        return None
    return line[1] if line else None


def address_of(info: str, nic: str) -> bytes | None:
    """The six bytes of the Ethernet address of the NIC with libvirt alias `nic`, in QEMU's answer to `info network`; None
    when it is not there."""
    found = re.search(rf"^\W*{re.escape(nic)}: .*\bmacaddr=([0-9a-f:]{{17}})", info, re.MULTILINE)
    return bytes.fromhex(found[1].replace(":", "")) if found else None


class GuestInput:
    """A packet socket on the tap `interface`. Packets are bytes, offload header first."""

    def __init__(self, reactor: Reactor, interface: str) -> None:
        self._reactor = reactor
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._sock.setblocking(False)
        self._sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, struct.pack("i", 1))
        self._interface = interface
        self._on_packet: Callable[[bytes], None] | None = None
        self._resting = False

    def watch(self, on_packet: Callable[[bytes], None]) -> None:
        """Call `on_packet` with each packet that goes to the guest from now on."""
        self._on_packet = on_packet
        self._sock.bind((self._interface, ETH_P_ALL))
        self._reactor.add(self._sock.fileno(), READ, self._readable)

    def rest(self) -> None:
        """Look at no packet until `go_on`; those that come meanwhile are dropped."""
        if not self._resting:
            self._resting = True
            self._reactor.remove(self._sock.fileno())

    def go_on(self) -> None:
        """Look at packets again, from those on that come now."""
        if not self._resting:
            return
        try:
            for __ in range(BACKLOG):
                self._sock.recv(VNET_HEADER + 1)  # less is refused, and ends the loop too early
        except OSError:
            pass
        self._resting = False
        self._reactor.add(self._sock.fileno(), READ, self._readable)

    def _readable(self, _mask: int) -> None:
        assert self._on_packet is not None
        for __ in range(BURST):
            if self._resting:
                return
            try:
                data, address = self._sock.recvfrom(MAX_PACKET)
            except OSError:
                return  # nothing more for now; or the interface is down or gone, as with its QEMU
            if address[2] == PACKET_OUTGOING and len(data) > VNET_HEADER:
                self._on_packet(data)

    def put(self, packet: bytes) -> bool:
        """Give the guest a packet; False when its queue is full or the packet malformed (it is
        dropped, as a network may)."""
        try:
            self._sock.sendto(packet, (self._interface, 0))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        if self._sock.fileno() >= 0:
            if self._on_packet is not None and not self._resting:
                self._reactor.remove(self._sock.fileno())
            self._sock.close()
