"""Both hosts run the newer runtime, and the guest went on: the same QEMU, protected, no takeover."""

from __future__ import annotations

import json

from testinfra.host import Host

from tests.lab import molecule

testinfra_hosts = molecule.hosts()
VM = molecule.GUEST.name


def test_agent_and_peer_have_the_newer_version(host: Host) -> None:
    wheel = next((molecule.place().folder / "wheel").glob("kvmft-*.whl"))
    version = wheel.name.split("-")[1]
    assert version.endswith(".post1")
    info = json.loads(host.check_output("kvmft host --json"))
    assert info["version"] == version
    assert {peer["version"] for peer in info["peers"].values()} == {version}


def test_the_guest_is_protected(host: Host) -> None:
    status = json.loads(host.check_output(f"kvmft status {VM} --json"))
    assert status["state"] == "protected"


def test_no_host_took_over_during_the_upgrade(host: Host) -> None:
    lines = [json.loads(line) for line in host.check_output("kvmft events --json").splitlines()]
    starts = [line["time"] for line in lines if line["event"] == "agent_started"]
    assert len(starts) >= 2, "the agent was not started anew"
    later = [line["event"] for line in lines if line["vm"] == VM and line["time"] > starts[-1]]
    assert "activated" not in later


def test_the_second_host_waited_until_the_guest_was_protected_again(host: Host) -> None:
    lines = [json.loads(line) for line in host.check_output("kvmft events --cluster --json").splitlines()]
    starts = {line["host"]: line["at"] for line in lines if line["event"] == "agent_started"}
    first, second = sorted(starts.values())
    between = [line["data"]["state"] for line in lines
               if (line["vm"], line["event"]) == (VM, "state") and first < line["at"] < second]  # fmt: skip
    assert "protected" in between
