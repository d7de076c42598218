"""What an epoch costs in counts that no machine's mood changes; times are printed and decide nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvmft.report.epochs import Epochs
from tests.bench import dirtyguest
from tests.bench.engine import OPTIONS, memory_for
from tests.pair.conftest import ACCELERATORS
from tests.pair.harness import Machine, Pair, Worker, wait_for

PAGES = 1000
SECONDS = 4.0
WINDOWS = 4
"""Blocks of memory are compared so often: what epochs leave behind is seen each time, a cache that fills is not."""
COUNTING = """
import collections, sys
from kvmft.adapters import ftlog, memory, qmp, reactor
from kvmft.worker import stats
counts = collections.Counter()
def counted(owner, name, label, amount=lambda result: 1):
    real = getattr(owner, name)
    def call(*given, **named):
        result = real(*given, **named)
        counts[label] += amount(result)
        return result
    setattr(owner, name, call)
counted(qmp.SocketMonitor, "batch", "round_trips")
counted(memory.GuestMemory, "collect", "scans")
counted(memory.GuestMemory, "read", "bytes_copied", int)
counted(memory._libc, "process_vm_readv", "copy_calls")
counted(reactor.Reactor, "step", "turns")
counted(ftlog.LogStream, "_flush", "flushes")
stats.WINDOW = 20
newer = stats.EpochStats.newer
def with_costs(self, now, since):
    totals = self.totals(0)
    return {**newer(self, now, since), "costs": dict(counts), "epochs": totals["epochs"], "pages": totals["pages"],
            "blocks": sys.getallocatedblocks()}
stats.EpochStats.newer = with_costs
"""


WHOLE = {**OPTIONS, "delta_mib": 0}
"""Options: pages are sent whole."""


@pytest.fixture(params=[*((accelerator, OPTIONS) for accelerator in ACCELERATORS), ("tcg", WHOLE)],
                ids=lambda each: each[0] + ("-whole" if each[1] is WHOLE else ""))  # fmt: skip
def counted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Worker, int]]:
    """A primary that counts, of a guest that changes a word of PAGES all the time; and what it may send, in bytes a page."""
    accelerator, options = request.param
    boot = partial(dirtyguest.write_disk, pages=PAGES)
    pair = Pair(tmp_path, accelerator, machine=Machine(memory_for(PAGES), write_disk=boot))
    try:
        wait_for("the guest counting", lambda: pair.primary_vm.counts, 30)
        __, port = pair.start_secondary(options=options)
        primary = pair.start_primary(port, COUNTING, options=options)
        primary.wait(msg="state", state="protected")
        # The windows of the last epochs are full then, and numpy's free lists of small arrays, whose sizes differ by epoch.
        time.sleep(1.0 if options is WHOLE else 8.0)
        yield primary, 4500 if options is WHOLE else 200
    finally:
        pair.stop()


def ask(worker: Worker, found: Epochs) -> dict[str, Any]:
    worker.messages.clear()
    return worker.tell_epochs(found) | {"log_bytes": worker.wait(msg="status")["totals"]["log_bytes"]}


def test_counts_of_an_epoch_stay_what_they_are(counted: tuple[Worker, int]) -> None:
    primary, most = counted
    found = Epochs()
    looks = [ask(primary, found)]
    for __ in range(WINDOWS):
        time.sleep(SECONDS / WINDOWS)
        looks.append(ask(primary, found))
    before, after = looks[0], looks[-1]
    epochs = after["epochs"] - before["epochs"]
    assert epochs >= 20
    each = {name: (after["costs"][name] - count) / epochs for name, count in before["costs"].items()}
    pages = (after["pages"] - before["pages"]) / epochs
    sent = (after["log_bytes"] - before["log_bytes"]) / epochs
    left = [(new["blocks"] - old["blocks"]) / (new["epochs"] - old["epochs"]) for old, new in pairwise(looks)]
    print(f"\n{epochs} epochs of {pages:.0f} pages: {each}; {sent:.0f} bytes sent; "
          f"{left} blocks left by each; pauses of the last 20 in ms: {sorted(round(ms, 2) for ms in found.values['pause_ms'])}")  # fmt: skip
    # stop and save together, then cont; and now and then a look at the mirrors.
    assert 1.9 < each["round_trips"] < 2.2
    assert 1.9 < each["scans"] < 2.1, "one when the VM stands still, one for what devices write while they are saved"
    assert each["copy_calls"] < 3, "pages are copied in batches of 1024 ranges"
    assert each["bytes_copied"] / (pages * 4096) < 1.1, "a page is copied once"
    assert sent / pages < most, "besides the pages, or their changed words, the device state and little else is sent"
    assert each["turns"] < 25 and each["flushes"] < 12
    assert min(left) < 2, f"an epoch leaves nothing behind: {left}"
