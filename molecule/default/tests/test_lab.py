"""The lab's servers: each a machine of its own, on the networks of the inventory."""

from __future__ import annotations

from testinfra.host import Host

from tests.lab import molecule, net

testinfra_hosts = molecule.hosts("node-a", "node-b", "witness")


def test_it_is_a_machine_of_its_own(host: Host) -> None:
    name = host.check_output("hostname")
    assert name in net.HOSTS
    assert host.process.get(pid=1).comm == "systemd"
    assert host.service("ssh").is_running


def test_it_has_its_address_on_every_network(host: Host) -> None:
    last = net.HOSTS[host.check_output("hostname")]
    for network, prefix in net.NETWORKS.items():
        device = "br0" if network == "lan" else f"{network}0"
        assert f"{prefix}.{last}" in host.interface(device).addresses
