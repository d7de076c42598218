# SPDX-License-Identifier: GPL-3.0-or-later
"""What LVM and the pool's folder look like, and how the unit is named that mounts it, as one JSON object.
Reads, and changes nothing.

    python3 - VG LV POOL [DEVICE ...]
"""

import json
import os
import subprocess
import sys


def output(*command):
    """What a command prints; empty when it fails or is not there."""
    environment = dict(os.environ, LC_ALL="C", PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
                              timeout=60, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""


def carries(device):
    """What is on a block device: the type of its signature or `partitions`; empty when there is nothing."""
    found = output("blkid", "-p", "-o", "value", "-s", "TYPE", device)
    table = output("blkid", "-p", "-o", "value", "-s", "PTTYPE", device)
    return found or ("a partition table (%s)" % table if table else "")


def main():
    """Print it."""
    vg, lv, pool, devices = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
    path = "/dev/%s/%s" % (vg, lv)
    groups = output("vgs", "--noheadings", "-o", "vg_name").split()
    volumes = output("lvs", "--noheadings", "-o", "lv_name", vg).split() if vg in groups else []
    source = output("findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", pool)
    unit = subprocess.check_output(["systemd-escape", "--path", "--suffix=mount", pool])
    print(json.dumps({
        "vg": vg in groups,
        "lv": lv in volumes,
        "fstype": carries(path) if lv in volumes else "",
        "mounted": bool(source) and os.path.realpath(source) == os.path.realpath(path),
        "mounted_other": source if source and os.path.realpath(source) != os.path.realpath(path) else "",
        "hidden": sorted(os.listdir(pool))[:5] if not source and os.path.isdir(pool) else [],
        "unit": unit.decode().strip(),
        "devices": {each: {"exists": os.path.exists(each), "carries": carries(each)} for each in devices},
    }))  # fmt: skip


main()
