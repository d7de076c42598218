"""A folder of this machine, mounted on running servers, as a shared file system would be.

systemd-nspawn binds folders only at its start; open_tree(2) and move_mount(2) do it later, through
setns(2) into the server's mount namespace.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.lab.lab import Lab

_PROGRAM = """
import ctypes, os, sys
source, leader, target = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
OPEN_TREE, MOVE_MOUNT, CLONE_NEWNS = 428, 429, 0x20000
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH, AT_FDCWD = 1, 4, -100
tree = call(OPEN_TREE, AT_FDCWD, source.encode(), OPEN_TREE_CLONE | os.O_CLOEXEC)
namespace = os.open(f"/proc/{leader}/ns/mnt", os.O_RDONLY)
root = os.open(f"/proc/{leader}/root", os.O_RDONLY)
if libc.setns(namespace, CLONE_NEWNS) != 0:
    raise OSError(ctypes.get_errno(), "setns")
os.fchdir(root)
os.chroot(".")
os.makedirs(target, exist_ok=True)
call(MOVE_MOUNT, tree, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH)
"""
"""Numbers from asm-generic/unistd.h and linux/mount.h."""


def share(lab: Lab, folder: Path, target: str, hosts: tuple[str, ...]) -> None:
    """Mount `folder` at `target` on the servers `hosts`, until they are next powered on."""
    folder.mkdir(parents=True, exist_ok=True)
    for host in hosts:
        leader = lab.leader(host)
        assert leader is not None, f"{host} is off"
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(folder), str(leader), target], check=True, timeout=30
        )
