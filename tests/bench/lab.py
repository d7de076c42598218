"""What a client outside the servers sees: latency with protection off and on, in a lab with the PostgreSQL guest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from kvmft.report.figures import summary
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


def measure(release: str, seconds: float) -> dict[str, Any]:
    """Latencies in milliseconds, unprotected and protected, of one guest in one run."""
    lab = Lab(os.environ.get("KVMFT_LAB", "bench"), release)
    try:
        demo.prepare(lab)
        _outside(lab, "-c", COMMITS, guests.POSTGRES.address, "1")
        off = _latencies(lab, seconds)
        lab.run("node-a", f"kvmft enable {demo.VM} --wait 120")
        demo.wait_protected(lab, "node-a")
        time.sleep(2)
        on = _latencies(lab, seconds)
        status = json.loads(lab.run("node-a", f"kvmft status {demo.VM} --json"))
    finally:
        if "KVMFT_KEEP" not in os.environ:
            lab.down()
    keep = ("accelerator", "pause_ms", "commit_ms", "pages_per_epoch", "interval_ms", "guest_clock_loss_ppm")
    return {"off": off, "on": on, "status": {name: status[name] for name in keep}}


def _latencies(lab: Lab, seconds: float) -> dict[str, list[float]]:
    address = guests.POSTGRES.address
    found = {}
    for rate in RATES:
        length = str(max(seconds, 20.0) if rate == 1 else seconds)
        found[f"tcp {rate}/s"] = _outside(lab, "-m", "tests.bench.pinger", address, str(client.ECHO_PORT), str(rate), length)
    found["postgresql commit"] = _outside(lab, "-c", COMMITS, address, str(seconds))
    return found


def _outside(lab: Lab, *arguments: str) -> list[float]:
    """Run Python outside the servers, in the lab's network; the list that it prints."""
    done = subprocess.run(lab.inside(sys.executable, *arguments), check=True, capture_output=True, text=True, timeout=300)
    found: list[float] = json.loads(done.stdout)
    return found


def added(latencies: dict[str, dict[str, list[float]]]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """For each kind of request: its summary without and with protection."""
    return [(name, summary(values), summary(latencies["on"][name])) for name, values in latencies["off"].items()]
