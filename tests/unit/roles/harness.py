"""Runs plays with the collection's roles on this machine, with folders of a test as hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
SYSTEMCTL = """#!/bin/sh
echo "$@" >>{calls}
for unit in "$@"; do :; done
unit="${{unit%.service}}"
case "$1" in
    status) [ -e {folder}/"$unit".active ] || exit 3 ;;
    show) [ -e {folder}/"$unit".active ] && echo ActiveState=active || echo ActiveState=inactive; echo LoadState=loaded ;;
esac
"""


class Controller:
    """A folder with an inventory, from which playbooks run; commands in `bin` go before the machine's."""

    def __init__(self, folder: Path, inventory: dict[str, Any]) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.calls = folder / "systemctl.calls"
        self.bin.mkdir()
        self.command("systemctl", SYSTEMCTL.format(calls=self.calls, folder=folder))
        everywhere = inventory.setdefault("all", {}).setdefault("vars", {})
        everywhere |= {
            "ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_become": False,
        }  # fmt: skip
        (folder / "inventory.yml").write_text(yaml.safe_dump(inventory))
        collections = folder / "collections" / "ansible_collections" / "kvmft"
        collections.mkdir(parents=True)
        (collections / "core").symlink_to(ROOT)

    def command(self, name: str, text: str) -> None:
        """Put a command in the place of the machine's."""
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def active(self, unit: str, yes: bool = True) -> None:
        """What the stand-in for systemctl says of `unit`."""
        path = self.folder / f"{unit.removesuffix('.service')}.active"
        path.touch() if yes else path.unlink(missing_ok=True)

    def systemctl(self, verb: str) -> list[str]:
        """The calls of systemctl with `verb`."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line for line in lines if line.split()[0] == verb]

    def play(self, plays: list[dict[str, Any]], *arguments: str) -> tuple[int, str]:
        """Run plays; see `run`."""
        (self.folder / "play.yml").write_text(yaml.safe_dump(plays))
        return self.run("play.yml", *arguments)

    def run(self, playbook: str | Path, *arguments: str) -> tuple[int, str]:
        """(changed tasks of all hosts, or -1 when it failed; output)."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventory.yml",
             str(playbook), *arguments],
            cwd=self.folder, capture_output=True, text=True, check=False, timeout=240,
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(self.folder / "collections"),
                 "ANSIBLE_HOME": str(self.folder / "home"), "ANSIBLE_NOCOLOR": "1",
                 "ANSIBLE_PIPELINING": "1", "LC_ALL": "C.UTF-8",
                 "PATH": f"{self.bin}:{os.environ['PATH']}"},
        )  # fmt: skip
        output = done.stdout + done.stderr
        if done.returncode:
            return -1, output
        return sum(int(each) for each in re.findall(r"changed=(\d+)", done.stdout)), output
