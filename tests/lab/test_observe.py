"""What observers see of failovers in the lab: metrics of both nodes, the story, and its receipts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import cli, guests, net, scrape
from tests.lab.lab import ROOT, Lab
from tests.lab.test_protect import status, wait_protected

PORT = 7409
NODES = ("node-a", "node-b")


def watch(lab: Lab, seconds: float) -> subprocess.Popen[str]:
    """Scrape both nodes from outside for `seconds`."""
    urls = [f"{node}=http://{net.NETWORKS['mgmt']}.{net.HOSTS[node]}:{PORT}/metrics" for node in NODES]
    return subprocess.Popen(
        lab.inside(sys.executable, "-m", "tests.lab.scrape", str(seconds), *urls),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def rounds_of(watcher: subprocess.Popen[str]) -> list[scrape.Round]:
    out, error = watcher.communicate(timeout=180)
    assert watcher.returncode == 0, error
    return [[tuple(each) for each in json.loads(line)] for line in out.splitlines()]


def explain(lab: Lab, host: str, vm: str) -> dict[str, Any]:
    return dict(json.loads(lab.run(host, f"kvmft explain {vm} --json")))


@pytest.fixture(scope="module")
def observed(lab: Lab, quick: guests.Guest) -> Iterator[guests.Guest]:
    """The guest, protected on node-a."""
    cli.playbook(lab, "enable", "-e", f"vm={quick.name}", quiet=True)
    wait_protected(lab, "node-a", quick.name)
    yield quick
    for node in NODES:
        if status(lab, node, quick.name)["role"] == "primary":
            lab.run(node, f"kvmft disable {quick.name}")


def test_a_protected_vm_is_seen_running_once_with_all_its_figures(
    lab: Lab, observed: guests.Guest
) -> None:
    time.sleep(2)
    rounds = rounds_of(watch(lab, 3))
    assert scrape.ever_active(rounds, observed.name) == {"node-a"}
    found = rounds[-1][0][1]
    assert found is not None
    vm = f'{{vm="{observed.name}"}}'
    assert found[f"kvmft_vm_protected{vm}"] == 1
    assert found[f"kvmft_vm_pause_seconds_count{vm}"] > 10
    assert found[f"kvmft_vm_commit_seconds_count{vm}"] > 10
    assert found[f"kvmft_vm_log_bytes_total{vm}"] > 1 << 20
    assert found[f"kvmft_vm_last_commit_age_seconds{vm}"] < 5
    assert found['kvmft_arbiter_up{type="etcd"}'] == 1
    assert found['kvmft_peer_up{peer="node-b"}'] == 1
    assert found['kvmft_certificate_expiry_seconds{certificate="host"}'] > 86400


def test_a_power_cut_is_told_whole_and_never_two_are_active(
    lab: Lab, observed: guests.Guest
) -> None:
    watcher = watch(lab, 60)
    time.sleep(3)
    lab.power_off("node-a")
    time.sleep(5)
    lab.power_on("node-a")
    wait_protected(lab, "node-b", observed.name)
    rounds = rounds_of(watcher)
    assert scrape.double_active(rounds, observed.name) == []
    assert scrape.ever_active(rounds, observed.name) == {"node-a", "node-b"}
    assert scrape.backward(rounds, ["node-a"]) == []
    told = explain(lab, "node-b", observed.name)
    assert (told["kind"], told["lacking"], told["missing_hosts"]) == ("takeover", [], {})
    assert told["ended"]
    stages = [step["stage"] for step in told["steps"]]
    activated = told["steps"][stages.index("activated")]
    assert (activated["host"], activated["figures"]["kind"]) == ("node-b", "unplanned")
    assert activated["ms"] < 5000
    found = status(lab, "node-b", observed.name)
    assert 0 < float(str(found["unprotected_seconds_month"])) < 120


def test_receipts_of_both_hosts_are_intact_after_a_power_cut(
    lab: Lab, observed: guests.Guest
) -> None:
    found = json.loads(lab.run("node-b", "kvmft events --verify --cluster --json"))
    assert {each["host"]: (each["intact"], each["problems"]) for each in found} == {
        "node-a": (True, []), "node-b": (True, [])
    }  # fmt: skip
    assert all(each["receipts"] > 0 for each in found)


def test_a_planned_switchover_is_told_whole_and_never_two_are_active(
    lab: Lab, observed: guests.Guest
) -> None:
    watcher = watch(lab, 40)
    time.sleep(2)
    lab.run("node-b", f"kvmft failover {observed.name} --mode planned")
    wait_protected(lab, "node-a", observed.name)
    rounds = rounds_of(watcher)
    assert scrape.double_active(rounds, observed.name) == []
    assert scrape.backward(rounds) == []
    told = explain(lab, "node-a", observed.name)
    assert (told["kind"], told["lacking"]) == ("switchover", [])


def test_events_of_a_cut_off_host_are_missing_and_that_is_said(
    lab: Lab, observed: guests.Guest
) -> None:
    lab.run("node-b", "systemctl stop kvmft-agent")
    try:
        done = subprocess.run(
            [*lab.ssh_command("node-a"), f"kvmft events --cluster --vm {observed.name} --limit 5"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        lab.run("node-b", "systemctl start kvmft-agent")
    assert done.returncode == 3 and "node-b did not answer" in done.stderr
    assert len(done.stdout.splitlines()) == 5
    wait_protected(lab, "node-a", observed.name)
