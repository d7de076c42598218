"""`./dev faults`: run the rows of the failure table against a protected guest, again and again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import cli, guests
from tests.lab.faults import report
from tests.lab.faults.frames import Takeover, count
from tests.lab.faults.ground import SERVERS, Broken, Ground, Sides
from tests.lab.faults.judge import problems_of
from tests.lab.faults.load import Load, Recorder
from tests.lab.faults.rows import ROWS, Row
from tests.lab.faults.timeline import BOTH_CLAIM_SECONDS, Timeline, double_claims
from tests.lab.lab import ROOT, Lab

LOAD_BEFORE = 1.5
LOAD_AFTER = 1.5
ANSWER_SECONDS = 90.0
PROTECT_SECONDS = 90.0
FAULTS = (RuntimeError, OSError, subprocess.SubprocessError, ValueError, KeyError)
"""What may go wrong in a row: it is recorded, and the next row gets a mended lab."""


@dataclass
class Result:
    """One run of one row. Times in milliseconds where the name says so, else seconds."""

    row: str
    run: int
    guest: str
    release: str
    primary: str = ""
    lost: int = 0
    duplicates: int = 0
    second_active: int = 0
    late_frames: int = 0
    """Frames of the old side after the takeover that were output of the commit taken over."""
    linearizable: bool = True
    resets: int = 0
    operations: int = 0
    open_operations: int = 0
    gap_ms: float | None = None
    bound_ms: float | None = None
    moved: bool | None = None
    reprotected_s: float | None = None
    audit_pages: int | None = None
    audit_different: int | None = None
    both_claimed_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def slow(self) -> bool:
        """True when the gap is above the row's bound; a matter of speed, not of safety."""
        return None not in (self.gap_ms, self.bound_ms) and self.gap_ms > self.bound_ms  # type: ignore[operator]


