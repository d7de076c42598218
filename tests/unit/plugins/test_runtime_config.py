"""What the runtime role writes to kvmft.yml is what the agent reads, for each kind of arbiter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvmft.agent.config import parse

from .conftest import ROOT

PROGRAM = Path(sys.executable).parent / "ansible-playbook"


def _host(last: int) -> dict[str, Any]:
    return {
        "ansible_connection": "local", "ansible_python_interpreter": sys.executable,
        "kvmft_management_address": f"192.0.2.{last}", "kvmft_ft_address": f"10.91.0.{last}",
        "kvmft_migration_address": f"10.92.0.{last}",
    }  # fmt: skip


def _written(tmp_path: Path, collections: Path, given: dict[str, Any], witness: bool) -> dict[str, Any]:
    arbiters = {"witness": {"kvmft_management_address": "192.0.2.13"}} if witness else {}
    inventory = {
        "kvmft_hosts": {"hosts": {"node-a": _host(11), "node-b": _host(12)},
                        "vars": {"kvmft_cluster_id": "c" * 32, **given}},
        "kvmft_arbiter": {"hosts": arbiters},
    }  # fmt: skip
    # A role's defaults give way to the inventory; a file of variables would not.
    defaults = yaml.safe_load((ROOT / "roles" / "runtime" / "defaults" / "main.yml").read_text())
    kept = {name: value for name, value in defaults.items() if name not in (*given, "kvmft_cluster_id")}
    play = [{
        "hosts": "node-a", "gather_facts": False, "vars": kept,
        "tasks": [{"ansible.builtin.template": {
            "src": str(ROOT / "roles" / "runtime" / "templates" / "kvmft.yml.j2"),
            "dest": str(tmp_path / "kvmft.yml"), "mode": "0600"}}],
    }]  # fmt: skip
    (tmp_path / "inventory.json").write_text(json.dumps(inventory))
    (tmp_path / "play.json").write_text(json.dumps(play))
    done = subprocess.run(
        [str(PROGRAM), "-i", "inventory.json", "play.json"], cwd=tmp_path, capture_output=True,
        text=True, timeout=120, check=False,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_NOCOLOR": "1",
             "ANSIBLE_HOME": str(tmp_path / "home"), "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return parse(yaml.safe_load((tmp_path / "kvmft.yml").read_text())).arbiter


TLS = {"ca": "/etc/kvmft/pki/ca.pem", "cert": "/etc/kvmft/pki/host.pem", "key": "/etc/kvmft/pki/host.key"}


@pytest.mark.parametrize(
    ("given", "witness", "arbiter"),
    [
        ({}, True, {"type": "etcd", "endpoints": ["https://192.0.2.13:2379"], "tls": TLS}),
        ({}, False, {"type": "none"}),
        ({"kvmft_arbiter": {"type": "file", "directory": "/srv/kvmft-arbiter"}}, False,
         {"type": "file", "directory": "/srv/kvmft-arbiter"}),
        ({"kvmft_arbiter": {"type": "etcd", "endpoints": ["https://e1:2379"]}}, False,
         {"type": "etcd", "endpoints": ["https://e1:2379"], "tls": TLS}),
        ({"kvmft_arbiter": {"type": "etcd", "endpoints": ["https://e3:2379"],
                            "tls": {"ca": "/a/ca", "cert": "/a/c", "key": "/a/k"}}}, False,
         {"type": "etcd", "endpoints": ["https://e3:2379"],
          "tls": {"ca": "/a/ca", "cert": "/a/c", "key": "/a/k"}}),
        ({"kvmft_arbiter_endpoints": ["https://e2:2379"]}, False,
         {"type": "etcd", "endpoints": ["https://e2:2379"], "tls": TLS}),
        ({"kvmft_arbiter": {"type": "none"}}, True, {"type": "none"}),
    ],
    ids=["witness", "nothing", "file", "etcd of one's own", "with its certificates", "endpoints alone", "none on purpose"],
)  # fmt: skip
def test_each_kind_of_arbiter_reaches_the_agent(
    tmp_path: Path, collections: Path, given: dict[str, Any], witness: bool, arbiter: dict[str, Any]
) -> None:
    assert _written(tmp_path, collections, given, witness) == arbiter
