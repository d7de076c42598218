"""What a cluster manager does when a server dies: the VM is started anew on the other one, from a replica of its disk.

The replica is perfect here and costs nothing: both servers' images are one file of this machine. Counted is, from the
power cut to a new connection's answer from the database: detection (as long as kvmft's own in this lab), libvirt's
start, the guest's boot, and the database's recovery. Not counted is what a cluster manager needs besides: agreement of
the remaining members, fencing of the dead server, and the change-over of real storage. The client's open
connections are lost in any case; that is not counted either.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from tests.lab import demo, guests
from tests.lab.lab import ROOT, Lab

NAME = (
    "restart on the other host from a replicated disk; counted: {detection} s of detection, start, boot, recovery, new "
    "connection; not counted: fencing, agreement, storage"
)
DETECTION = 0.5
"""Seconds; detection_ms of the lab's agents."""
RUNS = 4
"""An even number: the VM ends where it began."""
PATIENCE = 300.0
PROBE = """
import json, socket, sys, time
import psycopg
from tests.lab import client
while True:
    try:
        socket.create_connection((sys.argv[1], 5432), 0.5).close()
        client.connect(sys.argv[1]).execute("SELECT 1 FROM ledger LIMIT 1").fetchall()
        break
    except (OSError, psycopg.Error):
        time.sleep(0.05)
print(json.dumps(time.monotonic()))
"""
"""When the database answers a client that tries again and again."""


def measure(lab: Lab) -> list[float]:
    """Milliseconds of each restart. The VM is on node-a before and after; kvmft does not protect it meanwhile."""
    source, target = "node-a", "node-b"
    share(lab, source, target)
    found = []
    for __ in range(RUNS):
        found.append(1000 * _once(lab, source, target))
        demo.say(f"  restart on {target}: {found[-1]:.0f} ms")
        lab.power_on(source)
        source, target = target, source
    _forget(lab, target)
    return found


def images(lab: Lab, host: str) -> str:
    """The VM's image on a server, as this machine sees it (see Lab.power_on)."""
    return str(lab.base / host / "kvmft" / "images" / f"{demo.VM}.raw")


def share(lab: Lab, source: str, target: str) -> None:
    """Give `target` the very file that `source` has, and the VM's definition."""
    os.makedirs(os.path.dirname(images(lab, target)), exist_ok=True)
    os.link(images(lab, source), images(lab, target))
    xml = guests.domain_xml(guests.POSTGRES)
    lab.run(target, f"cat > /root/{demo.VM}.xml <<'END'\n{xml}END\nvirsh -q define /root/{demo.VM}.xml")


def _forget(lab: Lab, host: str) -> None:
    """As if the VM had never been on `host`: what kvmft finds there later must be its own."""
    lab.run(host, f"virsh -q undefine {demo.VM}")
    os.unlink(images(lab, host))


def _once(lab: Lab, source: str, target: str) -> float:
    """Seconds from the power cut to the answer. `target` stands ready, its bridge and its libvirt are up."""
    lab.run(target, "until ip link show br0 >/dev/null 2>&1; do sleep 0.2; done; " f"virsh -q domstate {demo.VM}")
    when = lab.power_off(source)
    probe = subprocess.Popen(lab.inside(sys.executable, "-c", PROBE, guests.POSTGRES.address), cwd=ROOT,
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        time.sleep(max(0.0, when + DETECTION - time.monotonic()))
        lab.run(target, f"virsh -q start {demo.VM}")
        answered: float = json.loads(probe.communicate(timeout=PATIENCE)[0])
    finally:
        probe.kill()
        probe.wait()
    return answered - when
