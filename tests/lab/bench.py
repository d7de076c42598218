"""`./dev bench`: everything measured side by side on this machine, into build/bench.json and build/bench.html.

    ./dev bench [--parts engine,lab,failover] [--seconds 10] [--runs 20] [--docs]

Part `engine` needs two QEMUs and no lab: pauses against dirty pages and RAM, beside a plain copy of the same pages,
`openssl speed`, and QEMU's own COLO. Parts `lab` and `failover` have the PostgreSQL guest, and a client outside the servers: `lab`
what it gets done and how it answers, `failover` faults, switchovers, re-syncs, and a restart from a replica. `--docs`
writes the tables into docs/performance.md. Times of a shared machine are noisy: compare what stands in one run.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from kvmft.report import bounds
from tests.bench import colo, engine, failover, forecast, lab, log, report
from tests.lab.lab import ROOT
from tests.pair.conftest import ACCELERATORS, kvm_boots

JSON = ROOT / "build" / "bench.json"
PAGE = ROOT / "build" / "bench.html"
PARTS = ("engine", "lab", "failover")
COPIES = 200
COLO_PAGES = (100, 1_000, 10_000)
COLO_ROUNDS = 3
"""Ours and COLO alternate so often."""


def measure_engine(seconds: float) -> dict[str, Any]:
    """Pauses of the engine, what they are compared with, and what a guest that only computes gets done."""
    found: dict[str, Any] = {"pages": [], "ram": [], "memcpy_ms": {}}
    best = "kvm" if kvm_boots() else "tcg"
    for pages in engine.PAGES:
        say(f"{pages} dirty pages")
        measured = engine.measure(best, pages, seconds, options=engine.pace_for(pages))
        found["pages"].append(measured)
        found["memcpy_ms"][str(pages)] = bounds.memcpy(round(np.median(measured["pages"])), COPIES)
    if best == "kvm":
        found["beside_colo"] = beside_colo(seconds / 2)
    for memory in engine.RAM_MIB:
        say(f"{memory} MiB of RAM")
        found["ram"].append(engine.measure(best, engine.RAM_PAGES, seconds / 2, memory, "on"))
    found["compute"] = []
    for accelerator in ACCELERATORS:
        for pace, options in forecast.PACES.items():
            say(f"a guest that computes, on {accelerator}, {pace}")
            spins = engine.SPINS[accelerator]
            found["compute"].append({"pace": pace, **engine.measure(accelerator, 10, seconds, spins=spins, options=options)})
    say("forecasts, and what they foretold")
    found["forecast"] = forecast.measure(best, seconds)
    say("the cipher and the FT log")
    found["cipher_bytes_s"] = bounds.cipher()
    found["log_bytes_s"] = log.throughput(seconds / 2)
    return found


def beside_colo(seconds: float) -> list[dict[str, Any]]:
    """Pauses in milliseconds of the same guest, ours and QEMU's COLO by turns."""
    found = []
    for pages in COLO_PAGES:
        say(f"{pages} dirty pages, and the same under QEMU's COLO, {COLO_ROUNDS} times by turns")
        ours: list[float] = []
        theirs: list[float] = []
        for __ in range(COLO_ROUNDS):
            ours += engine.measure("kvm", pages, seconds)["pause_ms"]
            theirs += colo.measure(pages, seconds)
        found.append({"dirty_pages": pages, "ours_ms": ours, "colo_ms": theirs})
    return found


def say(text: str) -> None:
    """Say what is measured now."""
    print(f"  {text}", flush=True)


def machine() -> dict[str, Any]:
    """What was measured on."""
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {"cpu": model[1] if model else platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(), "qemu": version.split()[3], "python": platform.python_version(),
            "numpy": np.__version__, "when": time.strftime("%Y-%m-%d %H:%M:%S")}  # fmt: skip


def main(parts: str, seconds: float, runs: int, docs: bool, release: str) -> int:
    """Measure the named parts, keep those of an earlier run for the others, and write the report."""
    names = parts.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        print(f"dev: there is no part {', '.join(unknown)}; parts are {', '.join(PARTS)}.", file=sys.stderr)
        return 2
    found = json.loads(JSON.read_text()) if JSON.exists() else {}
    found = {name: found[name] for name in PARTS if isinstance(found.get(name), dict) and name not in names}
    for name in names:
        say(f"== {name}")
        match name:
            case "engine":
                measured = measure_engine(seconds)
            case "lab":
                measured = lab.measure(release, seconds)
            case _:
                measured = failover.run(release, runs)
        found[name] = {"machine": machine(), **measured}
        JSON.parent.mkdir(exist_ok=True)
        JSON.write_text(json.dumps(found) + "\n")
    PAGE.write_text(report.page(found))
    print(report.text(found))
    print(f"{JSON}\n{PAGE}")
    if docs:
        report.write_docs(ROOT / "docs" / "performance.md", found)
    return 0
