"""Two network namespaces for the two workers of a pair, joined by an FT and a management network that can be cut."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from kvmft.adapters.filearbiter import FileArbiter
from tests.pair.harness import CLUSTER, Pair, Worker

SUBNETS = {"ft0": "10.191.0", "mgmt0": "10.190.0"}
HOSTS = {"node-a": 11, "node-b": 12}
PORTS = [10400, 10899]

ENTER = """
import ctypes, os
if ctypes.CDLL(None, use_errno=True).setns(os.open({path!r}, os.O_RDONLY), 0x40000000):
    raise OSError(ctypes.get_errno(), "setns")
"""
"""Run in a worker before anything else: CLONE_NEWNET of linux/sched.h."""


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


class Networks:
    """Namespaces of node-a and node-b. What comes in is dropped where a network is cut, so a sender sees nothing of it."""

    def __init__(self) -> None:
        self.names = {host: f"kvmft-{host}-{os.getpid()}" for host in HOSTS}
        try:
            for name in self.names.values():
                _ip(f"netns add {name}")
                _ip(f"-n {name} link set lo up")
            one, other = self.names.values()
            for network, subnet in SUBNETS.items():
                ends = f"{network} netns {one} type veth peer name {network} netns {other}"
                _ip(f"link add {ends}")
                for host, name in self.names.items():
                    _ip(f"-n {name} addr add {subnet}.{HOSTS[host]}/24 dev {network}")
                    _ip(f"-n {name} link set {network} up")
        except BaseException:
            self.remove()
            raise

    def cut(self, *networks: str, hosts: tuple[str, ...] = tuple(HOSTS)) -> None:
        """From now on exactly these networks are cut, towards these hosts; without any: all are whole."""
        rules = "".join(f'iifname "{each}" drop\n' for each in networks)
        table = (
            "table inet cut\ndelete table inet cut\ntable inet cut {\nchain input {\n"
            f"type filter hook input priority 0; policy accept;\n{rules}}}\n}}\n"
        )
        for host in hosts:
            command = ["ip", "netns", "exec", self.names[host], "nft", "-f", "-"]
            subprocess.run(command, input=table, text=True, check=True)

    def patch(self, host: str) -> str:
        """Python that puts a worker into the namespace of `host`."""
        return ENTER.format(path=f"/var/run/netns/{self.names[host]}")

    def remove(self) -> None:
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], check=False)


def beacons(host: str, peer: str) -> dict[str, Any]:
    """This part of a start line."""
    return {"address": f"{SUBNETS['mgmt0']}.{HOSTS[host]}", "peer_address": f"{SUBNETS['mgmt0']}.{HOSTS[peer]}",
            "ports": PORTS}  # fmt: skip


def share_arbiter(pair: Pair) -> None:
    """An arbiter that needs no network: both namespaces see the same directory."""
    directory = Path(pair.root) / "shared"
    directory.mkdir()
    FileArbiter(str(directory)).set_up(CLUSTER)
    pair.etcd.stop()
    pair.arbiter = {"type": "file", "directory": str(directory)}


def protect(
    pair: Pair, networks: Networks, options: dict[str, Any], with_beacons: tuple[str, ...] = tuple(HOSTS),
    patient: tuple[str, ...] = (),
) -> tuple[Worker, Worker]:  # fmt: skip
    """Primary's and secondary's worker of a protected pair; those of `with_beacons` know of the management network,
    those of `patient` take 20 s for their detection."""

    def extra(host: str, peer: str) -> dict[str, Any]:
        told = {"beacons": beacons(host, peer)} if host in with_beacons else {}
        slow = {"detection_ms": 20_000} if host in patient else {}
        return {"options": {**options, **slow}, **told}

    standby = f"{SUBNETS['ft0']}.{HOSTS['node-b']}"
    told = extra("node-b", "node-a")
    secondary, port = pair.start_secondary(
        networks.patch("node-b"), listen_address=standby, port_range=PORTS, **told
    )
    told = extra("node-a", "node-b")
    primary = pair.start_primary(port, networks.patch("node-a"), peer_address=standby, **told)
    primary.wait(msg="state", state="protected")
    secondary.wait(msg="state", state="protected")
    return primary, secondary
