# SPDX-License-Identifier: GPL-3.0-or-later
"""What is there that the role's way back takes away or must not, as one JSON object. Reads, and changes nothing.

    python3 - POOL
"""

import json
import os
import subprocess
import sys

STATE = "/var/lib/kvmft"
KEPT = "/etc/kvmft/before/storage.json"
DEFINITIONS = ("/etc/libvirt/qemu", "/run/libvirt/qemu")


def output(*command, check=False):
    """What a command prints; with `check` it must succeed."""
    return subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=check).stdout.decode().strip()


def text(path):
    """A file's text; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def names(folder):
    """What lies in a folder; empty when there is none."""
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def files(pool):
    """Everything below the pool but what a file system has of its own."""
    found = []
    for folder, folders, others in os.walk(pool):
        found += [os.path.join(folder, name) for name in folders + others if name != "lost+found"]
    return sorted(found)


def users(pool):
    """VMs whose definitions name the pool."""
    found = [os.path.join(folder, name) for folder in DEFINITIONS for name in names(folder) if name.endswith(".xml")]
    return sorted({os.path.basename(path)[: -len(".xml")] for path in found if pool + "/" in text(path)})


def main():
    """Print it."""
    pool = sys.argv[1]
    unit = output("systemd-escape", "--path", "--suffix=mount", pool, check=True)
    units = ["/etc/systemd/system/" + unit, "/etc/systemd/system/kvmft-agent.service.d/storage.conf"]
    state = [os.path.join(STATE, name) for name in names(STATE)]
    print(json.dumps({
        "agent": output("systemctl", "is-active", "kvmft-agent"),
        "known": [name for name in names(STATE + "/vm") if os.path.exists("%s/vm/%s/state.json" % (STATE, name))],
        "files": files(pool),
        "users": users(pool),
        "unit": unit,
        "units": [path for path in units if os.path.isfile(path)],
        # The pool's folder goes by itself or stays, and so does what lies above it.
        "state": [path for path in state if not (pool + "/").startswith(path + "/")],
        "mounted": os.path.ismount(STATE),
        "kept": json.loads(text(KEPT) or "{}"),
    }))  # fmt: skip


main()
