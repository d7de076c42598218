"""roles/networks: what is planned, refused and written; its files given to systemd-networkd itself."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.roles.loading import ROOT, plugin_util

_networks = plugin_util("_networks")
ROLE = ROOT / "roles" / "networks"
PROBE = ROOT / "roles" / "preflight" / "files" / "probe.py"
NETWORKD = Path("/lib/systemd/systemd-networkd")
SIMPLE = {
    "kvmft_ft_address": "10.91.0.11", "kvmft_ft_interface": "ft0",
    "kvmft_migration_address": "10.92.0.11", "kvmft_migration_interface": "mig0",
}  # fmt: skip
BOND = {"type": "bond", "ports": ["p0", "p1"]}
FULL: list[dict[str, Any]] = [
    {"purpose": ["ft"], "interface": "bond-ft", "mtu": 9000, "min_speed_mbit": 10000, "device": BOND},
    {"purpose": ["migration"], "interface": "bond-ft.92", "mtu": 8000,
     "device": {"type": "vlan", "parent": "bond-ft", "id": 92}},
]  # fmt: skip


def link(*addresses: str, mtu: int = 1500, **more: Any) -> dict[str, Any]:
    return {
        "mtu": mtu, "up": True, "carrier": True, "speed_mbit": None, "kind": "", "master": "", "parent": "",
        "addresses": [{"address": each, "prefix": 24} for each in addresses], **more,
    }  # fmt: skip


def host(**links: dict[str, Any]) -> dict[str, Any]:
    return {"links": {"lo": link("127.0.0.1"), **links}, "default_routes": [], "connection": ""}


# -- what is wanted -----------------------------------------------------------------------------------


def test_the_simple_form_is_two_networks_on_plain_interfaces() -> None:
    ft, migration = _networks.normalised([], {**SIMPLE, "kvmft_networks_mtu": 9000})
    assert ft == {
        "purpose": ["ft"], "interface": "ft0", "address": "10.91.0.11", "prefix": 24, "mtu": 9000,
        "min_speed_mbit": 1000, "device": {"type": "interface"},
    }  # fmt: skip
    assert (migration["interface"], migration["address"]) == ("mig0", "10.92.0.11")


def test_an_entry_takes_what_it_leaves_out_from_the_simple_form() -> None:
    ft, migration = _networks.normalised(FULL, SIMPLE)
    assert (ft["address"], ft["mtu"], ft["device"]["mode"]) == ("10.91.0.11", 9000, "active-backup")
    assert (migration["address"], migration["min_speed_mbit"]) == ("10.92.0.11", 1000)


def test_one_network_may_be_for_both() -> None:
    (both,) = _networks.normalised([{"purpose": ["ft", "migration"]}], SIMPLE)
    assert (both["interface"], both["address"]) == ("ft0", "10.91.0.11")


def changed(number: int, **values: Any) -> list[dict[str, Any]]:
    networks = copy.deepcopy(FULL)
    networks[number].update(values)
    return networks


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        (FULL[:1], "has 0 networks with the purpose migration"),
        ([*FULL, {"purpose": ["ft"], "interface": "x"}], "has 2 networks with the purpose ft"),
        (["ft"], "is no list of dictionaries"),
        (changed(0, purpose=["vmotion"]), "kvmft_networks[0].purpose is ['vmotion']"),
        (changed(0, device="bond"), "kvmft_networks[0].device is 'bond'"),
        (changed(0, device={"type": "team"}), "device.type is 'team'"),
        (changed(0, device={"type": "bond"}), "is a bond without ports"),
        (changed(0, device={**BOND, "mode": "turbo"}), "device.mode is 'turbo'"),
        (changed(1, device={"type": "vlan", "id": 92}), "is a VLAN without a parent"),
        (changed(1, device={"type": "vlan", "id": 4095, "parent": "p9"}), "device.id is 4095"),
        (changed(0, mtu=900), "mtu is 900; it must be a whole number from 1280 to 65535"),
        (changed(0, mtu="big"), "mtu is 'big'"),
        (changed(0, prefix=33), "prefix is 33"),
        (changed(0, interface="a name with spaces"), "is no name of an interface"),
        (changed(0, interface="sixteen-bytes-xx"), "Use at most 15 bytes"),
        (changed(0, address="fd00::1"), "fd00::1, which is no IPv4 address"),
        (changed(1, interface="p0", device={}), "p0 is a port of bond-ft and also a network of its own"),
        (changed(1, interface="br", device={"type": "bridge", "ports": ["p1"]}), "p1 is a port of br and also of bond-ft"),
        (changed(1, interface="bond-ft", device={}), "described as two different devices"),
        (changed(1, device={"type": "vlan", "parent": "p0", "id": 5}), "lies on p0, which is a port of bond-ft"),
    ],
)  # fmt: skip
def test_a_wrong_description_is_one_sentence(networks: Any, words: str) -> None:
    with pytest.raises(_networks.NetworksError) as error:
        _networks.normalised(networks, SIMPLE)
    assert words in str(error.value) and str(error.value).endswith(".")


def test_a_missing_address_names_the_variable() -> None:
    with pytest.raises(_networks.NetworksError, match="set kvmft_migration_address for this host"):
        _networks.normalised([], {**SIMPLE, "kvmft_migration_address": ""})


# -- what is refused, and what is lacking -------------------------------------------------------------


def refused(
    found: dict[str, Any], networks: Any = (), addresses: Any = (), named: str = ""
) -> list[str]:
    return _networks.refusals(_networks.normalised(networks, SIMPLE), found, addresses, named)


def test_an_interface_of_its_own_may_be_configured() -> None:
    assert (
        refused(host(ft0=link(), mig0=link(), eth0=link("192.0.2.11")), addresses=["192.0.2.11"])
        == []
    )


@pytest.mark.parametrize(
    ("found", "addresses", "named", "words"),
    [
        ({"default_routes": ["ft0"]}, [], "", "ft0 carries the default route; it is never touched"),
        ({"connection": "10.0.0.9"}, [], "", "ft0 carries 10.0.0.9, at which Ansible is connected"),
        ({}, ["10.0.0.9"], "", "ft0 carries 10.0.0.9, an address of management"),
        ({}, [], "ft0", "ft0 is kvmft_management_interface"),
    ],
)
def test_management_is_never_touched(
    found: dict[str, Any], addresses: list[str], named: str, words: str
) -> None:
    told = refused({**host(ft0=link("10.0.0.9"), mig0=link()), **found}, (), addresses, named)
    assert len(told) == 1 and words in told[0], told


def test_what_lies_below_management_is_not_touched_either() -> None:
    """Ports of the bond under the VLAN with the default route, and the bond itself as a parent."""
    found = host(
        p0=link(master="bond0"),
        p1=link(),
        bond0=link(kind="bond"),
        v5=link(kind="vlan", parent="bond0"),
    )
    found["default_routes"] = ["v5"]
    told = refused(found, FULL)
    assert len(told) == 1 and told[0].startswith(
        "p0 lies below bond0, which lies below v5, which carries the default"
    )
    vlan = [
        {
            **FULL[1],
            "purpose": ["ft", "migration"],
            "device": {"type": "vlan", "parent": "bond0", "id": 9},
        }
    ]
    assert refused(found, vlan)[0].startswith("bond0 lies below v5")


def test_names_that_are_missing_or_taken_are_refused() -> None:
    told = refused(host(p0=link(), **{"bond-ft": link(kind="bridge")}), FULL)
    assert any("p1 does not exist; there are bond-ft, p0" in each for each in told)
    assert any("bond-ft exists and is a bridge, not a bond" in each for each in told)


def test_all_that_a_network_lacks_is_told_at_once() -> None:
    found = host(ft0=link("10.91.0.99", mtu=1400, speed_mbit=100))
    told = _networks.findings(_networks.normalised([], SIMPLE), found)
    assert [each["id"] for each in told] == [
        "ft_address",
        "ft_mtu",
        "ft_speed",
        "migration_interface",
    ]
    assert [each["have"] for each in told] == ["10.91.0.99", "1400", "100 Mbit/s", "ft0"]
    assert _networks.findings(
        _networks.normalised([], SIMPLE), host(ft0=link("10.91.0.11"), mig0=link("10.92.0.11"))
    ) == []  # fmt: skip


# -- what systemd-networkd is told ----------------------------------------------------------------------


def test_files_of_a_bond_with_a_vlan_on_it() -> None:
    files = _networks.networkd_files(_networks.normalised(FULL, SIMPLE))
    assert sorted(files) == [
        f"10-kvmft-{each}" for each in ("bond-ft.92.netdev", "bond-ft.92.network", "bond-ft.netdev",
                                        "bond-ft.network", "p0.network", "p1.network")
    ]  # fmt: skip
    assert (
        "Kind=bond" in files["10-kvmft-bond-ft.netdev"]
        and "Mode=active-backup" in files["10-kvmft-bond-ft.netdev"]
    )
    assert "VLAN=bond-ft.92" in files["10-kvmft-bond-ft.network"]
    assert (
        "Bond=bond-ft" in files["10-kvmft-p0.network"]
        and "MTUBytes=9000" in files["10-kvmft-p0.network"]
    )
    assert "MTUBytes=8000" in files["10-kvmft-bond-ft.92.network"]


def test_a_parent_carries_the_largest_packets_of_its_vlans() -> None:
    networks = changed(1, mtu=9100)
    assert (
        "MTUBytes=9100"
        in _networks.networkd_files(_networks.normalised(networks, SIMPLE))[
            "10-kvmft-bond-ft.network"
        ]
    )


def test_two_networks_on_one_interface_are_one_file_with_both_addresses() -> None:
    files = _networks.networkd_files(
        _networks.normalised([], {**SIMPLE, "kvmft_migration_interface": "ft0"})
    )
    assert list(files) == ["10-kvmft-ft0.network"]
    assert "Address=10.91.0.11/24\nAddress=10.92.0.11/24\n" in files["10-kvmft-ft0.network"]


class Machine:
    """A network namespace with veths, and systemd-networkd in it with an /etc of its own."""

    def __init__(self, directory: Path) -> None:
        self.name = f"kvmft-net-{os.getpid()}"
        self.etc, self.log = directory / "network", directory / "networkd.log"
        self.etc.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.name, *arguments], check=True)

    def cable(self, name: str) -> None:
        self.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
        self.ip("link", "set", f"{name}-far", "mtu", "9000", "up")

    def start(self) -> None:
        # A mount namespace of its own: this machine's systemd and its networks see nothing of it.
        # A read-only /sys tells it that there is no udev to wait for.
        script = (
            f"mount --bind {self.etc} /etc/systemd/network; mount -t tmpfs none /run/systemd/network; "
            "mkdir -p /run/systemd/netif; mount -t tmpfs -o mode=0755 none /run/systemd/netif; "
            "! getent passwd systemd-network || chown systemd-network: /run/systemd/netif; "
            "mount -o remount,bind,ro /sys; "
            f"exec env SYSTEMD_LOG_LEVEL=info SYSTEMD_LOG_TARGET=console {NETWORKD}"
        )
        Path("/etc/systemd/network").mkdir(parents=True, exist_ok=True)
        Path("/run/systemd/network").mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(["ip", "netns", "exec", self.name, "unshare", "--mount", "sh", "-ec", script],
                                            stdout=log, stderr=log)  # fmt: skip

    def links(self) -> dict[str, Any]:
        out = subprocess.run(["ip", "netns", "exec", self.name, sys.executable, "-", "--links"], check=True,
                             stdin=PROBE.open("rb"), capture_output=True).stdout  # fmt: skip
        found: dict[str, Any] = json.loads(out)
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    try:
        yield made
    finally:
        if made.process is not None:
            made.process.terminate()
            made.process.wait()
        subprocess.run(["ip", "netns", "del", made.name], check=True)


def test_networkd_applies_what_it_is_told_and_the_probe_finds_nothing_lacking(
    machine: Machine,
) -> None:
    networks = _networks.normalised(
        [{"purpose": ["ft"], "interface": "br-ft", "mtu": 8900, "device": {"type": "bridge", "ports": ["p0"]}},
         {"purpose": ["migration"], "mtu": 1400}], SIMPLE)  # fmt: skip
    for name in ("p0", "mig0", "other0"):
        machine.cable(name)
    for name, text in _networks.networkd_files(networks).items():
        (machine.etc / name).write_text(text)
    machine.start()
    until = time.monotonic() + 15
    while _networks.findings(networks, machine.links()) and time.monotonic() < until:
        time.sleep(0.2)
    links = machine.links()["links"]
    assert _networks.findings(networks, machine.links()) == [], machine.log.read_text()
    assert (links["br-ft"]["kind"], links["p0"]["master"], links["p0"]["mtu"]) == (
        "bridge",
        "br-ft",
        8900,
    )
    assert links["mig0"]["mtu"] == 1400
    assert not links["other0"]["up"] and links["other0"]["addresses"] == []


def test_networkd_understands_every_line_of_bonds_and_vlans(machine: Machine) -> None:
    """Kernels without bonding still have their files read, and complained about where they are wrong."""
    networks = _networks.normalised(FULL, SIMPLE)
    for mode in _networks.BOND_MODES:
        for name, text in _networks.networkd_files(networks).items():
            (machine.etc / f"{mode}-{name}").write_text(
                text.replace("active-backup", mode).replace("bond-ft", f"b{len(mode)}")
            )
    networks = _networks.normalised(changed(0, device={**BOND, "mode": "802.3ad"}), SIMPLE)
    for name, text in _networks.networkd_files(networks).items():
        (machine.etc / name).write_text(text)
    (machine.etc / "10-wrong.netdev").write_text(
        "[NetDev]\nName=w\nKind=bridge\n[Bridge]\nNonsense=1\n"
    )
    machine.start()
    until = time.monotonic() + 15
    while "Enumeration completed" not in machine.log.read_text() and time.monotonic() < until:
        time.sleep(0.2)
    log = machine.log.read_text()
    complaints = [line for line in log.splitlines() if "/etc/systemd/network" in line]
    assert [line for line in complaints if "10-wrong.netdev" in line], log
    assert [line for line in complaints if "10-wrong.netdev" not in line] == []


# -- who may come in ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rules as the role's template writes them for node-a. Of node-c no management address is known."""
    hosts = {name: {"kvmft_ft_address": f"10.91.0.{last}", "kvmft_ft_interface": "ft0",
                    "kvmft_management_address": f"10.90.0.{last}", "kvmft_management_interface": "mgmt0"}
             for name, last in (("node-a", 11), ("node-b", 12), ("node-c", 13))}  # fmt: skip
    del hosts["node-c"]["kvmft_management_address"]
    return write_rules(tmp_path_factory.mktemp("rules"), hosts)


