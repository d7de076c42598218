"""Where a directory is mounted, and whether an arbiter may live there (proc(5), mountinfo)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from kvmft.errors import KvmftError


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo: mount point, file system, what is mounted, options of both halves."""

    point: str
    kind: str
    source: str
    options: frozenset[str]


def parse_mountinfo(text: str) -> list[Mount]:
    """All mounts, in the order in which they were made."""
    mounts = []
    for line in text.splitlines():
        left, __, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(rest) < 3:
            continue
        options = frozenset((*fields[5].split(","), *rest[2].split(",")))
        mounts.append(Mount(_plain(fields[4]), rest[0], _plain(rest[1]), options))
    return mounts


def _plain(text: str) -> str:
    """Blanks and their like are octal escapes in that file."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_over(mounts: list[Mount], path: str) -> Mount:
    """The mount that `path`, absolute and without links, is on."""
    holding = [
        mount for mount in mounts
        if path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
    ]  # fmt: skip
    if not holding:
        return Mount("/", "unknown", "unknown", frozenset())
    longest = max(len(mount.point) for mount in holding)
    return [mount for mount in holding if len(mount.point) == longest][-1]


def mount_of(path: str) -> Mount:
    """The mount that `path` is on now."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        return mount_over(parse_mountinfo(file.read()), os.path.realpath(path))


def unfit(mount: Mount, directory: str) -> KvmftError | None:
    """Why an arbiter cannot be in `directory` on `mount`; None where nothing speaks against it.

    A local file system may still be one that both hosts see (a cluster file system, a bind mount):
    that cannot be told from here, only by having one host look for what the other wrote.
    """
    if mount.point == "/":
        return KvmftError(
            "arbiter_not_mounted",
            f"{directory} is on this host's root file system: what should be mounted there is not.",
            "Mount the shared directory; see `findmnt` and /etc/fstab.",
        )
    if not mount.kind.startswith("nfs"):
        return None
    versions = [each.removeprefix("vers=") for each in mount.options if each.startswith("vers=")]
    if mount.kind == "nfs" or versions not in (["4.1"], ["4.2"]):
        return KvmftError(
            "arbiter_nfs_version",
            f"{directory} is mounted with NFS {', '.join(versions) or '3'}; a repeated request could "
            "be taken for a new one there.",
            "Mount it with vers=4.1 or vers=4.2.",
        )
    wrong = sorted(mount.options & {"soft", "softerr", "intr", "nocto"})
    if wrong or "hard" not in mount.options:
        return KvmftError(
            "arbiter_nfs_soft",
            f"{directory} is mounted with {', '.join(wrong) or 'no option hard'}: operations are given "
            "up although they may still happen, or old contents are shown.",
            "Mount it with hard, and without soft, softerr, intr and nocto.",
        )
    return None
