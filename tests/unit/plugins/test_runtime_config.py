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


TLS = {"ca": "/etc/kvmft/pki/ca.pem", "cert": "/etc/kvmft/pki/host.pem", "key": "/etc/kvmft/pki/host.key"}
OTHER = {"ca": "/a/ca", "cert": "/a/c", "key": "/a/k"}
# What is given, whether there is a witness, and the arbiter that the agent reads.
CASES: dict[str, tuple[dict[str, Any], bool, dict[str, Any]]] = {
    "witness": ({}, True, {"type": "etcd", "endpoints": ["https://192.0.2.13:2379"], "tls": TLS}),
    "nothing": ({}, False, {"type": "none"}),
    "file": ({"kvmft_arbiter": {"type": "file", "directory": "/srv/kvmft-arbiter"}}, False,
             {"type": "file", "directory": "/srv/kvmft-arbiter"}),
    "etcd of one's own": ({"kvmft_arbiter": {"type": "etcd", "endpoints": ["https://e1:2379"]}}, False,
                          {"type": "etcd", "endpoints": ["https://e1:2379"], "tls": TLS}),
    "with its certificates": (
        {"kvmft_arbiter": {"type": "etcd", "endpoints": ["https://e3:2379"], "tls": OTHER}}, False,
        {"type": "etcd", "endpoints": ["https://e3:2379"], "tls": OTHER}),
    "endpoints alone": ({"kvmft_arbiter_endpoints": ["https://e2:2379"]}, False,
                        {"type": "etcd", "endpoints": ["https://e2:2379"], "tls": TLS}),
    "none on purpose": ({"kvmft_arbiter": {"type": "none"}}, True, {"type": "none"}),
}  # fmt: skip


def _host(last: int) -> dict[str, Any]:
    return {
        "ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3",
        "kvmft_management_address": f"192.0.2.{last}", "kvmft_ft_address": f"10.91.0.{last}",
        "kvmft_migration_address": f"10.92.0.{last}",
    }  # fmt: skip


def _written(folder: Path, collections: Path, witness: bool) -> dict[str, dict[str, Any]]:
    """The arbiter that each case's host has, where there is a witness or none. A host per case, and one more."""
    names = [name for name, case in CASES.items() if case[1] == witness]
    hosts = {f"node-{number}": {**_host(20 + number), **CASES[name][0]} for number, name in enumerate(names)}
    arbiters = {"witness": {"kvmft_management_address": "192.0.2.13"}} if witness else {}
    # A role's defaults give way to the inventory, as variables of a group do to those of its hosts.
    defaults = yaml.safe_load((ROOT / "roles" / "runtime" / "defaults" / "main.yml").read_text())
    inventory = {
        "kvmft_hosts": {"hosts": {**hosts, "other": _host(12)}, "vars": {**defaults, "kvmft_cluster_id": "c" * 32}},
        "kvmft_arbiter": {"hosts": arbiters},
    }  # fmt: skip
    play = [{
        "hosts": "kvmft_hosts:!other", "gather_facts": False,
        "tasks": [{"ansible.builtin.template": {
            "src": str(ROOT / "roles" / "runtime" / "templates" / "kvmft.yml.j2"),
            "dest": f"{folder}/{{{{ inventory_hostname }}}}.yml", "mode": "0600"}}],
    }]  # fmt: skip
    (folder / "inventory.json").write_text(json.dumps(inventory))
    (folder / "play.json").write_text(json.dumps(play))
    done = subprocess.run(
        [str(PROGRAM), "-i", "inventory.json", "play.json"], cwd=folder, capture_output=True,
        text=True, timeout=120, check=False,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_NOCOLOR": "1",
             "ANSIBLE_PIPELINING": "1", "ANSIBLE_HOME": str(folder / "home"),
             "ANSIBLE_LOCAL_TEMP": str(folder / "tmp")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: parse(yaml.safe_load((folder / f"{host}.yml").read_text())).arbiter
            for host, name in zip(hosts, names, strict=True)}  # fmt: skip


@pytest.fixture(scope="module")
def arbiters(tmp_path_factory: pytest.TempPathFactory, collections: Path) -> dict[str, dict[str, Any]]:
    """The arbiter that the agent reads, of each case."""
    with_witness, without = (_written(tmp_path_factory.mktemp("runtime"), collections, witness)
                             for witness in (True, False))  # fmt: skip
    return with_witness | without


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_arbiter_reaches_the_agent(
    arbiters: dict[str, dict[str, Any]], name: str
) -> None:
    assert arbiters[name] == CASES[name][2]
