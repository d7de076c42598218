"""Ansible's own modules are kept put together between runs, and those of collections never."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.lab.lab import ROOT

PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.stat: {path: /}
    - kvmft.core.ft_host_info: {socket_path: /nowhere}
      ignore_errors: true
"""


def play(folder: Path) -> int:
    (folder / "play.yml").write_text(PLAY)
    core = folder / "collections" / "ansible_collections" / "kvmft" / "core"
    core.parent.mkdir(parents=True, exist_ok=True)
    if not core.exists():
        core.symlink_to(ROOT)
    return subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "play.yml"], cwd=folder, check=False, capture_output=True,
        env={**os.environ, "ANSIBLE_HOME": str(folder / "home"), "ANSIBLE_COLLECTIONS_PATH": str(folder / "collections"),
             "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "tools" / "ansible"),
             "ANSIBLE_CALLBACKS_ENABLED": "modules_kept", "KVMFT_MODULES_KEPT": str(folder / "kept")},
    ).returncode  # fmt: skip


def test_what_is_kept_is_ansibles_own_and_is_used(tmp_path: Path) -> None:
    assert play(tmp_path) == 0
    (kept,) = (each for each in (tmp_path / "kept").rglob("*") if each.is_file())
    assert kept.name.startswith("ansible.modules.stat-")
    assert play(tmp_path) == 0
    kept.write_bytes(b"no archive")
    assert play(tmp_path) != 0, "it was put together again"
