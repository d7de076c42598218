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
    pattern = r"\s+([0-9a-f]{16})-[0-9a-f]{16} \(prio -?\d+, (?:ram|rom)\): (\S+)(?: @([0-9a-f]+))?"
    for line in text.splitlines():
        match = re.match(pattern, line)
        if match and match[2] not in found:
            found[match[2]] = (int(match[1], 16), int(match[3] or "0", 16))
    return found


def _locate(execute: Callable[[str], str], view: dict[str, tuple[int, int]], name: str) -> int:
    address, offset = view.get(name.rsplit("/", 1)[-1], view.get(name, (-1, 0)))
    if address >= 0:
        match = re.search(r"is (0x[0-9a-f]+)", execute(f"gpa2hva {address:#x}"))
        if match:
            return int(match[1], 16) - offset
    raise KvmftError(
        "ram_block_unlocated",
        f"The VM has a RAM block {name} (video memory, firmware variables, ...) that QEMU does "
        "not show at any guest address, so it cannot be carried.",
        "Remove the device or choose another model (for video: <model type='none'/>), or let the "
        "guest initialise it first.",
    )


def _backing(pid: int, hva: int) -> str | None:
    """The path that opens the memfd behind address `hva`, or None for private memory."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)\s*(.*)", line)
            if match and int(match[1], 16) <= hva < int(match[2], 16):
                return _open_path(pid, match[4], int(match[3])) if match[4] else None
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


def discover(
    execute: Callable[[str], str], pid: int, standby: bool = False
) -> list[RamBlock]:
    """The blocks that checkpoints carry, main memory first.

    `execute` runs a human-monitor command. On a standby, blocks other than main memory are not
    mapped yet; they are reported with `hva` 0 and kind `anon`.
    """
    view = parse_flat_view(execute("info mtree -f"))
    result: list[RamBlock] = []
    for info in parse_ramblocks(execute("info ramblock")):
        if any(fnmatch.fnmatchcase(info.name, pattern) for pattern in IDENTICAL):
            continue
        main = not result
        if standby and not main:
            result.append(RamBlock(info.name, 0, info.size, "anon"))
            continue
        hva = info.hva or _locate(execute, view, info.name)
        path = _backing(pid, hva)
        result.append(RamBlock(info.name, hva, info.size, "memfd" if path else "anon", path))
    if not result:
        raise KvmftError(
            "no_ram_block",
            f"QEMU process {pid} shows no RAM block.",
            "Run `kvmft doctor`; this QEMU version may be unknown.",
        )
    return result
