"""The FT log's framing, without any I/O.

Every frame is a 24-byte big-endian header (magic, type, epoch, body length) and a body. The body of
a MEMORY, DISK or CHECKPOINT frame is little-endian tables of 64-bit integers (the layout numpy and
the kernel's own structures use on x86-64) followed by raw data, so that neither side copies or
parses page contents. Small frames carry JSON.

The decoder never trusts a length: each type has a bound, and what exceeds it is an error before a
byte of it is stored (I7).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from kvmft.errors import KvmftError

MAGIC = b"KFT1"
PROTOCOL_VERSION = 2
HEADER = struct.Struct(">4sB3xQQ")
CHECKPOINT_HEAD = struct.Struct("<6Q")
DELTA_HEAD = struct.Struct("<2Q")
BITMAP_BYTES = 64
"""A bit for each 8 bytes of a 4-KiB page."""
PLACE_BITS = 32
"""Of a page's place, for its number; the block's index is above."""
RUN_WORDS = 3
"""A memory run is three u64: block index, offset in the block (bytes), length (bytes)."""
WRITE_WORDS = 4
"""A disk write is four u64: disk index, operation, offset (bytes), length (bytes)."""
OP_WRITE, OP_ZERO, OP_FLUSH = 0, 1, 2
DIGEST_HEAD = struct.Struct("<4Q")
DIGEST_BYTES = 16
"""Size of one digest. Sixteen zero bytes stand for a unit that holds nothing but zeros."""
MEMORY_UNIT, DISK_UNIT = 4 << 10, 64 << 10
"""Bytes that one digest covers."""
OF_MEMORY, OF_DISK = 0, 1


class FrameType(IntEnum):
    """What a frame carries; the number on the wire."""

    HELLO = 1
    WELCOME = 2
    HEARTBEAT = 3
    MEMORY = 4
    DISK = 5
    CHECKPOINT = 6
    ACK = 7
    OFFER = 8
    OFFER_ACK = 9
    BYE = 10
    AUDIT = 11
    AUDIT_RESULT = 12
    REFUSAL = 13
    DIGESTS = 14
    HANDOVER = 15
    RELIEVED = 16
    INPUT = 17
    REPLAY = 18


KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LIMITS: dict[FrameType, int] = {
    FrameType.HELLO: 64 * KIB,
    FrameType.WELCOME: 64 * KIB,
    FrameType.HEARTBEAT: 0,
    FrameType.MEMORY: 64 * MIB,
    FrameType.DISK: 64 * MIB,
    FrameType.CHECKPOINT: 64 * GIB,
    FrameType.ACK: 0,
    FrameType.OFFER: 64 * KIB,
    FrameType.OFFER_ACK: 0,
    FrameType.BYE: 64 * KIB,
    FrameType.AUDIT: 1 * GIB,
    FrameType.AUDIT_RESULT: 64 * KIB,
    FrameType.REFUSAL: 64 * KIB,
    FrameType.DIGESTS: 1 * MIB,
    FrameType.HANDOVER: 0,
    FrameType.RELIEVED: 0,
    FrameType.INPUT: 1 * MIB,
    FrameType.REPLAY: 1 * MIB,
}
"""Largest body of each type, in bytes."""


class WireError(KvmftError):
    """The peer sent something that is not the FT log."""

    def __init__(self, message: str) -> None:
        super().__init__(
            "ft_log_malformed",
            message,
            "The connection is dropped; check that both hosts run the same kvmft version.",
        )


@dataclass(frozen=True)
class Header:
    """A decoded frame header; `length` is the body's size in bytes."""

    type: FrameType
    epoch: int
    length: int


