"""Two VMs of two groups are drilled in their order, watched from outside, and reported.

The tests build on one another: a planned drill takes both VMs to node-b, an unplanned one brings them
back, one of them to another bridge and another address.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.lab import cli, wide
from tests.lab.lab import ROOT, Lab
from tests.lab.test_protect import wait_protected

AGENT = (
    "<controller type='virtio-serial'/><channel type='unix'>"
    "<target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
)
DIRECTORY = wide.Wide("dir1", 61, (wide.WideDisk("vda"),))
DATABASE = wide.Wide("db1", 62, (wide.WideDisk("vda"),), devices=wide.BARE + AGENT)
MOVED = f"{wide.SECOND_NETWORK}.{DATABASE.number}"
SECRET = "canary-6d1f0c"
OBJECTIVES = {"rto_ms": 5000, "rpo_ms": 0, "reprotect_ms": 90_000}
MARKERS = {
    "type": "line", "port": wide.LEDGER_PORT, "send": f"drill {SECRET} {{n}}", "expect": "^ok (?P<id>[0-9]+) ",
    "verify_send": "read {id}", "verify_expect": " {n}$", "interval_ms": 50, "timeout_ms": 400,
}  # fmt: skip


def groups() -> list[dict[str, Any]]:
    """The directory before the database, which is also asked from inside."""
    port = {"type": "tcp", "port": wide.LEDGER_PORT, "retries": 30, "delay": 1}
    inside = {"type": "agent", "command": ["/bin/sh", "-c", f"echo {SECRET}; uptime"], "stdout": "up", "retries": 10,
              "delay": 1}  # fmt: skip
    return [
        {"name": "directory", "health": port, "vms": [
            {"name": DIRECTORY.name, "address": DIRECTORY.addresses[0], "probe": MARKERS}]},
        # Its other addresses, in the second drill, take as long as SSH and the guest agent need.
        {"name": "database", "health": [port, inside], "objectives": {"rto_ms": 30_000}, "vms": [
            {"name": DATABASE.name, "address": DATABASE.addresses[0], "probe": MARKERS,
             "readdress": {"node-a": [{"interface": "eth0", "address": f"{MOVED}/24"}]}}]},
    ]  # fmt: skip


@pytest.fixture(scope="module")
def drilled(lab: Lab) -> Iterator[Lab]:
    """Both guests, protected on node-a."""
    vms = (DIRECTORY, DATABASE)
    wide.lay_second_network(lab)
    for vm in vms:
        vm.start(lab, "node-a")
    names = json.dumps({"kvmft_vms": [vm.name for vm in vms]})
    cli.playbook(lab, "enable", "-e", names, quiet=True)
    yield lab
    for vm in vms:
        vm.remove(lab)


def drill(lab: Lab, mode: str, folder: Path, **more: Any) -> tuple[dict[str, Any], str]:
    """Run a drill; its report's data, which keep the schema, and what was printed."""
    given = {"kvmft_drill_groups": groups(), "kvmft_drill_objectives": OBJECTIVES,
             "kvmft_drill_report_dir": str(folder), **more}  # fmt: skip
    output = cli.playbook(lab, f"drill_{mode}", "-e", json.dumps(given), quiet=True)
    (path,) = folder.glob(f"drill-{mode}-*.json")
    page = path.with_suffix(".html").read_text()
    report: dict[str, Any] = json.loads(path.read_text())
    jsonschema.validate(report, json.loads((ROOT / "docs" / "drill-report.schema.json").read_text()))
    assert SECRET not in page + path.read_text() + output
    assert report["outcome"] == "passed" and f"{mode} drill" in output
    kept = ROOT / "build" / "drills"
    kept.mkdir(parents=True, exist_ok=True)
    (kept / f"{mode}.html").write_text(page)
    (kept / f"{mode}.json").write_text(path.read_text())
    return report, output


