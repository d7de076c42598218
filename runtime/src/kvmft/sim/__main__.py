"""`./dev sim`: schedules, one schedule with its log, planted bugs, or the golden scenarios."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from kvmft.sim import mutants, runner, scenario
from kvmft.sim.schedule import run


def parser() -> argparse.ArgumentParser:
    """The options of `./dev sim`."""
    result = argparse.ArgumentParser(prog="dev sim", description=__doc__)
    result.add_argument("--schedules", type=int, default=20000)
    result.add_argument("--first", type=int, default=0, help="the first seed")
    result.add_argument("--jobs", type=int, help="processes; default: one per processor")
    result.add_argument("--seed", type=int, help="run this one schedule only")
    result.add_argument("--trace", action="store_true", help="with --seed: print its event log")
    result.add_argument("--mutants", action="store_true", help="plant bugs; each must be found")
    result.add_argument("--bound", type=int, default=10000, help="schedules per planted bug")
    result.add_argument("--scenarios", type=Path, default=Path("tests/scenarios"))
    result.add_argument("--golden", action="store_true", help="compare the golden scenarios")
    result.add_argument("--write-golden", action="store_true", help="write their logs anew")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Do what was asked; 1 when something was violated, not found, or different."""
    options = parser().parse_args(arguments)
    if options.mutants:
        return _mutants(options.bound, options.jobs)
    if options.golden or options.write_golden:
        return _golden(options.scenarios, options.write_golden)
    if options.seed is not None:
        return _one(options.seed, options.trace)
    begun = time.monotonic()
    tally = runner.campaign(options.first, options.schedules, options.jobs)
    print("\n".join(runner.report(options.first, tally, time.monotonic() - begun)))
    return 1 if tally.violated else 0


def _one(seed: int, trace: bool) -> int:
    result = run(seed, trace)
    print("\n".join(result.log if trace else [f"{name}: {n}" for name, n in result.counts.items()]))
    for text in result.violations:
        print(f"VIOLATED {text}")
    return 1 if result.violations else 0


def _mutants(bound: int, jobs: int | None) -> int:
    missed = 0
    for name, found in mutants.hunt_all(bound, jobs):
        if found is None:
            missed += 1
            print(f"{name:44s} NOT FOUND in {bound} schedules", flush=True)
        else:
            print(f"{name:44s} {found.invariant:10s} {found.schedules:6d} schedules", flush=True)
    print(f"{len(mutants.MUTANTS)} planted bugs, {missed} not found")
    return 1 if missed else 0


def _golden(folder: Path, write: bool) -> int:
    different = 0
    for path in sorted(folder.glob("*.txt")):
        log = "\n".join(scenario.play(path.read_text(encoding="utf-8"))) + "\n"
        expected = path.with_suffix(".log")
        if write:
            expected.write_text(log, encoding="utf-8")
        elif not expected.exists() or expected.read_text(encoding="utf-8") != log:
            different += 1
            print(f"{path.stem}: its log is another one than {expected}")
    print(f"{len(list(folder.glob('*.txt')))} scenarios, {different} different")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