class Run:
    """One run of one row: clients and recorders around the injection. It is the injection's Watch."""

    def __init__(self, ground: Ground, row: Row, result: Result, folder: Path) -> None:
        self._ground = ground
        self._row = row
        self._result = result
        self._folder = folder
        self._injected = 0.0
        self._load: Load
        self._timeline: Timeline

    def last_answer(self) -> float:
        return self._load.last_answer()

    def problem(self, text: str) -> None:
        self._result.problems.append(text)

    def note(self, text: str) -> None:
        self._result.notes.append(text)

    def shown(self, host: str, state: str, word: str = "") -> bool:
        return any(each.host == host and each.state == state and word in each.reason
                   for each in self._timeline.since(self._injected))  # fmt: skip

    def go(self, sides: Sides) -> None:
        """Load, fault, load, protected again, verdict."""
        lab, guest, result = self._ground.lab, self._ground.guest, self._result
        wall = time.time()
        recorder = Recorder(lab, guest, self._folder)
        self._load = Load(lab, guest, self._folder, f"{self._row.name[:20]}{os.getpid() % 10000}_{result.run}")
        self._timeline = Timeline(self._ground)
        after: Sides | None = None
        try:
            if not self._load.wait_answer(0, 30):
                raise Broken("the clients get no answer before the fault")
            time.sleep(LOAD_BEFORE)
            self._injected = time.monotonic()
            try:
                self._row.inject(self._ground, sides, self)
            except Broken as error:
                self.problem(str(error))
                self._ground.calm()
            after = self._recover(sides)
        finally:
            ended = time.monotonic()
            self._timeline.end(self._folder / "shown.jsonl")
            self._load.end()
            frames = recorder.end()
            events = {host: self._ground.events(host, wall) for host in SERVERS}
            (self._folder / "events.json").write_text(json.dumps(events, indent=1))
        verdict = self._load.judge(self._injected)
        result.operations, result.open_operations = verdict.operations, verdict.open
        result.lost, result.duplicates = verdict.lost, verdict.duplicates
        result.linearizable, result.resets = verdict.linearizable, verdict.resets
        result.gap_ms = None if verdict.gap is None else round(verdict.gap * 1000, 1)
        result.sentences += verdict.sentences
        result.problems += problems_of(verdict, self._row.resets)
        taken = [Takeover(host, event["time"]) for host, found in events.items() for event in found
                 if event["event"] in ("activated", "cold_boot")]  # fmt: skip
        counted = count(frames, taken)
        result.second_active, result.late_frames = counted.second_active, counted.late
        if result.second_active:
            self.problem(f"{result.second_active} frames of a second active side were seen")
        shown = self._timeline.since(self._injected)
        result.both_claimed_s = round(double_claims(shown, ended), 2)
        if result.both_claimed_s > BOTH_CLAIM_SECONDS:
            self.problem(f"both hosts called themselves primary for {result.both_claimed_s} s")
        if self._row.stays:
            left = [each for each in shown if each.state not in ("protected", None)]
            if left:
                self.problem(f"protection was left: {left[0].host} {left[0].state} ({left[0].reason})")
        if after is not None:
            self._audit(after)

    def _recover(self, sides: Sides) -> Sides | None:
        """Wait for the service and for protection; who is who then."""
        healed = time.monotonic()
        if not self._load.wait_answer(healed, ANSWER_SECONDS):
            self.problem(f"no answer within {ANSWER_SECONDS:.0f} s after the fault: {self._ground.told()}")
        time.sleep(LOAD_AFTER)
        try:
            after = self._ground.wait_protected(PROTECT_SECONDS)
        except Broken as error:
            self.problem(f"{error}")
            return None
        left = [each.at for each in self._timeline.since(self._injected) if each.state != "protected"]
        back = max(left, default=healed)
        stamps = [each.at for each in self._timeline.since(back) if each.state == "protected"]
        self._result.reprotected_s = round(max(max(stamps, default=back) - healed, 0.0), 1)
        self._result.moved = after.primary != sides.primary
        if self._row.moves is not None and self._row.moves != self._result.moved:
            self.problem(f"the VM runs on {after.primary}; it was on {sides.primary}")
        return after

    def _audit(self, sides: Sides) -> None:
        text = self._ground.sh(sides.primary, f"kvmft audit {self._ground.guest.name} --json", check=False)
        try:
            found = json.loads(text)
        except ValueError:
            self.problem(f"no audit: {text.strip()[:200]}")
            return
        self._result.audit_pages, self._result.audit_different = found["pages"], found["different"]
        if found["different"]:
            self.problem(f"{found['different']} pages of the replica differ")


def prepare(lab: Lab, guest: guests.Guest) -> Ground:
    """A lab of its own with small storage pools, and a protected guest in it."""
    ground = Ground(lab, guest)
    # The small pools are of one size; a lab of another kind is not this campaign's.
    if any(lab.is_on(host) for host in SERVERS) and not ground.has_pools(guest):
        lab.down()
    ground.make_pools()
    lab.up()
    ground.calm()
    _set_up(lab)
    try:
        ground.protect()
    except FAULTS:
        ground.start_over()
    return ground


def _set_up(lab: Lab) -> None:
    """site.yml, unless this very wheel and these very roles were set up in this lab already."""
    cli.build_wheel()
    sources = [path for top in ("roles", "playbooks", "plugins") for path in (ROOT / top).rglob("*")
               if path.is_file()]  # fmt: skip
    stamp = hashlib.sha256()
    for path in sorted(sources):
        stamp.update(path.read_bytes())
    marker = lab.base / "faults-site"
    if marker.exists() and marker.read_text() == stamp.hexdigest():
        return
    marker.unlink(missing_ok=True)
    cli.playbook(lab, "site", "-e", "kvmft_storage_min_free_mb=64", quiet=True)
    marker.write_text(stamp.hexdigest())


