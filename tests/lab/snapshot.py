"""What a server's file system, users and firewall are, so that two moments can be compared.

A server's root is an overlay over the image that all servers share, so only what lies in its own layer can
differ from the image. Everything is read from outside; nothing on the server has to help.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from tests.lab import images
from tests.lab.lab import Lab

PASSING = re.compile(
    r"(run|tmp|proc|sys|dev|var/(tmp|log|cache|lib/systemd|lib/dbus|lib/private|lib/apt|lib/dpkg)"
    r"|etc/(group|gshadow|passwd|shadow)-"
    r"|root/\.(ansible|cache|ssh|bash_history)|etc/machine-id|var/lib/(nfs|sudo))(/|$)"
    r"|.*/__pycache__(/|$)|.*\.pyc$"
)
"""Logs, caches, what exists only while a server runs, the copies that shadow(5)'s tools keep of the lists of users
before their last change, and what Ansible itself keeps in root's home."""

Snapshot = dict[str, str]
"""Per path, or per question that was asked, what it is."""


def describe(path: Path) -> str:
    """Type, rights, owner and content of one path; `-` when there is none."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return "-"
    what = f"{stat.filemode(found.st_mode)} {found.st_uid}:{found.st_gid}"
    if stat.S_ISLNK(found.st_mode):
        return f"{what} -> {os.readlink(path)}"
    if stat.S_ISREG(found.st_mode):
        return f"{what} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return what


def own_paths(layer: Path) -> set[str]:
    """The paths in a layer, without those that come and go."""
    found = set()
    for folder, folders, files in os.walk(layer):
        here = os.path.relpath(folder, layer)
        for name in [*folders, *files]:
            path = os.path.normpath(os.path.join(here, name))
            if PASSING.match(path) is None:
                found.add(path)
        folders[:] = [name for name in folders
                      if PASSING.match(os.path.normpath(os.path.join(here, name))) is None]  # fmt: skip
    return found


def take(lab: Lab, host: str) -> Snapshot:
    """The server as it is now."""
    home = lab.base / host
    found = {path: describe(home / "root" / path) for path in own_paths(home / "upper")}
    found |= {f"var/lib/kvmft/{path}": describe(home / "kvmft" / path)
              for path in own_paths(home / "kvmft")}  # fmt: skip
    for name, command in (
        ("firewall", "nft list ruleset"),
        ("units", "systemctl list-unit-files --no-legend --no-pager --plain | grep -v transient | sort"),
        ("sockets", "ss -Hltn | awk '{print $4}' | sort"),
    ):
        found[f"({name})"] = lab.run(host, command)
    return found


def differences(lab: Lab, host: str, before: Snapshot, after: Snapshot) -> list[str]:
    """What is not as it was, one line for each path."""
    image = images.server_root(lab.other.get(host, lab.release))
    lines = []
    for path in sorted(before.keys() | after.keys()):
        then, now = (each.get(path) or describe(image / path) for each in (before, after))
        if then != now:
            lines.append(f"{path}: {then} => {now}")
    return lines