@dataclass(frozen=True)
class Frame:
    """A whole frame. `body` is a view of the buffer that the decoder's allocator returned."""

    type: FrameType
    epoch: int
    body: memoryview

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; raises WireError when it is not one."""
        try:
            value = json.loads(bytes(self.body))
        except ValueError as error:
            raise WireError(f"The {self.type.name} frame does not hold JSON: {error}.") from error
        if not isinstance(value, dict):
            raise WireError(f"The {self.type.name} frame does not hold a JSON object.")
        return value


def encode_header(kind: FrameType, epoch: int, length: int) -> bytes:
    """The 24 header bytes of a frame whose body is `length` bytes."""
    return HEADER.pack(MAGIC, kind, epoch, length)


def encode(kind: FrameType, epoch: int = 0, body: bytes = b"") -> bytes:
    """A whole small frame."""
    return encode_header(kind, epoch, len(body)) + body


def encode_json(kind: FrameType, value: dict[str, Any], epoch: int = 0) -> bytes:
    """A whole small frame with a JSON body."""
    return encode(kind, epoch, json.dumps(value, sort_keys=True).encode())


def decode_header(data: bytes | bytearray | memoryview) -> Header:
    """The header in the first 24 bytes of `data`; WireError when they are not one."""
    magic, kind, epoch, length = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise WireError(f"A frame begins with {bytes(magic)!r} instead of {MAGIC!r}.")
    try:
        frame_type = FrameType(kind)
    except ValueError:
        raise WireError(f"Frame type {kind} is unknown.") from None
    if length > LIMITS[frame_type]:
        raise WireError(
            f"A {frame_type.name} frame announces {length} bytes; at most "
            f"{LIMITS[frame_type]} are allowed."
        )
    return Header(frame_type, epoch, length)


class Decoder:
    """Turns received bytes into frames without copying bodies.

    The transport asks `want()` where the next bytes go, fills (part of) that view, and reports the
    count to `received()`, which returns the frame that this completed, or None. `allocate` is asked
    once per frame for a writable buffer of exactly `header.length` bytes.
    """

    def __init__(self, allocate: Callable[[Header], memoryview]) -> None:
        self._allocate = allocate
        self._header_bytes = bytearray(HEADER.size)
        self._header: Header | None = None
        self._body = memoryview(b"")
        self._have = 0

    def want(self) -> memoryview:
        """The non-empty writable view that the next received bytes belong into."""
        target = memoryview(self._header_bytes) if self._header is None else self._body
        return target[self._have :]

    def received(self, count: int) -> Frame | None:
        """Account for `count` bytes put into `want()`; the frame they completed, if any."""
        self._have += count
        if self._header is None:
            if self._have < HEADER.size:
                return None
            self._header = decode_header(self._header_bytes)
            self._have = 0
            self._body = self._allocate(self._header)
            if len(self._body) != self._header.length:
                raise ValueError("the allocator returned a buffer of another length")
        if self._have < self._header.length:
            return None
        frame = Frame(self._header.type, self._header.epoch, self._body)
        self._header, self._body, self._have = None, memoryview(b""), 0
        return frame


@dataclass(frozen=True)
class CheckpointParts:
    """Views into a CHECKPOINT body: run table, pages, pages of which only words came (see `split_deltas`), write table,
    write data, device state."""

    runs: memoryview
    pages: memoryview
    deltas: memoryview
    writes: memoryview
    write_data: memoryview
    device_state: memoryview


def checkpoint_head(
    runs: int, page_bytes: int, writes: int, write_bytes: int, state_bytes: int, delta_bytes: int = 0
) -> bytes:
    """The fixed part of a CHECKPOINT body: counts of table rows and byte lengths of the parts.

    Deltas go only to a secondary whose WELCOME says `deltas`; without them a body is what it was before there were any.
    """
    return CHECKPOINT_HEAD.pack(runs, page_bytes, writes, write_bytes, state_bytes, delta_bytes)


def checkpoint_length(
    runs: int, page_bytes: int, writes: int, write_bytes: int, state_bytes: int, delta_bytes: int = 0
) -> int:
    """Bytes of a CHECKPOINT body with these counts."""
    tables = 8 * (RUN_WORDS * runs + WRITE_WORDS * writes)
    return CHECKPOINT_HEAD.size + tables + page_bytes + delta_bytes + write_bytes + state_bytes


def split_checkpoint(body: memoryview) -> CheckpointParts:
    """Cut a CHECKPOINT body into its parts; WireError when the counts do not add up to it."""
    if len(body) < CHECKPOINT_HEAD.size:
        raise WireError(f"A CHECKPOINT frame of {len(body)} bytes is too short for its head.")
    counts = CHECKPOINT_HEAD.unpack_from(body)
    runs, page_bytes, writes, write_bytes, state_bytes, delta_bytes = counts
    if max(counts) > len(body) or checkpoint_length(*counts) != len(body):
        raise WireError(f"A CHECKPOINT frame of {len(body)} bytes does not match its counts.")
    views, position = [], CHECKPOINT_HEAD.size
    for length in (8 * RUN_WORDS * runs, page_bytes, delta_bytes, 8 * WRITE_WORDS * writes, write_bytes,
                   state_bytes):  # fmt: skip
        views.append(body[position : position + length])
        position += length
    return CheckpointParts(*views)


def delta_head(pages: int, words: int) -> bytes:
    """The fixed part of a section of deltas."""
    return DELTA_HEAD.pack(pages, words)


def split_deltas(section: memoryview) -> tuple[memoryview, memoryview, memoryview]:
    """Cut a section of deltas into places, bitmaps and words; WireError when its counts do not add up to it.

    One place a page: a u64 with the block's index in its upper and the number of the page in its lower 32 bits; one bitmap of
    64 bytes a page: bit i (of byte i // 8, the lowest bit first) stands for the 8 bytes at 8 * i; and the new content of all
    words so marked, one after the other. An empty section has no pages.
    """
    if not len(section):
        return section, section, section
    if len(section) < DELTA_HEAD.size:
        raise WireError(f"A section of deltas of {len(section)} bytes is too short for its head.")
    pages, words = DELTA_HEAD.unpack_from(section)
    marks = DELTA_HEAD.size + 8 * pages
    values = marks + BITMAP_BYTES * pages
    if max(pages, words) > len(section) or values + 8 * words != len(section):
        raise WireError(f"A section of deltas of {len(section)} bytes does not match its counts.")
    return section[DELTA_HEAD.size : marks], section[marks:values], section[values:]


def split_table(body: memoryview, words: int, what: str) -> tuple[memoryview, memoryview]:
    """Cut a MEMORY or DISK body into its table (rows of `words` u64) and its data."""
    if len(body) < 8:
        raise WireError(f"A {what} frame of {len(body)} bytes is too short.")
    rows = int.from_bytes(body[:8], "little")
    end = 8 + 8 * words * rows
    if end > len(body):
        raise WireError(f"A {what} frame of {len(body)} bytes cannot hold {rows} table rows.")
    return body[8:end], body[end:]


@dataclass(frozen=True)
class DigestsOf:
    """What a DIGESTS frame tells: `data` holds the digests of units `first`, `first` + 1, ... of
    memory block or disk number `index` (`of`: OF_MEMORY or OF_DISK)."""

    of: int
    index: int
    first: int
    data: memoryview


def encode_digests(of: int, index: int, first: int, data: bytes) -> bytes:
    """A whole DIGESTS frame; `data` is DIGEST_BYTES for each unit."""
    head = DIGEST_HEAD.pack(of, index, first, len(data) // DIGEST_BYTES)
    return encode(FrameType.DIGESTS, 0, head + data)


def split_digests(body: memoryview) -> DigestsOf:
    """Read a DIGESTS body; WireError when its counts do not add up."""
    if len(body) < DIGEST_HEAD.size:
        raise WireError(f"A DIGESTS frame of {len(body)} bytes is too short for its head.")
    of, index, first, count = DIGEST_HEAD.unpack_from(body)
    data = body[DIGEST_HEAD.size :]
    if of not in (OF_MEMORY, OF_DISK) or len(data) != DIGEST_BYTES * count:
        raise WireError(f"A DIGESTS frame of {len(body)} bytes does not match its head.")
    return DigestsOf(of, index, first, data)
