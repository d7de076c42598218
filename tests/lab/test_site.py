"""site.yml on the lab's servers: repeatable, and both hosts can protect."""

from __future__ import annotations

import json
import re

from tests.lab import cli
from tests.lab.lab import Lab


def test_second_run_changes_nothing(lab: Lab) -> None:
    output = cli.site(lab, quiet=True)
    changed = dict(re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", output, re.MULTILINE))
    assert changed == dict.fromkeys(lab.hosts, "0")


def test_hosts_see_each_other_and_the_arbiter(lab: Lab) -> None:
    for host, peer in (("node-a", "node-b"), ("node-b", "node-a")):
        info = json.loads(lab.run(host, "kvmft host --json"))
        assert info["peers"][peer]["reachable"]
        assert info["arbiter"]["ok"], info["arbiter"]["reason"]


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
