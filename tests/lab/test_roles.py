"""The roles of a host on one server: check mode, a second run, and the way back to how the server was."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.lab import Lab

ROLES = ("hypervisor", "networks", "storage")
AWAY = {f"kvmft_{role}_state": "absent" for role in ROLES}
NETWORKS = [
    {"purpose": ["ft"], "interface": "br-ft", "mtu": 1400, "device": {"type": "bridge", "ports": ["ft0"]}},
    {"purpose": ["migration"], "mtu": 1450},
]  # fmt: skip
# What a server is: files with owner, mode and contents, units, rules, groups, addresses. libvirtd itself ends after two
# minutes without a client, and its socket starts it again.
SNAPSHOT = r"""
find /etc /var/lib/kvmft /srv -printf '%p %M %U:%G %l\n' | grep -v -e /etc/.pwd.lock -e '^/etc/group' -e '^/etc/gshadow' | sort
find /etc -type f ! -name 'group*' ! -name 'gshadow*' -exec md5sum {} + | sort -k 2
getent group | sort; systemctl list-unit-files --no-legend --no-pager | grep -v transient | sort; nft list ruleset
systemctl is-active systemd-networkd kvmft-firewall libvirtd.socket
ip -4 -o address show | sed -e 's/ *valid_lft.*//' -e 's/^[0-9]*: //' | sort
for each in mgmt0 ft0 mig0 br0; do ip -o link show $each | grep -o 'mtu [0-9]*\|state [A-Z]*\|master [^ ]*'; done
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Lab]:
    """One server, as its image is."""
    made = Lab(os.environ.get("KVMFT_LAB", "test") + "r", os.environ.get("KVMFT_RELEASE") or "12", servers=1)
    made.hosts = made.servers
    made.down()
    try:
        made.up()
        inventory = yaml.safe_load(made.inventory.read_text())
        inventory["all"]["children"]["kvmft_hosts"]["hosts"]["node-a"].update(
            kvmft_networks=NETWORKS, kvmft_networks_manage=True, kvmft_storage_min_free_mb=64)  # fmt: skip
        del inventory["all"]["children"]["kvmft_arbiter"]
        made.inventory.write_text(yaml.safe_dump(inventory))
        play = [{"hosts": "kvmft_hosts", "gather_facts": False,
                 "roles": [f"kvmft.core.{role}" for role in ROLES]}]  # fmt: skip
        back = [{**play[0], "roles": [f"kvmft.core.{role}" for role in reversed(ROLES)]}]
        (made.build / "roles.yml").write_text(yaml.safe_dump(play))
        (made.build / "back.yml").write_text(yaml.safe_dump(back))
        yield made
    finally:
        if "KVMFT_KEEP" not in os.environ:
            made.down()


def run(lab: Lab, name: str, *arguments: str, **variables: Any) -> int:
    """Run a playbook; how many tasks changed something."""
    output = lab.playbook(str(lab.build / name), "-e", json.dumps(variables), *arguments)
    found = re.search(r"^node-a\s+: ok=\d+\s+changed=(\d+)", output, re.MULTILINE)
    assert found is not None, output
    return int(found[1])


def snapshot(lab: Lab) -> list[str]:
    return lab.run("node-a", SNAPSHOT, check=False).splitlines()


def test_a_server_is_set_up_once_and_given_back_as_it_was(server: Lab) -> None:
    before = snapshot(server)
    assert any("10.91.0.11/24" in line and line.startswith("ft0") for line in before)
    assert run(server, "roles.yml", "--check") > 5
    assert snapshot(server) == before

    assert run(server, "roles.yml") > 5
    addresses = server.run("node-a", "ip -4 -o address show; ip -o link show ft0; ip -o link show mig0")
    assert re.search(r"br-ft +inet 10\.91\.0\.11/24", addresses), addresses
    assert not re.search(r"ft0 +inet", addresses.replace("br-ft", "")), addresses
    assert re.search(r"ft0@.* mtu 1400 .*master br-ft", addresses), addresses
    assert re.search(r"mig0@.* mtu 1450 ", addresses), addresses
    assert "mgmt0" in addresses and "10.90.0.11/24" in addresses
    assert 'iifname "br-ft" ip saddr @peers' in server.run("node-a", "nft list table inet kvmft")
    assert server.run("node-a", "getent group kvmft").startswith("kvmft:")
    assert run(server, "roles.yml") == 0
    the_hook_stops_a_vm_that_kvmft_knows_and_no_other(server)

    during = snapshot(server)
    assert run(server, "back.yml", "--check", **AWAY) > 5
    assert snapshot(server) == during
    assert run(server, "back.yml", **AWAY) > 5
    after = snapshot(server)
    assert [line for line in after if line not in before] == []
    assert [line for line in before if line not in after] == []


def the_hook_stops_a_vm_that_kvmft_knows_and_no_other(server: Lab) -> None:
    """libvirt runs what lies in hooks/qemu.d, also where the administrator has a hook of his own."""
    own = "/etc/libvirt/hooks/qemu"
    server.run("node-a", f"install -m 755 /bin/true {own} && systemctl restart libvirtd")
    server.run("node-a", "mkdir -p /var/lib/kvmft/vm/known && echo {} >/var/lib/kvmft/vm/known/state.json")
    for name in ("known", "other"):
        xml = (f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory>"
               "<os><type>hvm</type></os></domain>")  # fmt: skip
        server.run("node-a", f'echo "{xml}" >/root/{name}.xml && virsh define /root/{name}.xml')
    refused = server.run("node-a", "virsh start known 2>&1", check=False)
    assert "protected by kvmft, which is not installed" in refused, refused
    server.run("node-a", "virsh start other && virsh destroy other")
    server.run("node-a", "virsh undefine known; virsh undefine other; rm -r /var/lib/kvmft/vm/known "
               f"{own} /root/*.xml; systemctl restart libvirtd")  # fmt: skip


def test_the_address_of_the_ssh_connection_is_known_also_behind_sudo(server: Lab) -> None:
    probe = (Path(__file__).parents[2] / "roles/preflight/files/probe.py").read_text()
    # Ansible's own command ends with `&& sleep 0`, so that a shell that sshd started is still there.
    for way in ("python3 - --links", "env -i PATH=/usr/bin:/usr/sbin setsid --wait python3 - --links && sleep 0"):
        done = subprocess.run([*server.ssh_command("node-a"), way], input=probe, text=True, check=True,
                              capture_output=True, timeout=60)  # fmt: skip
        assert json.loads(done.stdout)["connection"] == server.address("node-a")