def write_rules(directory: Path, hosts: dict[str, dict[str, str]]) -> Path:
    """The rules for node-a in an inventory of `hosts`."""
    (directory / "inventory.json").write_text(json.dumps({"kvmft_hosts": {"hosts": hosts}}))
    (directory / "play.yml").write_text(
        "- hosts: node-a\n  connection: local\n  gather_facts: false\n"
        f"  vars_files: [{ROLE}/defaults/main.yml]\n"
        "  vars: {ansible_python_interpreter: '" + sys.executable + "'}\n"
        f"  tasks: [{{ansible.builtin.template: {{src: {ROLE}/templates/nftables.nft.j2, dest: {directory}/rules.nft, mode: '0644'}}}}]\n"
    )
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventory.json", "play.yml"],
        cwd=directory, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "ANSIBLE_HOME": str(directory / "home"), "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return directory / "rules.nft"


@pytest.mark.skipif(shutil.which("nft") is None, reason="nftables is not installed here")
@pytest.mark.parametrize(
    "more",
    [{}, {"kvmft_management_address": "10.90.0.11"}, {"kvmft_management_address": "fd00:90::11"}],
    ids=["no management address", "IPv4, interface unknown", "IPv6"],
)
def test_rules_load_whatever_is_known_of_management(tmp_path: Path, more: dict[str, str]) -> None:
    hosts = {name: {"kvmft_ft_address": f"10.91.0.{last}", "kvmft_ft_interface": "ft0", **more}
             for name, last in (("node-a", 11), ("node-b", 12))}  # fmt: skip
    text = write_rules(tmp_path, hosts)
    subprocess.run(["nft", "--check", "--file", str(text)], check=True)
    accepted = [line for line in text.read_text().splitlines() if "udp" in line and "saddr" in line]
    assert len(accepted) == bool(more)


