"""The lab's networks: bridges in a network namespace of its own, one more namespace per server."""

from __future__ import annotations

import subprocess

NETWORKS = {"mgmt": "10.90.0", "ft": "10.91.0", "mig": "10.92.0", "lan": "10.93.0"}
HOSTS = {"node-a": 11, "node-b": 12, "witness": 13, "node-c": 14}
"""Last byte of each server's address; a lab has two of the nodes, or all three."""
CLIENT = 1
"""Last byte of the outside client's address in each network."""


def ip(*arguments: str, ns: str | None = None, check: bool = True) -> None:
    """Run `ip`, in namespace `ns` if given."""
    command = ["ip", *(["-n", ns] if ns else []), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def sysctl(ns: str, name: str, value: str) -> None:
    """Set a sysctl inside a namespace."""
    path = "/proc/sys/" + name.replace(".", "/")
    subprocess.run(["ip", "netns", "exec", ns, "sh", "-c", f"echo {value} > {path}"], check=False)


def namespaces() -> list[str]:
    """Names of all network namespaces."""
    out = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in out.splitlines() if line.strip()]


def interface(host: str, network: str) -> str:
    """The bridge-side end of a server's cable."""
    return f"{host[-1] if host != 'witness' else 'w'}-{network}"


def hardware_address(host: str, network: str) -> str:
    """A server, or the `client` outside, keeps its MAC addresses over a reboot, or its neighbours look for it in vain."""
    last = CLIENT if host == "client" else HOSTS[host]
    return f"02:6b:76:6d:{list(NETWORKS).index(network):02x}:{last:02x}"


def make_bridges(lab: str) -> None:
    """The lab's own namespace, with a bridge and an address of the outside client per network."""
    ns = f"{lab}-net"
    ip("netns", "add", ns)
    ip("link", "set", "lo", "up", ns=ns)
    for network, prefix in NETWORKS.items():
        bridge = f"br-{network}"
        # A bridge without an address of its own has one of its ports', and a client whose address changes at a power cut is not
        # found again by the guest.
        ip("link", "add", bridge, "address", hardware_address("client", network), "type", "bridge", "forward_delay", "0",
           "stp_state", "0", ns=ns)
        ip("addr", "add", f"{prefix}.{CLIENT}/24", "dev", bridge, ns=ns)
        ip("link", "set", bridge, "up", ns=ns)


def plug_in(lab: str, host: str, leader: int) -> None:
    """Put one cable per network into `host`, whose PID 1 is `leader`; its interfaces are mgmt0,
    ft0, mig0 and lan0. Its network namespace gets the name LAB-HOST.

    lan0 is the uplink of the bridge br0, to which guests are attached.
    """
    ns, net = f"{lab}-{host}", f"{lab}-net"
    ip("netns", "attach", ns, str(leader))
    ip("link", "set", "lo", "up", ns=ns)
    for network, prefix in NETWORKS.items():
        far, near = interface(host, network), f"{network}0"
        ip("link", "add", far, "netns", net, "type", "veth", "peer", "name", near,
           "address", hardware_address(host, network), "netns", ns)
        ip("link", "set", far, "master", f"br-{network}", "up", ns=net)
        ip("link", "set", near, "up", ns=ns)
        if network != "lan":
            ip("addr", "add", f"{prefix}.{HOSTS[host]}/24", "dev", near, ns=ns)
    ip("link", "add", "br0", "type", "bridge", "forward_delay", "0", "stp_state", "0", ns=ns)
    ip("link", "set", "lan0", "master", "br0", ns=ns)
    ip("addr", "add", f"{NETWORKS['lan']}.{HOSTS[host]}/24", "dev", "br0", ns=ns)
    ip("link", "set", "br0", "up", ns=ns)


def cable(lab: str, host: str, network: str, up: bool) -> None:
    """Pull or put in one cable of `host`, at the switch's side."""
    ip("link", "set", interface(host, network), "up" if up else "down", ns=f"{lab}-net")


def unplug(lab: str, host: str) -> None:
    """Remove a server's namespace and its cables."""
    for network in NETWORKS:
        ip("link", "del", interface(host, network), ns=f"{lab}-net", check=False)
    ip("netns", "del", f"{lab}-{host}", check=False)