def run_row(ground: Ground, row: Row, number: int, base: Path) -> Result:
    """One run of one row, whatever happens in it."""
    result = Result(row.name, number, ground.guest.name, ground.lab.release)
    result.bound_ms = None if row.bound is None else row.bound * 1000
    begun = time.monotonic()
    folder = base / f"{row.name}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        sides = ready(ground, result)
        result.primary = sides.primary
        Run(ground, row, result, folder).go(sides)
    except FAULTS as error:
        result.problems.append(f"{type(error).__name__}: {error}")
        _calm(ground, result)
    if result.problems:
        _keep_logs(ground, folder)
        _clean_up(ground, row, result)
    result.seconds = round(time.monotonic() - begun, 1)
    (folder / "result.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    return result


def ready(ground: Ground, result: Result) -> Sides:
    """The protected guest; made anew when it does not come by itself."""
    try:
        return ground.wait_protected(20)
    except Broken as error:
        result.notes.append(f"before: {error}")
    ground.calm()
    try:
        return ground.wait_protected(40)
    except Broken:
        result.notes.append("the VM was made anew before this run")
        ground.start_over()
        return ground.wait_protected(60)


def _clean_up(ground: Ground, row: Row, result: Result) -> None:
    """What one run did to the guest's data must not be found by the next one."""
    if result.lost or not result.linearizable or not result.operations or row.needs_pool:
        try:
            ground.start_over()
        except FAULTS as error:
            result.notes.append(f"the VM could not be made anew: {error}")


def _calm(ground: Ground, result: Result) -> None:
    try:
        ground.calm()
    except FAULTS as error:
        result.notes.append(f"the fault was not ended: {error}")


def _keep_logs(ground: Ground, folder: Path) -> None:
    for host in SERVERS:
        try:
            text = ground.sh(host, "journalctl -u kvmft-agent -n 200 --no-pager; "
                             f"tail -n 30 /var/log/libvirt/qemu/{ground.guest.name}.log", check=False)  # fmt: skip
        except FAULTS as error:
            text = str(error)
        (folder / f"{host}.log").write_text(text)


def choose(names: str | None, long: bool) -> list[Row]:
    """The rows of that names (comma-separated; a name ending in `*` is a prefix), or all."""
    if names is None:
        return [row for row in ROWS if long or not row.long]
    chosen = []
    for name in names.split(","):
        found = [row for row in ROWS
                 if row.name == name or (name.endswith("*") and row.name.startswith(name[:-1]))]  # fmt: skip
        if not found:
            raise SystemExit(f"dev: there is no row {name!r}; rows are {', '.join(row.name for row in ROWS)}.")
        chosen += found
    return chosen


def main(runs: int, names: str | None, guest_kind: str, long: bool, release: str, keep: bool,
         more: bool) -> int:  # fmt: skip
    """The whole campaign; 1 when anything that must be zero is not. `more`: add to the earlier runs."""
    rows = choose(names, long)
    guest = guests.QUICK if guest_kind == "quick" else guests.POSTGRES
    lab = Lab(os.environ.get("KVMFT_LAB", "faults"), release)
    base = ROOT / "build" / "faults"
    path = ROOT / "build" / "faults.json"
    results = load_results(path) if more else []
    before = {row.name: sum(each["row"] == row.name for each in results) for row in rows}
    failed = False
    try:
        ground = prepare(lab, guest)
        for number in range(1, runs + 1):
            for row in rows:
                result = run_row(ground, row, before[row.name] + number, base)
                results.append(asdict(result))
                failed = failed or bool(result.problems)
                print(report.run_line(asdict(result), result.slow), flush=True)
                report.write(path, results, ROWS)
    finally:
        if not keep:
            lab.down()
    print()
    print(report.table(results, ROWS))
    print(f"\nEvery run: {path.relative_to(ROOT)}; histories, frames and events: {base.relative_to(ROOT)}")
    return int(failed)


def load_results(path: Path) -> list[dict[str, Any]]:
    """Results written earlier; none when there are none."""
    return list(json.loads(path.read_text())["runs"]) if path.exists() else []
