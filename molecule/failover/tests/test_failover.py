"""The guest was taken over, protected again, handed back, and is protected now; hosts agree on that."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab import molecule

testinfra_hosts = molecule.hosts()
VM = molecule.GUEST.name


@pytest.fixture
def status(host: Host) -> dict[str, Any]:
    return dict(json.loads(host.check_output(f"kvmft status {VM} --json")))


def test_it_is_protected_and_both_hosts_say_the_same(host: Host, status: dict[str, Any]) -> None:
    name = host.check_output("hostname")
    assert status["state"] == "protected"
    assert {status["primary"], status["secondary"]} == {"node-a", "node-b"}
    assert status["role"] == ("primary" if status["primary"] == name else "secondary")


def test_it_runs_where_the_status_says(host: Host, status: dict[str, Any]) -> None:
    state = host.check_output(f"virsh domstate {VM}").strip()
    assert (state == "running") == (status["role"] == "primary")


def test_the_story_names_a_takeover_that_was_won(host: Host) -> None:
    lines = map(json.loads, host.check_output("kvmft events --cluster --json").splitlines())
    verdicts = [line["data"] for line in lines if (line["vm"], line["event"]) == (VM, "verdict")]
    assert [each for each in verdicts if each["won"]]


def test_no_line_of_the_log_of_events_was_altered(host: Host) -> None:
    assert host.run("kvmft events --verify").rc == 0
