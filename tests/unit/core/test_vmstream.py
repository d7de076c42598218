"""The activation stream: RAM blocks other than main memory, in QEMU's own form."""

from __future__ import annotations

import struct

import pytest

from kvmft.core.vmstream import PAGE, activation_stream, ram_section
from kvmft.errors import KvmftError


def load(section: bytes) -> dict[str, dict[int, bytes]]:
    """What QEMU's ram_load would do (migration/ram.c), for the flags that are used here."""
    assert section[0] == 4 and section[5] == 3 and section[6:9] == b"ram"
    position, blocks, block = 17, {}, ""
    while True:
        (word,) = struct.unpack_from(">Q", section, position)
        position += 8
        flags, offset = word & (PAGE - 1), word & ~(PAGE - 1)
        if flags & 0x10:
            break
        if not flags & 0x20:
            length = section[position]
            block = section[position + 1 : position + 1 + length].decode()
            position += 1 + length
            blocks[block] = {}
        if flags & 0x02:
            blocks[block][offset] = section[position : position + 1] * PAGE
            position += 1
        else:
            assert flags & 0x08
            blocks[block][offset] = section[position : position + PAGE]
            position += PAGE
    assert section[position] == 0x7E and section[1:5] == section[position + 1 :]
    return blocks


def test_every_page_arrives_and_zero_pages_cost_a_byte() -> None:
    screen = bytearray(1024 * PAGE)
    screen[5 * PAGE : 5 * PAGE + 4] = b"text"
    flash = b"\xff" * PAGE + bytes(PAGE)
    section = ram_section([("vga.vram", bytes(screen)), ("system.flash1", memoryview(flash))])
    found = load(section)
    assert b"".join(found["vga.vram"][at] for at in sorted(found["vga.vram"])) == screen
    assert b"".join(found["system.flash1"][at] for at in sorted(found["system.flash1"])) == flash
    assert len(section) < 1024 * 10 + 3 * PAGE


def test_no_blocks_no_section() -> None:
    assert ram_section([]) == b""


def test_a_foreign_blob_is_refused() -> None:
    with pytest.raises(KvmftError, match="not one of QEMU's"):
        activation_stream(b"\x7fELF" + bytes(100), "pc-q35-7.2")
