"""`kvmft bench` on a pair whose guest is asked for something all the time: figures, no harm, and no secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import cli, guests
from tests.lab.lab import Lab
from tests.lab.test_operations import secrets
from tests.lab.test_protect import answers_of, ledger, status, wait_protected

NODES = ("node-a", "node-b")


@pytest.fixture(scope="module")
def guest(lab: Lab, quick: guests.Guest) -> Iterator[guests.Guest]:
    """The guest, protected on node-a."""
    cli.playbook(lab, "enable", "-e", f"vm={quick.name}", quiet=True)
    wait_protected(lab, "node-a", quick.name)
    yield quick
    for node in NODES:
        if status(lab, node, quick.name)["role"] == "primary":
            lab.run(node, f"kvmft disable {quick.name}")


def bench(lab: Lab, vm: str, out: str, *options: str) -> dict[str, Any]:
    """Measure on node-a; bench.json of the folder `out`."""
    words = " ".join(options)
    lab.run("node-a", f"rm -rf {out} && kvmft bench {vm} --out {out} {words}", timeout=600)
    return dict(json.loads(lab.run("node-a", f"cat {out}/bench.json")))


def test_a_bundle_with_everything(lab: Lab, guest: guests.Guest) -> None:
    before = status(lab, "node-a", guest.name)
    client = ledger(lab, guest, 60, "bench")
    found = bench(lab, guest.name, "/root/bundle", "--seconds", "10", "--log", "--ping", guest.address)
    answers = answers_of(client)
    assert [number for number, __, __ in answers] == list(range(answers[0][0], answers[0][0] + len(answers)))
    after = status(lab, "node-a", guest.name)
    assert after["generation"] == before["generation"] and after["options"] == before["options"]
    epochs = found["epochs"]
    assert epochs["interruptions"] == [] and epochs["missed"] == 0 and epochs["epochs"] > 20
    assert all(len(epochs[kind]) > 20 for kind in ("pause_ms", "commit_ms", "interval_ms", "pages"))
    assert epochs["log_bytes_s"] > 1000 and 0 < epochs["stood_still_share"] < 1
    assert len(found["ping"]["ms"]) > 20 and found["ping"]["unanswered"] == 0
    assert found["log"]["bytes_s"] > 10e6 and found["log"]["peer"] == "node-b" and found["cipher"]["bytes_s"] > 10e6
    assert found["memcpy"]["ms"] and found["host"]["host"] == "node-a" and found["host"]["qemu"]
    print(f"\n{lab.run('node-a', 'ls -l /root/bundle')}")


def test_no_key_is_in_the_bundle(lab: Lab, guest: guests.Guest) -> None:
    text = lab.run("node-a", "cat /root/bundle/*")
    assert guest.name in text and len(hidden := secrets(lab, *NODES)) > 3
    assert not [each for each in hidden if each in text] and "PRIVATE KEY" not in text
    session = json.loads(lab.run("node-a", f"cat /var/lib/kvmft/vm/{guest.name}/state.json"))["session"]
    assert session and session not in text


def test_a_switchover_and_the_one_back(lab: Lab, guest: guests.Guest) -> None:
    found = bench(lab, guest.name, "/root/switched", "--seconds", "2", "--switch")
    there, back = found["switch"]["switches"]
    assert (there["source"], there["target"]) == NODES and (back["source"], back["target"]) == NODES[::-1]
    assert all(0 < each["outage_ms"] < 5000 for each in (there, back))
    assert status(lab, "node-a", guest.name)["role"] == "primary"
