"""site.yml on the lab's servers: both hosts can protect. Molecule's scenario `pair` runs it twice."""

from __future__ import annotations

import json
import re
import time

from tests.lab import cli
from tests.lab.lab import Lab
from tests.lab.test_operations import secrets


def changes(output: str) -> dict[str, str]:
    return dict(re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", output, re.MULTILINE))


def test_a_key_that_was_planted_is_certified_and_shown_nowhere(lab: Lab) -> None:
    lab.run("node-b", "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 "
            "-out /etc/kvmft/pki/host.key")  # fmt: skip
    known = secrets(lab, *lab.hosts)
    output = cli.playbook(lab, "site", "--tags", "pki", "-vvv", "--diff", quiet=True)
    assert changes(output) == {**dict.fromkeys(lab.hosts, "0"), "node-b": "1"}
    assert "it is of another key" in output
    assert [line for line in known if line in output] == []


def test_hosts_see_each_other_and_the_arbiter(lab: Lab) -> None:
    """Without a restart, also the one that had a key of no certificate for a while."""
    until = time.monotonic() + 30
    for host, peer in (("node-a", "node-b"), ("node-b", "node-a")):
        info = json.loads(lab.run(host, "kvmft host --json"))
        while not (info["peers"][peer]["reachable"] and info["arbiter"]["ok"]):
            assert time.monotonic() < until, info
            time.sleep(1)
            info = json.loads(lab.run(host, "kvmft host --json"))


def test_every_probe_of_doctor_passes(lab: Lab) -> None:
    probes = json.loads(lab.run("node-a", "kvmft doctor --json", check=False))
    assert probes
    assert [probe for probe in probes if not probe["ok"]] == []


def test_qemu_may_reach_the_agents_sockets_where_apparmor_is_turned_on(lab: Lab) -> None:
    """The lab's kernel may have no AppArmor; the rule is there all the same, on each release."""
    for host in ("node-a", "node-b"):
        profile = "/etc/apparmor.d/abstractions/libvirt-qemu"
        assert "local/abstractions/libvirt-qemu" in lab.run(host, f"grep include {profile}")
        added = lab.run(host, "cat /etc/apparmor.d/local/abstractions/libvirt-qemu")
        assert "/run/kvmft/** rw," in added.splitlines()
