"""The preflight role against wrong inventories: all findings at once, each with a remedy."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT

Inventory = dict[str, Any]
PROGRAM = Path(sys.executable).parent / "ansible-playbook"
PLAYBOOK = """
- hosts: kvmft_hosts
  gather_facts: false
  any_errors_fatal: true
  pre_tasks:
    - ansible.builtin.set_fact:
        ansible_architecture: "{{ facts.architecture }}"
        ansible_kernel: "{{ facts.kernel }}"
        ansible_memtotal_mb: "{{ facts.memtotal_mb }}"
        ansible_interfaces: "{{ facts.interfaces }}"
        ansible_all_ipv4_addresses: "{{ facts.all_ipv4_addresses }}"
        cacheable: true
  roles: [kvmft.core.preflight]
- hosts: kvmft_hosts
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: PREFLIGHT PASSED}
"""


def _host(last: int) -> dict[str, Any]:
    # Facts come from the inventory, so that the role judges servers that do not exist.
    return {
        "ansible_connection": "local", "ansible_host": f"192.0.2.{last}",
        "ansible_python_interpreter": sys.executable,
        "kvmft_management_address": f"192.0.2.{last}", "kvmft_ft_address": f"10.91.0.{last}",
        "kvmft_ft_interface": "ft0", "kvmft_migration_address": f"10.92.0.{last}",
        "kvmft_migration_interface": "mig0",
        "facts": {"architecture": "x86_64", "kernel": "6.12.1", "memtotal_mb": 8000,
                  "interfaces": ["ft0", "mig0"],
                  "all_ipv4_addresses": [f"10.91.0.{last}", f"10.92.0.{last}"]},
    }  # fmt: skip


GOOD: Inventory = {
    "kvmft_hosts": {"hosts": {"node-a": _host(11), "node-b": _host(12)}},
    "kvmft_arbiter": {"hosts": {"witness": {"kvmft_management_address": "192.0.2.13"}}},
}


def _hosts(inventory: Inventory) -> dict[str, Any]:
    found: dict[str, Any] = inventory["kvmft_hosts"]["hosts"]
    return found


def _facts(**facts: Any) -> Callable[[Inventory], None]:
    return lambda inventory: _hosts(inventory)["node-b"]["facts"].update(facts)


def _set(host: str, **values: Any) -> Callable[[Inventory], None]:
    return lambda inventory: _hosts(inventory)[host].update(values)


def _without(host: str, name: str) -> Callable[[Inventory], None]:
    def change(inventory: Inventory) -> None:
        del _hosts(inventory)[host][name]

    return change


def _arbiter(value: Any) -> Callable[[Inventory], None]:
    def change(inventory: Inventory) -> None:
        inventory["kvmft_arbiter"]["hosts"] = {}
        inventory["kvmft_hosts"]["vars"] = {"kvmft_arbiter": value}

    return change


def _several(inventory: Inventory) -> None:
    _without("node-a", "kvmft_ft_address")(inventory)
    _facts(kernel="6.1.0-18-amd64")(inventory)
    _set("node-b", kvmft_migration_interface="mig9")(inventory)


CASES: list[tuple[str, Callable[[Inventory], Any], list[str]]] = [
    ("one host", lambda each: _hosts(each).pop("node-b"), ["kvmft_hosts has 1 host(s)", "Add the second"]),
    ("same server twice", _set("node-b", ansible_host="192.0.2.11"),
     ["node-a and node-b have the same ansible_host 192.0.2.11", "Give each host its own"]),
    ("same FT address", _set("node-b", kvmft_ft_address="10.91.0.11"),
     ["node-a and node-b have the same kvmft_ft_address 10.91.0.11"]),
    ("FT address missing", _without("node-a", "kvmft_ft_address"),
     ["kvmft_ft_address is missing for node-a", "Set it in the inventory"]),
    ("address that is none", _set("node-a", kvmft_ft_address="10.91.0.300"),
     ['kvmft_ft_address of node-a is "10.91.0.300", which is no IPv4 address']),
    ("interface absent", _set("node-a", kvmft_ft_interface="ft9"),
     ["node-a: the interface ft9 does not exist", "Set kvmft_ft_interface"]),
    ("address on no interface", _facts(all_ipv4_addresses=["192.0.2.12"]),
     ["node-b: the FT address 10.91.0.12 is on none of its interfaces"]),
    ("kernel without PAGEMAP_SCAN", _facts(kernel="6.1.0-18-amd64"),
     ["node-b: the kernel is 6.1.0-18-amd64; PAGEMAP_SCAN needs 6.7", "bookworm-backports"]),
    ("not x86-64", _facts(architecture="aarch64"), ["node-b: the processor is aarch64"]),
    ("too little memory", _facts(memtotal_mb=512), ["node-b: memory is 512 MiB"]),
    ("two arbiters", lambda each: each["kvmft_arbiter"]["hosts"].update(
        w2={"kvmft_management_address": "192.0.2.14"}), ["kvmft_arbiter has 2 machines"]),
    ("arbiter on a host", lambda each: each["kvmft_arbiter"].update(hosts={"node-a": {}}),
     ["the arbiter node-a is a host too"]),
    ("arbiter of no known kind", _arbiter({"type": "quorum"}),
     ["kvmft_arbiter of node-a has no type etcd, file or none"]),
    ("arbiter that is no mapping", _arbiter("file"),
     ["kvmft_arbiter of node-a has no type etcd, file or none"]),
    ("arbiter without directory", _arbiter({"type": "file"}),
     ["kvmft_arbiter.directory of node-a is no absolute path", "Name the directory"]),
    ("arbiter not mounted", _arbiter({"type": "file", "directory": "/usr/lib"}),
     ["node-a: the directory /usr/lib of the arbiter is on the root file system"]),
    ("arbiter's directory missing", _arbiter({"type": "file", "directory": "/srv/not/there"}),
     ["node-b: the directory /srv/not/there of the arbiter does not exist"]),
    ("etcd without members", _arbiter({"type": "etcd"}), ["is etcd, but there is none"]),
    ("file and etcd at once",
     lambda each: each["kvmft_hosts"].update(
         vars={"kvmft_arbiter": {"type": "file", "directory": "/proc"}}),
     ["is of type file, but the group kvmft_arbiter has machines for etcd"]),
    ("arbiters of two kinds", _set("node-b", kvmft_arbiter={"type": "etcd"}),
     ["kvmft_arbiter of node-b is of another type than that of node-a"]),
    ("several at once", _several,
     ["3 finding(s); nothing was changed", "kvmft_ft_address is missing for node-a",
      "node-b: the kernel is 6.1.0-18-amd64", "the interface mig9 does not exist"]),
]  # fmt: skip


def _play(tmp_path: Path, collections: Path, inventory: Inventory) -> tuple[int, str]:
    (tmp_path / "inventory.json").write_text(json.dumps(inventory))
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    done = subprocess.run(
        [str(PROGRAM), "-i", "inventory.json", "play.yml"], cwd=tmp_path, capture_output=True,
        text=True, timeout=120, check=False,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_NOCOLOR": "1",
             "ANSIBLE_HOME": str(tmp_path / "home"), "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp")},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_good_inventory_passes(tmp_path: Path, collections: Path) -> None:
    code, output = _play(tmp_path, collections, copy.deepcopy(GOOD))
    assert code == 0 and "PREFLIGHT PASSED" in output, output


def test_a_directory_that_is_mounted_passes(tmp_path: Path, collections: Path) -> None:
    inventory = copy.deepcopy(GOOD)
    _arbiter({"type": "file", "directory": "/proc"})(inventory)
    code, output = _play(tmp_path, collections, inventory)
    assert code == 0 and "PREFLIGHT PASSED" in output, output


@pytest.mark.parametrize(("change", "words"), [each[1:] for each in CASES], ids=[c[0] for c in CASES])
def test_a_wrong_inventory_is_told_all_at_once(
    tmp_path: Path, collections: Path, change: Callable[[Inventory], Any], words: list[str]
) -> None:
    inventory = copy.deepcopy(GOOD)
    change(inventory)
    code, output = _play(tmp_path, collections, inventory)
    assert code != 0 and "PREFLIGHT PASSED" not in output, output
    assert output.count("fatal:") == 1 and "nothing was changed" in output, output
    told = output.replace("\\\"", '"')
    for word in words:
        assert word in told, output


def test_preflight_is_the_first_thing_that_site_does() -> None:
    first = (ROOT / "playbooks" / "site.yml").read_text().split("- role:", 1)[1]
    assert first.split()[0] == "kvmft.core.preflight"
