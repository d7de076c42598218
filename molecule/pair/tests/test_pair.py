"""A pair after site.yml: what runs, what is reachable, and who may read it."""

from __future__ import annotations

import json

from testinfra.host import Host

from tests.lab import molecule

testinfra_hosts = molecule.hosts()


def test_the_agent_runs_and_starts_with_the_host(host: Host) -> None:
    agent = host.service("kvmft-agent")
    assert agent.is_running
    assert agent.is_enabled


def test_the_host_can_protect_vms(host: Host) -> None:
    probes = json.loads(host.check_output("kvmft doctor --json"))
    assert len(probes) > 5
    assert [probe for probe in probes if not probe["ok"]] == []


def test_the_runtime_is_the_wheel_of_the_installed_collection(host: Host) -> None:
    wheel = next(molecule.place().collections.glob("**/roles/runtime/files/kvmft-*.whl"))
    info = json.loads(host.check_output("kvmft host --json"))
    assert info["version"] == wheel.name.split("-")[1]


def test_the_control_socket_is_for_root_and_the_group_alone(host: Host) -> None:
    socket = host.file("/run/kvmft/control.sock")
    assert socket.is_socket
    assert (socket.user, socket.group, socket.mode & 0o007) == ("root", "kvmft", 0)


def test_the_key_is_for_root_alone(host: Host) -> None:
    key = host.file(molecule.HOST_KEY)
    assert (key.user, key.mode) == ("root", 0o600)


def test_ft_ports_listen_on_the_ft_network_alone(host: Host) -> None:
    sockets = host.socket.get_listening_sockets()
    ports = [each.removeprefix("tcp://").rsplit(":", 1) for each in sockets if each.startswith("tcp://")]
    ft = {address for address, port in ports if 7410 <= int(port) <= 7499}
    assert ft
    assert all(address.startswith("10.91.") for address in ft), ft
