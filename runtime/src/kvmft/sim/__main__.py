"""`python -m kvmft.sim`: run schedules, replay one, look for planted bugs, write golden logs."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

from kvmft.sim.mutants import MUTANTS, plant

CHUNK = 500


def _chunk(bounds: tuple[int, int]) -> tuple[Counter[str], list[tuple[int, str]], int]:
    from kvmft.sim.schedule import run

    counts: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []
    for seed in range(*bounds):
        result = run(seed)
        counts.update(result.counts)
        bad += [(seed, text) for text in result.violations]
    return counts, bad, bounds[1] - bounds[0]


def _chunks(first: int, count: int) -> Iterator[tuple[int, int]]:
    for start in range(first, first + count, CHUNK):
        yield start, min(start + CHUNK, first + count)


def schedules(first: int, count: int, jobs: int) -> int:
    """Run `count` schedules from seed `first` on; 1 when one of them violated an invariant."""
    begun = time.monotonic()
    counts: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []
    done, told = 0, 0.0
    with multiprocessing.Pool(jobs) as pool:
        for found, wrong, number in pool.imap_unordered(_chunk, _chunks(first, count)):
            counts.update(found)
            bad += wrong
            done += number
            if sys.stderr.isatty() and time.monotonic() - told > 1:
                told = time.monotonic()
                print(f"\r{done} of {count}", end="", file=sys.stderr)
    seconds = time.monotonic() - begun
    for name, number in sorted(counts.items()):
        print(f"  {name:32s} {number}")
    print(f"seeds                 {first} to {first + count - 1}")
    print(f"schedules             {done}")
    print(f"failovers             {counts['failover']}")
    print(f"planned switchovers   {counts['switchover']}")
    print(f"cold boots            {counts['cold boot']}")
    print(f"violations            {len(bad)}")
    print(f"schedules per second  {done / seconds:.0f} ({jobs} processes, {seconds:.0f} s)")
    for seed, text in sorted(bad)[:20]:
        print(f"seed {seed}: {text}\n  replay it: ./dev sim --seed {seed}")
    return 1 if bad else 0


def replay(seed: int) -> int:
    """Print the log of one schedule."""
    from kvmft.sim.schedule import run

    result = run(seed, trace=True)
    print("\n".join(result.log))
    return 1 if result.violations else 0


def hunt(name: str, limit: int) -> int:
    """In a process of its own: plant one bug and look for it; prints what found it."""
    plant(next(mutant for mutant in MUTANTS if mutant.name == name))
    from kvmft.sim.schedule import run

    for seed in range(limit):
        try:
            violations = run(seed).violations
        except (AssertionError, IndexError, ValueError) as error:
            violations = [f"crash: {error!r}"]
        if violations:
            print(f"{seed + 1} {violations[0]}")
            return 0
    return 1


def mutants(limit: int, jobs: int, only: str | None = None) -> int:
    """Look for every planted bug; 1 when one is not found within `limit` schedules."""
    chosen = [mutant for mutant in MUTANTS if only in (None, mutant.name)]
    missed = 0
    waiting = list(chosen)
    running: list[tuple[str, subprocess.Popen[str]]] = []
    why = {mutant.name: mutant.why for mutant in chosen}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0).name
            command = [sys.executable, "-m", "kvmft.sim", "--hunt", name, "--schedules", str(limit)]
            running.append((name, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
        name, process = running.pop(0)
        out, _ = process.communicate()
        if process.returncode == 0:
            number, text = out.strip().split(" ", 1)
            print(f"found   {name:34s} after {number:>5s} schedules, by {text[:60]}", flush=True)
        else:
            missed += 1
            print(f"MISSED  {name:34s} within {limit} schedules ({why[name]})", flush=True)
    print(f"{len(chosen)} planted bugs, {missed} not found")
    return 1 if missed else 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `./dev sim`."""
    parser = argparse.ArgumentParser(prog="dev sim", description=__doc__)
    parser.add_argument("--schedules", type=int, default=20000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="replay one schedule and print its log")
    parser.add_argument("--mutants", action="store_true", help="look for every planted bug")
    parser.add_argument("--mutant", help="look for one planted bug")
    parser.add_argument("--hunt", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.hunt:
        return hunt(options.hunt, options.schedules)
    if options.seed is not None:
        return replay(options.seed)
    if options.mutants or options.mutant:
        return mutants(min(options.schedules, 10000), options.jobs, options.mutant)
    return schedules(options.first, options.schedules, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
