"""The runtime role does not leave VMs without their agent. Only dry runs: it would take kvmft from this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("known", [True, False])
def test_the_runtime_stays_while_a_vm_is_known(
    tmp_path: Path, collections: Path, known: bool
) -> None:
    (tmp_path / "data" / "vm" / "db1").mkdir(parents=True)
    name = "state.json" if known else "claims.json"
    (tmp_path / "data" / "vm" / "db1" / name).write_text("{}")
    play = [{"hosts": "localhost", "gather_facts": False, "roles": ["kvmft.core.runtime"], "vars": {
        "kvmft_runtime_state": "absent", "kvmft_runtime_data": str(tmp_path / "data"),
        "kvmft_management_address": "192.0.2.1", "kvmft_ft_address": "10.0.0.1",
        "kvmft_migration_address": "10.1.0.1", "ansible_python_interpreter": "/usr/bin/python3",
    }}]  # fmt: skip
    (tmp_path / "play.json").write_text(json.dumps(play))
    host = {"ansible_connection": "local"}
    (tmp_path / "inventory.json").write_text(json.dumps({"kvmft_hosts": {"hosts": {"localhost": host}}}))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventory.json", "--check",
         "play.json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_NOCOLOR": "1",
             "ANSIBLE_PIPELINING": "1", "ANSIBLE_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    output = " ".join((done.stdout + done.stderr).split())
    assert (done.returncode != 0) == known, output
    assert ("protects, or has a replica of, db1." in output) == known
    assert (tmp_path / "data" / "vm" / "db1" / name).exists()
