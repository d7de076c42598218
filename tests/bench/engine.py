"""The checkpoint engine between two real QEMUs on this machine: pauses against dirty pages and against RAM."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kvmft.report.epochs import Epochs
from tests.bench import dirtyguest
from tests.pair.harness import Machine, Pair, wait_for

PAGES = (10, 100, 1_000, 10_000, 100_000)
RAM_MIB = (256, 512, 1024, 2048, 4096, 8192)
SPINS = {"tcg": 200_000, "kvm": 4_000}
"""Of a guest that computes, a round. KVM may have to interpret a guest without page tables, on a machine that is virtual itself."""
RAM_PAGES = 100
"""Dirty pages per epoch while the size of RAM is what varies."""
OPTIONS = {"interval_ms": 20, "min_interval_ms": 4, "max_added_latency_ms": 1000, "detection_ms": 5000,
           "agent_grace_ms": 5000}  # fmt: skip


PAGES_A_MS = 40
"""A guest dirties at least so many pages a millisecond here, under write protection."""
EPOCHS = 20
"""At least so many are measured."""


def pace_for(pages: int) -> dict[str, Any]:
    """OPTIONS with epochs that are long enough for the guest to dirty all its pages in each."""
    return {**OPTIONS, "interval_ms": max(float(OPTIONS["interval_ms"]), pages / PAGES_A_MS)}


def memory_for(pages: int) -> int:
    """MiB that a guest needs which dirties so many pages."""
    return max(128, 64 + (dirtyguest.FIRST_BYTE + pages * 4096 >> 20))


def measure(
    accelerator: str, pages: int, seconds: float, memory_mib: int | None = None, prealloc: str = "off", spins: int = 0,
    options: dict[str, Any] | None = None, first: Callable[[Pair], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Protect a guest that dirties `pages` all the time; what each epoch of `seconds` took, in milliseconds.

    The first second is not counted. `counts_s` is how many rounds the guest got done a second, before and then under
    protection. `first` is called while the guest runs unprotected; what it returns is the result's `forecast`.
    """
    memory, options = memory_mib or memory_for(pages), options or OPTIONS
    mask = 0 if pages >= 2000 else 3 if spins else 255
    boot = partial(dirtyguest.write_disk, pages=pages, spins=spins, mask=mask)
    # As /run on a host: in memory.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        pair = Pair(Path(directory), accelerator, machine=Machine(memory, prealloc, boot))
        try:
            wait_for("the guest counting", lambda: len(pair.primary_vm.counts) > 1, 60)
            before = _rate(pair, min(seconds, 5.0))
            foretold = {"forecast": first(pair)} if first else {}
            __, port = pair.start_secondary(options=options)
            primary = pair.start_primary(port, options=options)
            begun = time.monotonic()
            primary.wait(300, msg="state", state="protected")
            synced = time.monotonic() - begun
            time.sleep(1.0)
            found = Epochs()
            primary.tell_epochs(found)
            during = _rate(pair, max(seconds, EPOCHS * options.get("interval_ms", 0.0) / 1000))
            primary.tell_epochs(found)
        finally:
            pair.stop()
    return {
        "accelerator": accelerator, "dirty_pages": pages, "memory_mib": memory, "first_sync_s": round(synced, 2),
        "counts_s": [round(before, 1), round(during, 1)], **found.to_dict(), **foretold,
    }  # fmt: skip


def _rate(pair: Pair, seconds: float) -> float:
    """Rounds of the guest a second."""
    first, begun = pair.primary_vm.counts[-1], time.monotonic()
    time.sleep(seconds)
    return (pair.primary_vm.counts[-1] - first) / (time.monotonic() - begun)
