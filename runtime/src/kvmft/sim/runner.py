"""Many schedules on all processors: what was seen, what was violated, and how to see it again."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from kvmft.sim.schedule import run

BATCH = 500
"""Schedules that one process does before it tells what it found."""
COLLECT_EVERY = 200_000
"""Objects between two collections: a schedule is one heap of cycles that dies as a whole."""


@dataclass
class Tally:
    """What some schedules had. `seen` counts schedules by what came up in them at least once."""

    schedules: int = 0
    processor_seconds: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    violated: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take `other` in."""
        self.schedules += other.schedules
        self.processor_seconds += other.processor_seconds
        self.seen.update(other.seen)
        self.violated += other.violated


def batch(first: int, count: int) -> Tally:
    """Run the schedules of seeds `first` to `first + count - 1`."""
    begun = time.process_time()
    gc.set_threshold(COLLECT_EVERY)
    tally = Tally()
    for seed in range(first, first + count):
        result = run(seed)
        tally.schedules += 1
        tally.seen.update(result.counts.keys())
        if result.violations:
            tally.violated.append((seed, result.violations[0]))
    tally.processor_seconds = time.process_time() - begun
    return tally


def campaign(first: int, count: int, jobs: int | None = None) -> Tally:
    """Run `count` schedules from seed `first` on, in `jobs` processes (None: one per processor)."""
    starts = range(first, first + count, BATCH)
    sizes = [min(BATCH, first + count - start) for start in starts]
    total = Tally()
    if (jobs or os.cpu_count() or 1) == 1:
        results: Iterable[Tally] = map(batch, starts, sizes)
        for tally in results:
            total.add(tally)
        return total
    with ProcessPoolExecutor(jobs) as pool:
        for tally in pool.map(batch, starts, sizes):
            total.add(tally)
    return total


def report(first: int, tally: Tally, seconds: float) -> list[str]:
    """The lines that `./dev sim` prints."""
    seen = tally.seen
    rate = tally.schedules / max(1e-9, seconds)
    core = tally.schedules / max(1e-9, tally.processor_seconds)
    lines = [
        f"seeds                 {first} to {first + tally.schedules - 1}",
        f"schedules             {tally.schedules}",
        f"failovers             {seen['failover']}",
        f"planned switchovers   {seen['switchover']}",
        f"violations            {len(tally.violated)}",
        f"schedules per second  {rate:.0f} ({core:.0f} per second of one processor)",
        "schedules that had",
    ]
    lines += [f"  {name:32s} {number}" for name, number in sorted(seen.items())]
    for seed, text in tally.violated[:10]:
        lines += [f"VIOLATED {text}", f"  replay: ./dev sim --seed {seed} --trace"]
    return lines
