"""The migration stream that activates a standby: device state alone, RAM being in place already.

Layout (QEMU migration/savevm.c, docs/devel/migration): magic and version; a configuration section
(0x07, be32 length, machine type); sections; end-of-file mark; description (0x06, be32 length).
`xen-save-devices-state` writes the same sections with magic and end mark, but neither configuration
nor description, so the stream is made by putting these in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from kvmft.errors import KvmftError

QEMU_VM_FILE_MAGIC = 0x5145564D
QEMU_VM_FILE_VERSION = 3
QEMU_VM_SECTION_FULL = 0x04
QEMU_VM_VMDESCRIPTION = 0x06
QEMU_VM_CONFIGURATION = 0x07
QEMU_VM_SECTION_FOOTER = 0x7E
RAM_SECTION_ID = 0x4B464D54
RAM_SECTION_VERSION = 4
RAM_SAVE_FLAG_ZERO = 0x02
RAM_SAVE_FLAG_PAGE = 0x08
RAM_SAVE_FLAG_EOS = 0x10
RAM_SAVE_FLAG_CONTINUE = 0x20
PAGE = 4096
ZERO_PAGE = bytes(PAGE)


def check_blob(blob: bytes | memoryview) -> None:
    """Raise unless `blob` begins like a device state saved by QEMU."""
    head = bytes(blob[:8])
    if head != struct.pack(">II", QEMU_VM_FILE_MAGIC, QEMU_VM_FILE_VERSION):
        raise KvmftError(
            "device_state_malformed",
            f"The saved device state begins with {head.hex()} and is not one of QEMU's.",
            "The checkpoint is dropped; see QEMU's log on the primary.",
        )


def ram_section(blocks: Iterable[tuple[str, bytes | memoryview]]) -> bytes:
    """A section that loads whole RAM blocks `(name, content)`; content in multiples of 4 KiB.

    Video memory is mostly zeros: of such a page the stream has its byte alone (migration/ram.c).
    """
    out = bytearray()
    for name, content in blocks:
        first = True
        label = name.encode()
        for offset in range(0, len(content), PAGE):
            page = content[offset : offset + PAGE]
            kind = RAM_SAVE_FLAG_ZERO if page == ZERO_PAGE else RAM_SAVE_FLAG_PAGE
            flags = kind | (0 if first else RAM_SAVE_FLAG_CONTINUE)
            out += struct.pack(">Q", offset | flags)
            if first:
                out += bytes([len(label)]) + label
                first = False
            out += b"\0" if kind == RAM_SAVE_FLAG_ZERO else page
    if not out:
        return b""
    head = struct.pack(">BIB3sII", QEMU_VM_SECTION_FULL, RAM_SECTION_ID, 3, b"ram", 0,
                       RAM_SECTION_VERSION)  # fmt: skip
    tail = struct.pack(">QBI", RAM_SAVE_FLAG_EOS, QEMU_VM_SECTION_FOOTER, RAM_SECTION_ID)
    return head + bytes(out) + tail


def activation_stream(blob: bytes | memoryview, machine: str, ram: bytes = b"") -> bytes:
    """The bytes for `migrate-incoming`: `blob` is the saved device state, `machine` the
    versioned machine type (`pc-q35-7.2`), `ram` the result of `ram_section`."""
    check_blob(blob)
    name = machine.encode()
    configuration = struct.pack(">BI", QEMU_VM_CONFIGURATION, len(name)) + name
    description = struct.pack(">BI", QEMU_VM_VMDESCRIPTION, 0)
    return bytes(blob[:8]) + configuration + ram + bytes(blob[8:]) + description
