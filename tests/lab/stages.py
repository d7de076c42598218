"""What `./dev test` runs, stage by stage, and `./dev clean`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.lab import images
from tests.lab.lab import ROOT, Lab

DEFAULT_STAGES = ("lint", "unit", "sim", "pair", "e2e")
STAGES = (*DEFAULT_STAGES, "bench")
BIN = Path(sys.executable).parent
FOLDERS = {"unit": "tests/unit", "sim": "tests/sim", "pair": "tests/pair", "e2e": "tests/e2e",
           "bench": "tests/bench"}  # fmt: skip


def run(only: list[str] | None, lab: Lab) -> int:
    """Run the stages in order; the number of failed ones is the exit status."""
    lines = []
    failed = 0
    for stage in only or DEFAULT_STAGES:
        begun = time.monotonic()
        print(f"\n== {stage} ==", flush=True)
        codes = [_command(command, lab) for command in _commands(stage)]
        bad = sum(code != 0 for code in codes)
        failed += bool(bad)
        state = "failed" if bad else "passed"
        lines.append(f"{stage:6} {state:7} {time.monotonic() - begun:7.1f} s")
    print("\n" + "\n".join(lines), flush=True)
    return failed


def _commands(stage: str) -> list[list[str]]:
    if stage == "lint":
        return [
            [str(BIN / "ruff"), "check", "runtime/src", "tests", *_existing("plugins")],
            [str(BIN / "mypy"), "runtime/src"],
            *([[str(BIN / "ansible-lint"), "--offline", "-q", "playbooks", "roles"]]
              if Path(ROOT / "playbooks").exists() else []),
        ]  # fmt: skip
    folder = ROOT / FOLDERS[stage]
    if not any(folder.rglob("test_*.py")):
        print(f"{FOLDERS[stage]} holds no tests", flush=True)
        return [["false"]]
    return [[sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]]


def _existing(*names: str) -> list[str]:
    return [name for name in names if (ROOT / name).exists()]


def _command(command: list[str], lab: Lab) -> int:
    environment = {
        **os.environ,
        **lab.ansible_environment(),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime/src'}",
        "KVMFT_LAB": lab.name,
        "KVMFT_RELEASE": lab.release,
    }
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def clean(lab: Lab) -> int:
    """Remove every lab of this machine, results, the virtual environment and the image cache."""
    for base in sorted(lab.base.parent.glob("*")):
        Lab(base.name).down()
    lab.down()
    for path in (ROOT / "build", ROOT / ".venv", images.CACHE):
        shutil.rmtree(path, ignore_errors=True)
    return 0
