"""Which RAM blocks a QEMU has, where they lie, and which of them a checkpoint must carry.

Facts come from the monitor's `info ramblock`, `info mtree -f` and `gpa2hva`, and from
/proc/PID/maps. Blocks filled from the same files by the same QEMU version (BIOS, option ROMs, ACPI
tables) are identical on both hosts by construction and are left out.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from kvmft.adapters.memory import RamBlock
from kvmft.errors import KvmftError

IDENTICAL = ("pc.bios", "pc.rom", "*.rom", "/rom@*", "*/rom@*", "system.flash0", "*bios*")
"""Names (glob) of blocks that the guest does not change or that both sides load alike."""


@dataclass(frozen=True)
class BlockInfo:
    """A line of `info ramblock`: sizes in bytes; `hva` where this QEMU tells it."""

    name: str
    size: int
    hva: int | None


def parse_ramblocks(text: str) -> list[BlockInfo]:
    """The blocks in the output of `info ramblock` (QEMU 7.2 has no HVA column, 10.0 has one)."""
    blocks = []
    for line in text.splitlines():
        match = re.match(
            r"\s*(\S+)\s+\d+ [KMG]iB\s+0x[0-9a-f]+ 0x[0-9a-f]+ 0x([0-9a-f]+)(?:\s+0x([0-9a-f]+))?",
            line,
        )
        if match:
            hva = int(match[3], 16) if match[3] else None
            blocks.append(BlockInfo(match[1], int(match[2], 16), hva or None))
    return blocks


def parse_flat_view(text: str) -> dict[str, tuple[int, int]]:
    """For each RAM region in `info mtree -f`: a guest physical address and its offset there."""
    found: dict[str, tuple[int, int]] = {}
    # "romd" is flash: read as memory, written as a device (UEFI variables).
    pattern = (
        r"\s+([0-9a-f]{16})-[0-9a-f]{16} \(prio -?\d+, (?:ram|romd?)\): (\S+)(?: @([0-9a-f]+))?"
    )
    for line in text.splitlines():
        match = re.match(pattern, line)
        if match and match[2] not in found:
            found[match[2]] = (int(match[1], 16), int(match[3] or "0", 16))
    return found


def region_of(name: str) -> str:
    """The memory region's name in `info mtree`: a RAM block's name without its device's path."""
    return name.rsplit("/", 1)[-1]


def _locate(
    execute: Callable[[str], str], view: dict[str, tuple[int, int]], name: str
) -> int | None:
    """The block's address in QEMU, found by way of a guest address; None when it has none."""
    if region_of(name) not in view:
        return None
    address, offset = view[region_of(name)]
    match = re.search(r"is (0x[0-9a-f]+)", execute(f"gpa2hva {address:#x}"))
    return int(match[1], 16) - offset if match else None


def _unlocated(name: str, why: str) -> KvmftError:
    return KvmftError(
        "ram_block_unlocated",
        f"The VM has a RAM block {name} (video memory, firmware variables, ...) that cannot be "
        f"carried: {why}.",
        "Remove the device or choose another model (for video: <model type='none'/>), or let the "
        "guest initialise it first.",
    )


@dataclass(frozen=True)
class Mapping:
    """A line of /proc/PID/maps: addresses [start, end), the file's inode (0: none) and name."""

    start: int
    end: int
    inode: int
    name: str


def parse_maps(text: str) -> list[Mapping]:
    """The mappings in the text of /proc/PID/maps (proc(5)), in order of address."""
    pattern = r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)[ \t]*(.*)"
    return [
        Mapping(int(match[1], 16), int(match[2], 16), int(match[3]), match[4])
        for match in re.finditer(pattern, text)
    ]


def mapped_from(maps: list[Mapping], hva: int, size: int) -> Mapping | None:
    """The mapping at `hva`, when [hva, hva + size) is mapped without a hole from one source."""
    first: Mapping | None = None
    reached = hva
    for each in maps:
        if each.start <= reached < each.end:
            first = first or each
            if (each.inode, each.name) != (first.inode, first.name):
                return None
            reached = each.end
            if reached >= hva + size:
                return first
    return None


def _open_path(pid: int, name: str, inode: int) -> str | None:
    if not name.startswith("/memfd:"):
        return None
    directory = f"/proc/{pid}/fd"
    for entry in os.listdir(directory):
        path = os.path.join(directory, entry)
        try:
            if os.readlink(path) == name and os.stat(path).st_ino == inode:
                return path
        except FileNotFoundError:
            continue
    return None


def discover(execute: Callable[[str], str], pid: int, standby: bool = False) -> list[RamBlock]:
    """The blocks that checkpoints carry, main memory first.

    `execute` runs a human-monitor command. On a standby, video memory and the like is not mapped
    yet: blocks that are no shared memory there are reported with `hva` 0 and kind `anon`.
    Raises KvmftError `ram_block_unlocated` when a block of a running VM cannot be found.
    """
    view = parse_flat_view(execute("info mtree -f"))
    infos = parse_ramblocks(execute("info ramblock"))
    regions = [region_of(info.name) for info in infos]
    with open(f"/proc/{pid}/maps", encoding="utf-8") as file:
        maps = parse_maps(file.read())
    result: list[RamBlock] = []
    for info in infos:
        if any(fnmatch.fnmatchcase(info.name, pattern) for pattern in IDENTICAL):
            continue
        optional = standby and bool(result)
        why, mapping, hva = "", None, info.hva
        if hva is None and regions.count(region_of(info.name)) > 1:
            # Each of two displays has a "vga.vram": the view does not say which one it shows.
            why = "another device has a block of the same name"
        else:
            hva = hva or _locate(execute, view, info.name)
            if hva is None:
                why = "QEMU does not show it at any guest address"
            else:
                mapping = mapped_from(maps, hva, info.size)
                why = "" if mapping else f"its {info.size} bytes are not mapped as one piece"
        path = _open_path(pid, mapping.name, mapping.inode) if mapping and mapping.name else None
        if optional and path is None:
            result.append(RamBlock(info.name, 0, info.size, "anon"))
            continue
        if hva is None or mapping is None:
            raise _unlocated(info.name, why)
        result.append(RamBlock(info.name, hva, info.size, "memfd" if path else "anon", path))
    if not result:
        raise KvmftError(
            "no_ram_block",
            f"QEMU process {pid} shows no RAM block.",
            "Run `kvmft doctor`; this QEMU version may be unknown.",
        )
    return result
