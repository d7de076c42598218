"""Operating a pair while its guest is protected: certificates, a drained host. Molecule has the upgrade.

The tests build on one another, in this order, on one guest. Each asks the guest for something all the time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import cli, guests
from tests.lab.lab import Lab
from tests.lab.test_protect import answers_of, ledger, status, wait_protected

NODES = ("node-a", "node-b")
PKI = "/etc/kvmft/pki"


@pytest.fixture(scope="module")
def guest(lab: Lab, quick: guests.Guest) -> Iterator[guests.Guest]:
    """The guest, protected on node-a."""
    cli.playbook(lab, "enable", "-e", f"vm={quick.name}", quiet=True)
    wait_protected(lab, "node-a", quick.name)
    yield quick


def secrets(lab: Lab, *hosts: str) -> set[str]:
    """What stands in the keys of the hosts and of the CA."""
    texts = [lab.run(host, f"cat {PKI}/host.key") for host in hosts]
    texts += [path.read_text() for path in (lab.build / "pki").glob("*.key")]
    return {line for text in texts for line in text.split() if len(line) > 30 and "-" not in line}


def certificate(lab: Lab, host: str) -> tuple[str, str]:
    """Key identifiers of a host's certificate: its own, and that of its CA."""
    text = lab.run(host, f"openssl x509 -in {PKI}/host.pem -noout -ext "
                   "subjectKeyIdentifier,authorityKeyIdentifier")  # fmt: skip
    own, ca = re.findall(r"((?:[0-9A-F]{2}:){19}[0-9A-F]{2})", text)
    return own, ca


def test_certificates_and_ca_are_replaced_and_protection_goes_on(
    lab: Lab, guest: guests.Guest
) -> None:
    """Nothing is restarted but the arbiter; the pair of before goes on; no key is shown by any of it."""
    hosts = (*NODES, "witness")
    before = {host: certificate(lab, host) for host in hosts}
    shown, agents = status(lab, "node-a", guest.name), [lab.run(node, AGENT) for node in NODES]
    known = secrets(lab, *hosts)
    client = ledger(lab, guest, 90, "rotate")
    output = cli.playbook(lab, "rotate_certificates", "-e", "kvmft_rotate_ca=true", "-vvv", "--diff",
                          quiet=True)  # fmt: skip
    known |= secrets(lab, *hosts)
    after = {host: certificate(lab, host) for host in hosts}
    assert len({own for own, __ in after.values()} | {own for own, __ in before.values()}) == 6
    assert {ca for __, ca in after.values()}.isdisjoint({ca for __, ca in before.values()})
    assert len(known) >= 2 * 3 * 4 and [line for line in known if line in output] == []
    assert [lab.run(node, AGENT) for node in NODES] == agents, "an agent was restarted"
    now = status(lab, "node-a", guest.name)
    assert now["state"] == "protected" and now["generation"] == shown["generation"]
    assert int(str(now["epochs"])) > int(str(shown["epochs"])), "another pair protects it"
    # The connection of before was made with certificates that nobody trusts any more; a new one is made now.
    lab.run("node-b", "systemctl restart kvmft-agent")
    wait_protected(lab, "node-a", guest.name)
    answers = answers_of(client)
    assert [number for number, __, __ in answers] == list(range(answers[0][0], answers[0][0] + len(answers)))


AGENT = "systemctl show --property=MainPID kvmft-agent"


def test_a_host_is_drained_and_returns(lab: Lab, guest: guests.Guest) -> None:
    client = ledger(lab, guest, 60, "drain")
    cli.playbook(lab, "drain_host", "-e", "host=node-a", quiet=True)
    assert status(lab, "node-b", guest.name)["state"] == "suspended"
    assert json.loads(lab.run("node-a", "kvmft maintenance show --json"))["on"]
    until = time.monotonic() + 60
    while lab.run("node-a", "virsh list --name").split():
        assert time.monotonic() < until, "the standby is still there"
        time.sleep(0.5)
    cli.playbook(lab, "drain_host", "-e", "host=node-a", "-e", "kvmft_drain_state=returned", "-e",
                 "kvmft_drain_back=true", quiet=True)  # fmt: skip
    wait_protected(lab, "node-a", guest.name)
    assert not json.loads(lab.run("node-a", "kvmft maintenance show --json"))["on"]
    assert len(answers_of(client)) > 100


def test_verify_reports_the_pair(lab: Lab, guest: guests.Guest, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    cli.playbook(lab, "verify", "-e", f"kvmft_verify_report={path}", quiet=True)
    report = json.loads(path.read_text())
    assert report["ok"] and {row["host"] for row in report["hosts"]} == set(NODES)
    rows = [vm for row in report["hosts"] for vm in row["vms"]]
    assert [(vm["vm"], vm["state"]) for vm in rows] == [(guest.name, "protected")]


def test_the_agents_unit_is_confined(lab: Lab, guest: guests.Guest) -> None:
    """The figure of systemd's own check, 0 to 10; what it still marks is what the agent does."""
    output = lab.run("node-a", "systemd-analyze security --no-pager kvmft-agent.service", check=False)
    found = re.search(r"Overall exposure level for kvmft-agent.service: ([\d.]+)", output)
    assert found is not None and float(found[1]) <= 4.5, output[-500:]
