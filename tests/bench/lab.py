"""What a client outside the servers sees: latency with protection off and on, in a lab with the PostgreSQL guest.

The guest was started by plain virsh, so that checkpoints go through libvirt's monitor at first. After a planned switchover
it runs in a QEMU that has a monitor for kvmft alone, and the latencies are taken once more (`own`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from kvmft.report.figures import summary
from tests.bench import inside
from tests.lab import client, demo, guests
from tests.lab.lab import Lab

RATES = (1, 100, 1000)
COMMITS = """
import json, sys, time
from tests.lab import client
connection = client.connect(sys.argv[1])
connection.execute("CREATE TABLE IF NOT EXISTS bench (n int)")
found, until = [], time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    begun = time.monotonic()
    connection.execute("INSERT INTO bench VALUES (1)")
    found.append((time.monotonic() - begun) * 1000)
print(json.dumps(found))
"""


STATUS = ("accelerator", "pause_ms", "commit_ms", "pages_per_epoch", "interval_ms", "guest_clock_loss_ppm")
IDLE = 20.0
"""Seconds over which the guest's clock is watched while nobody asks anything of it."""


def measure(release: str, seconds: float) -> dict[str, Any]:
    """Latencies in milliseconds and throughputs, unprotected (`off`) and protected (`on`), of one guest in one run."""
    lab = Lab(os.environ.get("KVMFT_LAB", "bench"), release)
    try:
        demo.prepare(lab)
        guest = inside.Guest(lab.inside)
        inside.prepare(guest)
        _outside(lab, "-c", COMMITS, guests.POSTGRES.address, "1")
        rounds = inside.rounds(guest, seconds / 2)
        off = _once(lab, guest, rounds, seconds)
        lab.run("node-a", f"kvmft enable {demo.VM} --wait 120")
        demo.wait_protected(lab, "node-a")
        time.sleep(2)
        on = _once(lab, guest, rounds, seconds)
        status = _status(lab, "node-a")
        lab.run("node-a", f"kvmft failover {demo.VM} --mode planned")
        demo.wait_protected(lab, "node-b")
        time.sleep(2)
        own = _latencies(lab, guest, seconds)
        status_own = _status(lab, "node-b")
    finally:
        if "KVMFT_KEEP" not in os.environ:
            lab.down()
    parts = {part: {"off": off[part], "on": on[part]} for part in ("speeds", "clock")}
    return {"off": off["latencies"], "on": on["latencies"], "own": own, **parts, "status": status, "status_own": status_own}


def _status(lab: Lab, host: str) -> dict[str, Any]:
    status = json.loads(lab.run(host, f"kvmft status {demo.VM} --json"))
    return {name: status[name] for name in STATUS}


def _once(lab: Lab, guest: inside.Guest, rounds: int, seconds: float) -> dict[str, Any]:
    """Everything, as the guest is now; its clock is watched while it idles, and under the requests."""
    first = inside.clock(guest)
    time.sleep(IDLE)
    idled = inside.clock(guest)
    latencies = _latencies(lab, guest, seconds)
    asked = inside.clock(guest)
    clock = {"idle": inside.loss(first, idled), "under requests": inside.loss(idled, asked)}
    return {"latencies": latencies, "clock": clock, "speeds": inside.speeds(guest, rounds, seconds / 2)}


def _latencies(lab: Lab, guest: inside.Guest, seconds: float) -> dict[str, list[float]]:
    address = guests.POSTGRES.address
    found = {}
    for rate in RATES:
        length = str(max(seconds, 20.0) if rate == 1 else seconds)
        found[f"tcp {rate}/s"] = _outside(lab, "-m", "tests.bench.pinger", address, str(client.ECHO_PORT), str(rate), length)
    found["postgresql commit"] = _outside(lab, "-c", COMMITS, address, str(seconds))
    found["http"] = inside.http(guest, seconds)
    return found


def _outside(lab: Lab, *arguments: str) -> list[float]:
    """Run Python outside the servers, in the lab's network; the list that it prints."""
    done = subprocess.run(lab.inside(sys.executable, *arguments), check=True, capture_output=True, text=True, timeout=300)
    found: list[float] = json.loads(done.stdout)
    return found


def added(found: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """For each kind of request, and each monitor: its summary without and with protection."""
    monitors = {"on": "libvirt's monitor", "own": "own monitor"}
    return [(f"{name}, {monitor}", summary(values), summary(found[state][name]))
            for name, values in found["off"].items() for state, monitor in monitors.items() if state in found]  # fmt: skip
