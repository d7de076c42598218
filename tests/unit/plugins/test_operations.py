"""Playbooks for operating the cluster, run whole against fake agents of three hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, FakeAgent
from .test_playbooks import _changed

PROGRAM = Path(sys.executable).parent / "ansible-playbook"
Cluster = dict[str, FakeAgent]
Play = Callable[..., tuple[int, str]]


@pytest.fixture
def play(tmp_path: Path, collections: Path, cluster: Cluster) -> Play:
    """Run a playbook of the collection; its modules ask the fake agents, and hosts have folders here."""
    for name in ("tasks", "templates"):
        (tmp_path / name).symlink_to(ROOT / "playbooks" / name)
    pki, bin_ = tmp_path / "pki", tmp_path / "bin"
    for folder in (pki, bin_):
        folder.mkdir()
    for name, days in (("ca", "3000"), ("host", "300")):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                        "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x", "-days", days,
                        "-keyout", "/dev/null", "-out", str(pki / f"{name}.pem")],
                       check=True, capture_output=True)  # fmt: skip
    (bin_ / "virsh").write_text(f"#!/bin/sh\ncat {tmp_path}/running 2>/dev/null || echo db1\n")
    (bin_ / "virsh").chmod(0o755)
    hosts = {
        name: {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3",
               "ansible_become": False, "fake_socket": str(fake.path),
               "kvmft_pki_host_dir": str(pki), "kvmft_drain_folder": str(tmp_path / f"{name}.drained")}
        for name, fake in cluster.items()
    }  # fmt: skip
    inventory = {"kvmft_hosts": {"hosts": hosts, "vars": {"kvmft_arbiter": {"type": "etcd"}}}}
    (tmp_path / "inventory.json").write_text(json.dumps(inventory))
    for path in (ROOT / "playbooks").glob("*.yml"):
        if path.stem == "awx":  # asks a controller of AWX and no agent
            continue
        plays = yaml.safe_load(path.read_text())
        for each in plays:
            if "hosts" in each:
                each["module_defaults"] = {"group/kvmft.core.ft": {"socket_path": "{{ fake_socket }}"}}
        (tmp_path / path.name).write_text(yaml.safe_dump(plays))

    def run(name: str, *arguments: str, **given: Any) -> tuple[int, str]:
        done = subprocess.run(
            [str(PROGRAM), "-i", "inventory.json", f"{name}.yml", "-e", json.dumps(given), *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_NOCOLOR": "1",
                 "ANSIBLE_PIPELINING": "1", "ANSIBLE_HOME": str(tmp_path / "home"),
                 "PATH": f"{bin_}:{os.environ['PATH']}"},
        )  # fmt: skip
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


@pytest.fixture
def protected(cluster: Cluster) -> dict[str, Any]:
    """The VM, enabled on node-a with its secondary on node-b."""
    vm = cluster["node-a"].vm
    vm.update(state="protected", reason="", desired="enabled", secondary="node-b", generation=1)
    return vm


def test_verify_passes_a_healthy_cluster_and_writes_what_it_saw(
    play: Play, protected: dict[str, Any], tmp_path: Path
) -> None:
    code, output = play("verify", kvmft_verify_report=str(tmp_path / "report.json"))
    assert code == 0 and _changed(output) == 0, output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is True and report["unreachable"] == []
    rows = {each["host"]: each for each in report["hosts"]}
    assert rows["node-a"]["vms"][0]["state"] == "protected" and rows["node-b"]["vms"] == []
    assert 298 <= rows["node-a"]["certificate_days"]["host"] <= 300
    assert "1 of 1 VMs protected" in rows["node-a"]["summary"]


def test_verify_tells_everything_that_is_wrong_at_once(
    play: Play, cluster: Cluster, protected: dict[str, Any], tmp_path: Path
) -> None:
    protected.update(state="need_secondary", reason="node-b is away")
    cluster["node-b"].refusals["host_info"] = {
        "code": "agent_busy", "message": "The agent is busy", "remedy": "Wait."}  # fmt: skip
    cluster["node-c"].probes = [
        {"probe": "arbiter", "ok": False, "detail": "etcd is away.", "remedy": "Start it."}]  # fmt: skip
    cluster["node-c"].version = "0.2.0"
    code, output = play("verify", kvmft_verify_report=str(tmp_path / "report.json"),
                        kvmft_verify_certificate_days=500, kvmft_verify_seconds=2)  # fmt: skip
    assert code != 0
    for text in ("VM db1: It is need_secondary (node-b is away).", "The agent is busy", "etcd is away.",
                 "The host certificate is good for", "kvmft is 0.1.0 here and 0.2.0 on node-c."):  # fmt: skip
        assert text in output, output
    report = json.loads((tmp_path / "report.json").read_text())
    found = {each["host"]: {finding["what"] for finding in each["findings"]} for each in report["hosts"]}
    assert report["ok"] is False
    assert found == {"node-a": {"VM db1", "certificates", "versions"}, "node-b": {"agent", "certificates"},
                     "node-c": {"arbiter", "certificates", "versions"}}  # fmt: skip


def test_verify_leaves_the_vms_out_where_that_is_wanted(
    play: Play, protected: dict[str, Any]
) -> None:
    protected.update(state="need_secondary", reason="node-b is away")
    code, output = play("verify", kvmft_verify_vms=False)
    assert code == 0 and "VM db1" not in output, output


def test_a_host_is_drained_to_a_third_one_and_returned(
    play: Play, cluster: Cluster, protected: dict[str, Any], tmp_path: Path
) -> None:
    code, output = play("drain_host", "--check", host="node-a")
    assert code == 0 and protected["primary"] == "node-a", output
    assert not cluster["node-a"].maintenance.on
    assert "is handed over from node-a to node-b; its secondary goes to node-c." in output
    code, output = play("drain_host", host="node-a")
    assert code == 0 and "node-a is free for maintenance" in output, output
    assert (protected["primary"], protected["secondary"], protected["state"]) == (
        "node-b", "node-c", "protected")  # fmt: skip
    assert [name for name, fake in cluster.items() if fake.maintenance.on] == ["node-a"]
    assert not (tmp_path / "node-a.drained").exists(), "the host may be made anew meanwhile"
    code, output = play("drain_host", host="node-a")
    assert code == 0 and "Nothing of any VM is on node-a" in output and _changed(output) == 0, output
    code, output = play("drain_host", host="node-a", kvmft_drain_state="returned", kvmft_drain_back=True)
    assert code == 0, output
    assert (protected["primary"], protected["secondary"], protected["state"]) == (
        "node-a", "node-b", "protected")  # fmt: skip
    assert not cluster["node-a"].maintenance.on
    code, output = play("drain_host", host="node-a", kvmft_drain_state="returned")
    assert code == 0 and _changed(output) == 0, output


def test_without_a_third_host_protection_is_suspended_and_comes_back(
    play: Play, protected: dict[str, Any]
) -> None:
    protected["allowed_hosts"] = ["node-a", "node-b"]
    code, output = play("drain_host", host="node-a")
    assert code == 0 and "its protection is suspended" in output, output
    assert (protected["primary"], protected["state"]) == ("node-b", "suspended")
    code, output = play("drain_host", host="node-a", kvmft_drain_state="returned")
    assert code == 0, output
    assert (protected["primary"], protected["state"]) == ("node-b", "protected")


def test_what_cannot_be_moved_is_told_and_nothing_is_touched(
    play: Play, protected: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "running").write_text("db1\nplain\n\n")
    protected.update(state="need_secondary", reason="node-b is away")
    before = dict(protected)
    code, output = play("drain_host", host="node-a")
    assert code != 0 and protected == before, output
    assert "VM plain runs on node-a, and its fault tolerance is off." in output
    assert "it is need_secondary (node-b is away) and has no secondary" in output
    code, output = play("drain_host", host="node-a", kvmft_drain_rest="leave")
    assert code == 0 and "node-a is not free: see above." in output, output
    code, output = play("drain_host", host="nobody")
    assert code != 0 and "Give -e host=NAME" in output


def test_an_upgrade_touches_nothing_while_a_vm_is_not_protected(
    play: Play, protected: dict[str, Any], tmp_path: Path
) -> None:
    protected.update(state="need_secondary", reason="node-b is away")
    wheel = tmp_path / "kvmft-9-py3-none-any.whl"
    wheel.write_bytes(b"")
    code, output = play("upgrade", kvmft_wheel=str(wheel), kvmft_all_protected_seconds=2)
    assert code != 0 and "VM db1 is need_secondary (node-b is away)." in output, output
    assert "kvmft.core.runtime : Install" not in output


def test_kvmft_is_not_taken_away_while_a_vm_is_protected(
    play: Play, protected: dict[str, Any]
) -> None:
    code, output = play("uninstall")
    assert code != 0 and "Fault tolerance is on for db1 on node-a." in output, output
    assert "Stop the agent" not in output and protected["state"] == "protected"
