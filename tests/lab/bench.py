"""`./dev bench`: the checkpoint engine measured here, on real QEMUs, into build/bench.json.

The guest of 512 bytes touches 64 pages in a loop, so this shows the engine's own cost: pause, pages
and bytes per epoch. Times of a shared machine are noisy: compare runs made side by side.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.lab.lab import ROOT
from tests.pair.conftest import ACCELERATORS
from tests.pair.harness import MEMORY_MIB, Pair, wait_for

SECONDS = 10.0


def measure(accelerator: str) -> dict[str, Any]:
    """Protect the guest under `accelerator` for a while; the primary's figures (milliseconds)."""
    with tempfile.TemporaryDirectory() as directory:
        pair = Pair(Path(directory), accelerator)
        try:
            wait_for("the guest counting", lambda: pair.primary_vm.counts, 30)
            begun = time.monotonic()
            primary, __ = pair.protect()
            protected = time.monotonic() - begun
            time.sleep(SECONDS)
            status = primary.wait(msg="status", state="protected")
        finally:
            pair.stop()
    names = ("epochs", "interval_ms", "pause_ms", "pages_per_epoch", "log_bandwidth_bytes_s",
             "guest_clock_loss_ppm")  # fmt: skip
    return {"memory_mib": MEMORY_MIB, "seconds": SECONDS, "protected_after_s": round(protected, 2),
            **{name: status[name] for name in names}}  # fmt: skip


def main() -> int:
    """Measure under each accelerator that works here and write the report."""
    report = {"kernel": platform.release(), "runs": {}}
    for accelerator in ACCELERATORS:
        found = measure(accelerator)
        report["runs"][accelerator] = found  # type: ignore[index]
        pause, pages = found["pause_ms"], found["pages_per_epoch"]
        print(f"{accelerator}: n={found['epochs']} pause p50 {pause['p50']} ms, p99 {pause['p99']} ms, "
              f"pages per epoch p50 {pages['p50']}, first sync {found['protected_after_s']} s",
              flush=True)  # fmt: skip
    path = ROOT / "build" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return 0