def must_be_in_order(report: dict[str, Any]) -> None:
    """The directory was protected again before the database was failed over, by the hosts' events too."""
    first, second = report["vms"]
    assert [first["name"], second["name"]] == [DIRECTORY.name, DATABASE.name]
    assert first["legs"][0]["protected_ms"] < second["legs"][0]["ordered_ms"]
    verdicts, ends = [], []
    for vm in report["vms"]:
        (leg,) = vm["legs"]
        verdicts.append(next(each["at_ms"] for each in vm["receipts"]
                             if each["event"] == "verdict" and each["at_ms"] >= leg["ordered_ms"]))  # fmt: skip
        ends.append(leg["protected_ms"])
        states = [each["state"] for each in vm["segments"]]
        assert states[0] == states[-1] == "protected" and {"failing_over", "running"} <= set(states)
    assert verdicts[0] < ends[0] < verdicts[1] < ends[1]


def must_be_measured(report: dict[str, Any]) -> None:
    """Figures of both VMs come from outside, and keep to the objectives."""
    for vm in report["vms"]:
        rto, rpo = vm["results"]["rto_ms"], vm["results"]["rpo_ms"]
        assert rto["source"] == rpo["source"] == "probe", vm["probe"]
        assert 0 < rto["value_ms"] < next(each["objective_ms"] for each in vm["objectives"])
        assert rpo["value_ms"] == 0 and vm["probe"]["markers"]["read_back"] >= 50
        assert all(each["met"] for each in vm["objectives"])
        assert [each["won"] for each in vm["receipts"] if each["event"] == "verdict"][0] is True
        assert {each["when"] for each in vm["checks"]} == {"before", "running", "protected"}


def test_a_planned_drill_keeps_the_order_and_the_objectives(drilled: Lab, tmp_path: Path) -> None:
    report, output = drill(drilled, "planned", tmp_path)
    must_be_in_order(report)
    must_be_measured(report)
    assert [vm["after"]["primary"] for vm in report["vms"]] == ["node-b", "node-b"]
    assert f"{DATABASE.name}: node-a -> node-b, stood still for at most" in output
    assert {each["type"] for each in report["vms"][1]["checks"]} == {"tcp", "agent"}
    assert [each["host"] for each in report["hosts"]] == ["node-a", "node-b"]


def test_an_unplanned_drill_brings_one_to_another_network(drilled: Lab, tmp_path: Path) -> None:
    mapped = {"node-a": {"br0": "br1"}}
    rows = groups()
    rows[0]["vms"][0]["probe"]["interval_ms"] = 60
    report, __ = drill(drilled, "unplanned", tmp_path, kvmft_drill_network_map=mapped, kvmft_drill_groups=rows)
    must_be_in_order(report)
    must_be_measured(report)
    moved = report["vms"][1]["legs"][0]["network"]
    assert any("went from br0 to br1" in each for each in moved) and f"ip address add {MOVED}/24 dev eth0" in moved
    assert "br1" in drilled.run("node-a", f"virsh domiflist {DATABASE.name}")
    for vm in (DIRECTORY, DATABASE):
        assert wait_protected(drilled, "node-a", vm.name)["secondary"] == "node-b"
    # Under emulation a guest's clock loses what checkpoints take: after one drill or two that is worth setting it.
    told = [drilled.run(node, f"kvmft events --vm {DATABASE.name} --json") for node in ("node-a", "node-b")]
    assert any("guest_time_set" in each for each in told), "the guest agent set the clock"


def test_a_test_drill_says_that_it_is_not_offered_and_changes_nothing(drilled: Lab, tmp_path: Path) -> None:
    before = [drilled.run("node-a", f"kvmft status {vm.name} --json") for vm in (DIRECTORY, DATABASE)]
    with pytest.raises(RuntimeError, match="Test failovers are not offered by kvmft on node-b, so that nothing was"):
        drill(drilled, "test", tmp_path, kvmft_drill_network_map={})
    assert list(tmp_path.iterdir()) == []
    after = [drilled.run("node-a", f"kvmft status {vm.name} --json") for vm in (DIRECTORY, DATABASE)]
    for old, new in zip(map(json.loads, before), map(json.loads, after), strict=True):
        assert [old[name] for name in ("state", "generation")] == [new[name] for name in ("state", "generation")]
