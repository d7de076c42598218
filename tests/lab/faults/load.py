"""The clients of a run and the recorder of frames, as processes in the lab's network."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.lab import guests
from tests.lab.demo import stored_rows
from tests.lab.faults import frames
from tests.lab.faults.judge import Verdict, judge_postgres, judge_quick
from tests.lab.lab import ROOT, Lab

FINISH_SECONDS = 200.0


class Process:
    """A Python module in the lab's network that runs until its standard input closes."""

    def __init__(self, lab: Lab, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            lab.inside(sys.executable, "-m", module, *arguments), stdin=subprocess.PIPE, cwd=ROOT
        )

    def end(self, seconds: float = 30) -> None:
        """Close its standard input and wait for it; it is killed when it does not end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def alive(self) -> bool:
        """True while it runs."""
        return self._process.poll() is None


class Recorder:
    """tests/lab/faults/frames.py."""

    def __init__(self, lab: Lab, guest: guests.Guest, folder: Path) -> None:
        self._path = folder / "frames.txt"
        self._process = Process(lab, "tests.lab.faults.frames", guest.mac, str(self._path))

    def end(self) -> list[frames.Frame]:
        """Stop; what was recorded."""
        self._process.end()
        with self._path.open(encoding="utf-8") as file:
            return frames.parse(file)


class Load:
    """The clients of one run, whatever the guest."""

    def __init__(self, lab: Lab, guest: guests.Guest, folder: Path, run: str) -> None:
        self._lab = lab
        self._guest = guest
        self._path = folder / "client.jsonl"
        self._path.write_text("")
        self._offset = 0
        self._last = 0.0
        if guest.kind == "quick":
            arguments = ["tests.lab.faults.client", guest.address, "7001", str(self._path), run]
        else:
            arguments = ["tests.lab.client", guest.address, str(self._path)]
        self._process = Process(lab, *arguments)

    def last_answer(self) -> float:
        """When the echo was answered last, CLOCK_MONOTONIC seconds; 0: never."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                if b'"kind": "echo"' in line:
                    entry = json.loads(line)
                    self._last = entry.get("at") or entry["answered"]
        return self._last

    def wait_answer(self, after: float, seconds: float) -> bool:
        """Whether an answer later than `after` comes within `seconds`."""
        until = time.monotonic() + seconds
        while self.last_answer() <= after:
            if time.monotonic() > until or not self._process.alive:
                return False
            time.sleep(0.1)
        return True

    def end(self) -> None:
        """Let the clients finish what is under way and read everything once more."""
        self._process.end(FINISH_SECONDS)

    def judge(self, injected: float) -> Verdict:
        """What the history says."""
        with self._path.open(encoding="utf-8") as file:
            if self._guest.kind == "quick":
                return judge_quick(file, injected)
            try:
                stored = stored_rows(self._lab)
            except (RuntimeError, subprocess.SubprocessError):
                stored = None
            return judge_postgres(file, injected, stored)
