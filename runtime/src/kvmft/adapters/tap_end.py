"""QEMU's own end of a tap, used in its place while its VM does not run: what lies there goes, and the network is told.

A frame that is written there comes out of the interface as if the guest had sent it, whatever the interface is plugged
into. So bridges and switches learn that the guest's address is here now, and packets for it come and wait in the tap
until the VM reads them.
"""

from __future__ import annotations

import fcntl
import os
import struct

from kvmft.adapters.inject import fetch_fd
from kvmft.adapters.linux import IFF_VNET_HDR, TUNGETIFF, TUNGETVNETHDRSZ
from kvmft.adapters.taps import interface_of
from kvmft.errors import KvmftError

QUEUE = 10_000
"""So many packets are thrown away at most, more than a tap keeps: those that come meanwhile must not hold up its caller."""
ANNOUNCEMENT = 60
"""Bytes of the frame: the least that Ethernet has, without its check sum."""


def announcement(address: bytes) -> bytes:
    """A reverse ARP request for its own sender's `address` (RFC 903), as QEMU sends it when a VM has moved (net/announce.c)."""
    header = b"\xff" * 6 + address + struct.pack(">HHHBBH", 0x8035, 1, 0x0800, 6, 4, 3)
    return (header + (address + bytes(4)) * 2).ljust(ANNOUNCEMENT, b"\0")


class TapEnd:
    """The end that process `pid` holds of the tap `interface`. KvmftError or OSError when there is none to be had."""

    def __init__(self, pid: int, interface: str) -> None:
        self._fd = fetch_fd(pid, _descriptor(pid, interface))
        try:
            flags = struct.unpack_from("H", fcntl.ioctl(self._fd, TUNGETIFF, bytes(40)), 16)[0]
            header = struct.unpack("i", fcntl.ioctl(self._fd, TUNGETVNETHDRSZ, bytes(4)))[0]
        except OSError:
            os.close(self._fd)
            raise
        self._header = bytes(header if flags & IFF_VNET_HDR else 0)

    def clear(self) -> int:
        """Throw away the packets that lie here, which nobody read; their number."""
        for count in range(QUEUE):
            try:
                os.read(self._fd, ANNOUNCEMENT)  # one packet, of which the rest is dropped
            except BlockingIOError:
                return count
        return QUEUE

    def announce(self, address: bytes) -> None:
        """Tell the network that `address` is here."""
        os.write(self._fd, self._header + announcement(address))

    def close(self) -> None:
        """Let go; QEMU's own descriptor is not touched."""
        os.close(self._fd)


def _descriptor(pid: int, interface: str) -> int:
    """The descriptor of process `pid` that is its end of `interface`, or its first one."""
    for name in sorted(os.listdir(f"/proc/{pid}/fdinfo"), key=int):
        if interface_of(pid, name) == interface:
            return int(name)
    raise KvmftError(
        "tap_end_missing",
        f"QEMU (process {pid}) has no descriptor of {interface}.",
        "Its packets are read by something else, such as vhost; the VM announces itself once it runs.",
    )
