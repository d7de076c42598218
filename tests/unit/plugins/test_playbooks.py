"""The playbooks of a protected VM's life, run whole against fake agents of three hosts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, FakeAgent

PROGRAM = Path(sys.executable).parent / "ansible-playbook"
SOCKET = "{{ hostvars[kvmft_drill_host | default(inventory_hostname)].fake_socket }}"
"""Drills run on the controller and ask the host that kvmft_drill_host names."""
Cluster = dict[str, FakeAgent]
Play = Callable[..., tuple[int, str]]


def _ansible(folder: Path, collections: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [str(PROGRAM), *arguments], cwd=folder, capture_output=True, text=True, timeout=180,
        check=False,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_NOCOLOR": "1",
             "ANSIBLE_PIPELINING": "1",
             "ANSIBLE_HOME": str(folder / "home"), "ANSIBLE_LOCAL_TEMP": str(folder / "tmp")},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def play(tmp_path: Path, collections: Path, cluster: Cluster) -> Play:
    """Run a playbook of the collection; its modules ask the fake agents."""
    (tmp_path / "tasks").symlink_to(ROOT / "playbooks" / "tasks")
    hosts = {
        name: {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3",
               "ansible_become": False, "fake_socket": str(fake.path)}
        for name, fake in cluster.items()
    }  # fmt: skip
    (tmp_path / "inventory.json").write_text(json.dumps({"kvmft_hosts": {"hosts": hosts}}))

    def run(name: str, *arguments: str, **given: Any) -> tuple[int, str]:
        plays = yaml.safe_load((ROOT / "playbooks" / f"{name}.yml").read_text())
        for each in plays:
            each["module_defaults"] = {"group/kvmft.core.ft": {"socket_path": SOCKET}}
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(plays))
        code, output = _ansible(tmp_path, collections, "-i", "inventory.json", f"{name}.yml",
                                "-e", json.dumps(given), *arguments)  # fmt: skip
        return code, " ".join(output.split())

    return run


def _changed(output: str) -> int:
    return sum(int(each) for each in re.findall(r"changed=(\d+)", output))


@pytest.fixture
def protected(cluster: Cluster) -> dict[str, Any]:
    """The VM, enabled on node-a with its secondary on node-b."""
    vm = cluster["node-a"].vm
    vm.update(state="protected", reason="", desired="enabled", secondary="node-b", generation=1)
    return vm


def test_every_playbook_is_read_without_complaint(tmp_path: Path, collections: Path) -> None:
    groups = {group: {"hosts": {"node-a": None}} for group in
              ("kvmft_hosts", "kvmft_arbiter", "kvmft_observe")}  # fmt: skip
    (tmp_path / "inventory.json").write_text(json.dumps(groups))
    # awx.yml needs the collection awx.awx; tests/release runs it.
    paths = sorted(str(path) for path in (ROOT / "playbooks").glob("*.yml") if path.stem != "awx")
    assert len(paths) >= 8
    code, output = _ansible(tmp_path, collections, "-i", "inventory.json", "--syntax-check", *paths)
    assert code == 0 and "WARNING" not in output, output


def test_a_drill_that_limit_keeps_from_running_fails(play: Play, protected: dict[str, Any]) -> None:
    code, output = play("drill_planned", "--limit", "node-a,node-b", vm="db1")
    assert code != 0 and "which --limit left out. Run it without --limit." in output, output
    assert protected["primary"] == "node-a"


def test_drills_leave_the_connection_to_the_inventory() -> None:
    """`connection: local` of the play would be that of the hosts too, to which tasks are delegated."""
    for path in (ROOT / "playbooks").glob("drill_*.yml"):
        assert all("connection" not in each for each in yaml.safe_load(path.read_text())), path


def test_the_life_of_a_vm_by_playbooks(play: Play, cluster: Cluster) -> None:
    vm = cluster["node-a"].world.vm
    row = {"name": "db1", "secondary": "node-b", "allowed_hosts": ["node-a", "node-b", "node-c"],
           "options": {"sync_mib_s": 100}}  # fmt: skip
    code, output = play("enable", kvmft_vms=[row])
    assert code == 0 and _changed(output) == 1, output
    assert vm["allowed_hosts"] == row["allowed_hosts"] and vm["options"] == row["options"]
    for changed in (1, 0):
        code, output = play("move_secondary", vm="db1", secondary="node-c")
        assert code == 0 and _changed(output) == changed, output
        assert "db1 runs on node-a; its secondary is on node-c, and it is protected." in output
    code, output = play("drill_planned", "--check", vm="db1")
    assert code == 0 and _changed(output) == 1 and vm["primary"] == "node-a", output
    code, output = play("drill_planned", vm="db1", kvmft_back=True)
    assert code == 0 and _changed(output) == 2 and vm["primary"] == "node-a", output
    told = (r"{} -> {}, stood still for at most [\d.]+ ms, 2 packets carried over, "
            r"protected again by {}, generation \d+")  # fmt: skip
    there, back = told.format("node-a", "node-c", "node-a"), told.format("node-c", "node-a", "node-c")
    assert re.search(f"db1: {there}.*db1: {back}", output), output
    code, output = play("disable", vm="db1")
    assert code == 0 and _changed(output) == 1 and vm["desired"] == "disabled", output


def test_the_planned_drill_touches_nothing_that_is_not_protected(
    play: Play, protected: dict[str, Any], tmp_path: Path
) -> None:
    protected.update(state="need_secondary", reason="node-b is away")
    before = dict(protected)
    code, output = play("drill_planned", vm="db1")
    assert code != 0 and "VM db1 is need_secondary (node-b is away)" in output, output
    assert protected == before
    (path,) = (tmp_path / "drill-reports").glob("*.json")
    assert json.loads(path.read_text())["outcome"] == "refused"


def test_the_planned_drill_tells_what_was_refused(
    play: Play, cluster: Cluster, protected: dict[str, Any]
) -> None:
    cluster["node-b"].refusals["vm_failover"] = {
        "code": "no_arbiter", "message": "The arbiter cannot swap the roles: it is away",
        "remedy": "Bring the arbiter up.",
    }  # fmt: skip
    code, output = play("drill_planned", vm="db1", kvmft_back=True)
    assert code != 0, output
    assert "was not handed over from node-a to node-b" in output and "Bring the arbiter up." in output
    assert protected["primary"] == "node-a"


def test_a_secondary_is_moved_nowhere_without_a_host(
    play: Play, protected: dict[str, Any]
) -> None:
    code, output = play("move_secondary", vm="db1")
    assert code != 0 and "Give -e secondary=HOST" in output, output
    assert protected["secondary"] == "node-b"
