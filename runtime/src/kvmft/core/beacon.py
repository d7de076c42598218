"""A beacon: the datagram with which a worker shows on the management network that it lives.

It carries nothing but that. Whoever can forge one can hide a loss for as long as the FT log's own
time-out at most, and whoever can drop one gains nothing while the FT log lives; so it is
authenticated and not encrypted. Each receiver makes a key of its own and tells it on the FT log,
which is: a beacon that was recorded elsewhere, earlier, or in the other direction is not for it.

Layout, big-endian: version (1 byte), side (1), session (16), sequence number (8), and the first 16
bytes of HMAC-SHA256 (RFC 2104, truncated as section 5 there allows) of all before.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from enum import IntEnum
from typing import Any

from kvmft.core.wire import WireError

VERSION = 1
KEY_BYTES = 32
SESSION_BYTES = 16
MAC_BYTES = 16
BODY = struct.Struct(f">BB{SESSION_BYTES}sQ")
SIZE = BODY.size + MAC_BYTES
"""Bytes of a beacon: 42."""


class Side(IntEnum):
    """Who sends; the number on the wire."""

    PRIMARY = 1
    SECONDARY = 2

    @property
    def other(self) -> Side:
        """The side at the other end."""
        return Side.SECONDARY if self is Side.PRIMARY else Side.PRIMARY


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, body, hashlib.sha256).digest()[:MAC_BYTES]


def session_bytes(session: str) -> bytes:
    """The 16 bytes that stand for a session's name on the wire, whatever its form."""
    return hashlib.sha256(session.encode()).digest()[:SESSION_BYTES]


class Sender:
    """Makes beacons of `side` for a receiver whose key is `key`, numbered from 1."""

    def __init__(self, key: bytes, session: str, side: Side) -> None:
        self._key = key
        self._session = session_bytes(session)
        self._side = side
        self._number = 0

    def next(self) -> bytes:
        """The next beacon."""
        self._number += 1
        body = BODY.pack(VERSION, self._side, self._session, self._number)
        return body + _mac(self._key, body)


class Receiver:
    """Knows the beacons of `side` that are meant for the holder of `key`."""

    def __init__(self, key: bytes, session: str, side: Side) -> None:
        self._key = key
        self._session = session_bytes(session)
        self._side = side
        self._last = 0

    def accept(self, data: bytes) -> bool:
        """True for a beacon that is genuine and newer than all before; anything else is nothing."""
        if len(data) != SIZE:
            return False
        body, mac = data[: BODY.size], data[BODY.size :]
        version, side, session, number = BODY.unpack(body)
        if (version, side, session) != (VERSION, self._side, self._session):
            return False
        if number <= self._last or not hmac.compare_digest(mac, _mac(self._key, body)):
            return False
        self._last = number
        return True


def offer(port: int, key: bytes) -> dict[str, Any]:
    """What HELLO and WELCOME say of where beacons are awaited, under `beacons`."""
    return {"version": VERSION, "port": port, "key": key.hex()}


def read_offer(value: Any) -> tuple[int, bytes] | None:
    """Port and key of the peer's offer; None where it has none, or one of another version. WireError
    when it is none of these."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise WireError("The peer's offer of beacons is no JSON object.")
    if value.get("version") != VERSION:
        return None
    port, key = value.get("port"), value.get("key")
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise WireError(f"The peer awaits beacons at port {port!r}.")
    try:
        raw = bytes.fromhex(key) if isinstance(key, str) else b""
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise WireError(f"The peer's key for beacons is not {KEY_BYTES} bytes in hex digits.")
    return port, raw
