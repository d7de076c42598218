"""How long a guest takes to answer this host, without anything in the guest made for it.

An answer of a protected guest leaves its host only after the commit of its epoch, so either way shows what a
client waits for, but for the network between client and host and for the guest's own work on a request:
the echo and the handshake are answered by the guest's kernel. Where there is no service at the TCP port the
guest's refusal is an answer just as well.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from kvmft.errors import KvmftError

PAUSE = 0.1
"""Seconds from one question to the next, at least: a guest that is asked all the time has other epochs."""
PATIENCE = 5.0
ECHO, ECHO_REPLY = 8, 0
"""ICMP types (RFC 792)."""


def parse(where: str) -> tuple[str, int | None]:
    """`ADDRESS` or `ADDRESS:PORT` as an IPv4 address and a port; KvmftError when it is neither."""
    address, colon, port = where.partition(":")
    try:
        socket.inet_pton(socket.AF_INET, address)
        number = int(port) if colon else None
        if number is not None and not 0 < number < 65536:
            raise ValueError(port)
    except (OSError, ValueError):
        raise KvmftError("ping_address", f"--ping {where} is no IPv4 address, or has no usable port.",
                         "Give it as 192.0.2.10 or 192.0.2.10:80.") from None  # fmt: skip
    return address, number


def ping(address: str, port: int | None, seconds: float) -> dict[str, Any]:
    """Ask by TCP connect, or by ICMP echo where `port` is None, for so long.

    `ms` is how long each answer took, `unanswered` how many questions there was no answer to.
    """
    if port is None:
        return {"kind": "ICMP echo", "address": address, **_icmp(address, seconds)}
    return {"kind": "TCP connect", "address": f"{address}:{port}", **_repeat(lambda: _connect(address, port), seconds)}


def _repeat(once: Callable[[], bool], seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {"ms": [], "unanswered": 0}
    until = time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        if once():
            found["ms"].append(round((time.monotonic() - begun) * 1000, 4))
        else:
            found["unanswered"] += 1
        if time.monotonic() + PAUSE >= until:
            return found
        time.sleep(max(0.0, begun + PAUSE - time.monotonic()))


def _connect(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), PATIENCE):
            return True
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    except OSError as error:
        if error.errno in (errno.EHOSTUNREACH, errno.ETIMEDOUT):
            return False
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: OSError) -> KvmftError:
    return KvmftError("ping_unreachable", f"{address} cannot be asked from here: {error}.",
                      "Give an address of the guest that this host has a way to, or leave --ping out.")  # fmt: skip


def _icmp(address: str, seconds: float) -> dict[str, Any]:
    number = 0
    with _icmp_socket() as sock:

        def once() -> bool:
            nonlocal number
            number = number + 1 & 0xFFFF
            return _echo(sock, address, number)

        return _repeat(once, seconds)


def _icmp_socket() -> socket.socket:
    """A raw one (root), or else the kind that net.ipv4.ping_group_range opens to others."""
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except PermissionError:
        pass
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    except PermissionError:
        raise KvmftError("ping_not_permitted", "This user may not send ICMP echoes.",
                         "Run it as root, or give --ping ADDRESS:PORT.") from None  # fmt: skip


def _echo(sock: socket.socket, address: str, number: int) -> bool:
    """Send one echo and wait for its reply; what else arrives is passed over."""
    mark = struct.pack("!HQ", number, os.getpid())  # the kernel may replace the identifier, not this
    packet = struct.pack("!BBHHH", ECHO, 0, 0, os.getpid() & 0xFFFF, number) + mark
    packet = packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:]
    try:
        sock.sendto(packet, (address, 0))
    except OSError as error:
        raise _unreachable(address, error) from error
    until = time.monotonic() + PATIENCE
    while (left := until - time.monotonic()) > 0:
        if not select.select([sock], [], [], left)[0]:
            return False
        data, (sender, *__) = sock.recvfrom(2048)
        if sock.type == socket.SOCK_RAW:
            data = data[(data[0] & 15) * 4 :]  # the IP header's length (RFC 791)
        if sender == address and data[0] == ECHO_REPLY and data[8:] == mark:
            return True
    return False


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