CONNECT = """
import socket, sys
with socket.socket() as s:
    s.settimeout(0.5)
    s.bind((sys.argv[1], 0))
    try:
        s.connect((sys.argv[2], int(sys.argv[3])))
        print("answered")
    except TimeoutError:
        print("dropped")
    except ConnectionRefusedError:
        print("refused")
"""


DATAGRAM = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(0.5)
    s.bind((sys.argv[1], 0))
    s.connect((sys.argv[2], int(sys.argv[3])))
    try:
        s.send(b"beacon")
        s.recv(1)
    except TimeoutError:
        print("dropped")
    except ConnectionRefusedError:
        print("refused")
"""


@pytest.mark.skipif(shutil.which("nft") is None, reason="nftables is not installed here")
def test_ft_ports_answer_only_the_peers_and_only_on_the_ft_interface(rules: Path) -> None:
    host_, far = f"kvmft-nfh-{os.getpid()}", f"kvmft-nff-{os.getpid()}"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    def try_from(own: str, to: str, port: int, program: str = CONNECT) -> str:
        return subprocess.run(["ip", "netns", "exec", far, sys.executable, "-c", program, own, to, str(port)],
                              check=True, capture_output=True, text=True).stdout.strip()  # fmt: skip

    try:
        for name in (host_, far):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for name, subnet in (("ft0", "10.91.0"), ("lan0", "10.93.0"), ("mgmt0", "10.90.0")):
            ip(
                "link",
                "add",
                name,
                "netns",
                host_,
                "type",
                "veth",
                "peer",
                "name",
                name,
                "netns",
                far,
            )
            ip("-n", host_, "addr", "add", f"{subnet}.11/24", "dev", name)
            for last in (12, 99):
                ip("-n", far, "addr", "add", f"{subnet}.{last}/24", "dev", name)
            for each in (host_, far):
                ip("-n", each, "link", "set", name, "up")
        for __ in range(2):  # the second time it replaces its own table
            subprocess.run(["ip", "netns", "exec", host_, "nft", "--file", str(rules)], check=True)
        # Nobody listens: what the rules let through is refused by the kernel, the rest is never answered.
        for port in (7410, 7411, 7499):
            assert try_from("10.91.0.12", "10.91.0.11", port) == "refused"
            assert try_from("10.91.0.99", "10.91.0.11", port) == "dropped"
        assert try_from("10.93.0.12", "10.93.0.11", 7410) == "dropped"
        assert try_from("10.93.0.12", "10.91.0.11", 7410) == "dropped"
        assert try_from("10.91.0.99", "10.91.0.11", 7500) == "refused"
        # Beacons: from the peers' management addresses alone, and there alone.
        for port in (7411, 7499):
            assert try_from("10.90.0.12", "10.90.0.11", port, DATAGRAM) == "refused"
            assert try_from("10.90.0.99", "10.90.0.11", port, DATAGRAM) == "dropped"
        assert try_from("10.93.0.12", "10.93.0.11", 7411, DATAGRAM) == "dropped"
        assert try_from("10.91.0.12", "10.91.0.11", 7411, DATAGRAM) == "dropped"
        assert try_from("10.90.0.99", "10.90.0.11", 7500, DATAGRAM) == "refused"
    finally:
        for name in (host_, far):
            subprocess.run(["ip", "netns", "del", name], check=False)


# -- paths, and the way back ----------------------------------------------------------------------------


def test_packets_of_full_size_are_told_from_small_ones(machine: Machine) -> None:
    machine.cable("ft0")
    machine.ip("addr", "add", "10.91.0.11/24", "dev", "ft0")
    machine.ip("link", "set", "ft0", "mtu", "9000", "up")
    far = f"{machine.name}-far"
    subprocess.run(["ip", "netns", "add", far], check=True)
    try:
        machine.ip("link", "set", "ft0-far", "netns", far)
        for command in (["link", "set", "ft0-far", "mtu", "1500"], ["addr", "add", "10.91.0.12/24", "dev", "ft0-far"],
                        ["link", "set", "ft0-far", "up"]):  # fmt: skip
            subprocess.run(["ip", "-n", far, *command], check=True)
        out = subprocess.run(
            ["ip", "netns", "exec", machine.name, sys.executable, "-", "ft,9000,10.91.0.11,node-b,10.91.0.12",
             "ft,1500,10.91.0.11,node-b,10.91.0.12", "ft,1500,10.91.0.11,node-c,10.91.0.13"],
            stdin=(ROLE / "files" / "path.py").open("rb"), check=True, capture_output=True, timeout=60,
        ).stdout  # fmt: skip
    finally:
        subprocess.run(["ip", "netns", "del", far], check=False)
    assert [(each["full"], each["small"]) for each in json.loads(out)] == [
        (False, True), (True, True), (False, False)
    ]  # fmt: skip


def test_interfaces_are_put_back_to_how_they_were(machine: Machine) -> None:
    machine.cable("ft0")
    machine.cable("p0")
    machine.ip("addr", "add", "192.0.2.5/24", "dev", "ft0")
    machine.ip("link", "set", "ft0", "up")
    before = machine.links()["links"]
    machine.ip("link", "add", "br-ft", "type", "bridge")
    machine.ip("link", "set", "p0", "master", "br-ft", "mtu", "9000", "up")
    machine.ip("addr", "add", "10.91.0.11/24", "dev", "ft0")
    machine.ip("addr", "del", "192.0.2.5/24", "dev", "ft0")
    machine.ip("link", "set", "ft0", "mtu", "9000")
    record = json.dumps({name: before[name] for name in ("ft0", "p0")})

    def restore() -> str:
        return subprocess.run(["ip", "netns", "exec", machine.name, sys.executable, "-", record, "br-ft"],
                              stdin=(ROLE / "files" / "restore.py").open("rb"), check=True, capture_output=True,
                              text=True, timeout=60).stdout  # fmt: skip

    assert "ip link del br-ft" in restore()
    after = machine.links()["links"]
    for name in ("ft0", "p0"):
        for each in ("mtu", "up", "master"):
            assert after[name][each] == before[name][each], (name, each)
        assert [a for a in after[name]["addresses"] if "." in a["address"]] == [
            a for a in before[name]["addresses"] if "." in a["address"]
        ]
    assert restore() == ""
