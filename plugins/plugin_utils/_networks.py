# SPDX-License-Identifier: GPL-3.0-or-later
"""The FT and migration networks of a host: what is wanted, what systemd-networkd is told, what is wrong.

Pure: no socket, no file. What is found on a host comes from roles/preflight/files/probe.py.
"""

from __future__ import annotations

import ipaddress
import typing as t
from collections.abc import Mapping, Sequence

PURPOSES = ("ft", "migration")
DEVICES = ("interface", "bond", "vlan", "bridge")
BOND_MODES = ("active-backup", "802.3ad", "balance-xor", "balance-rr")
PREFIX, MTU, SPEED = 24, 1500, 1000
LEAST_MTU = 1280  # RFC 8200, section 5: what every link must carry
MOST_MTU = 65535
NAME_BYTES = 15  # linux/if.h: IFNAMSIZ less its zero byte
OWN = "10-kvmft-"
"""What the files of this collection in /etc/systemd/network begin with."""
HEADER = "# Made by kvmft.core.networks\n"

Network = dict[str, t.Any]


class NetworksError(ValueError):
    """The description of the networks is wrong; the text is a sentence with the remedy."""


def normalised(networks: Sequence[Mapping], variables: Mapping) -> list[Network]:
    """Every network with all of its settings.

    `networks` is `kvmft_networks`; empty, there are two, from the simple variables in `variables`
    (`kvmft_ft_address`, `kvmft_ft_interface`, ...). What an entry does not say is taken from there too.
    Raises NetworksError.
    """
    entries: Sequence[Mapping] = networks or [{"purpose": [each]} for each in PURPOSES]
    if not isinstance(entries, Sequence) or not all(isinstance(each, Mapping) for each in entries):
        raise NetworksError(
            "kvmft_networks is no list of dictionaries. Write one entry per network, with a purpose."
        )
    made = [_network(number, each, variables) for number, each in enumerate(entries)]
    for purpose in PURPOSES:
        count = sum(purpose in each["purpose"] for each in made)
        if count != 1:
            raise NetworksError(
                f"kvmft_networks has {count} networks with the purpose {purpose}; needed is one. "
                f"Give the purpose {purpose} to exactly one entry."
            )
    _refuse_contradictions(made)
    return made


def _network(number: int, entry: Mapping, variables: Mapping) -> Network:
    where = f"kvmft_networks[{number}]"
    given = entry.get("purpose") or []
    purposes = (
        [each.strip() for each in given.split(",")]
        if isinstance(given, str)
        else [str(each) for each in given]
    )
    if not purposes or not set(purposes) <= set(PURPOSES):
        raise NetworksError(
            f"{where}.purpose is {given!r}; it must be {' or '.join(PURPOSES)}, or both as a list."
        )
    device = entry.get("device") or {}
    if not isinstance(device, Mapping):
        raise NetworksError(f"{where}.device is {device!r}; it must be a dictionary with a type.")

    def simple(name: str) -> str:
        return str(variables.get(f"kvmft_{purposes[0]}_{name}") or "")

    made: Network = {
        "purpose": purposes,
        "interface": str(entry.get("interface") or simple("interface")),
        "address": str(entry.get("address") or simple("address")),
        "prefix": _whole(where, "prefix", entry, variables, PREFIX, 8, 32),
        "mtu": _whole(where, "mtu", entry, variables, MTU, LEAST_MTU, MOST_MTU),
        "min_speed_mbit": _whole(where, "min_speed_mbit", entry, variables, SPEED, 0, 1 << 30),
        "device": _device(where, device),
    }
    for name in ("interface", "address"):
        if not made[name]:
            raise NetworksError(
                f"{where} has no {name}. Set it there, or set kvmft_{purposes[0]}_{name} for this host."
            )
    _check_name(f"{where}.interface", made["interface"])
    try:
        ipaddress.IPv4Address(made["address"])
    except ValueError:
        raise NetworksError(
            f"{where}.address is {made['address']}, which is no IPv4 address. Correct it."
        ) from None
    return made


def _whole(
    where: str, name: str, entry: Mapping, variables: Mapping, default: int, least: int, most: int
) -> int:  # fmt: skip
    value = entry.get(name)
    if value is None:
        value = variables.get(f"kvmft_networks_{name}")
    try:
        number = int(default if value is None else value)
    except (TypeError, ValueError):
        number = least - 1
    if not least <= number <= most:
        raise NetworksError(
            f"{where}.{name} is {value!r}; it must be a whole number from {least} to {most}."
        )
    return number


def _device(where: str, device: Mapping) -> dict[str, t.Any]:
    kind = device.get("type") or "interface"
    if kind not in DEVICES:
        raise NetworksError(
            f"{where}.device.type is {kind!r}; it must be one of {', '.join(DEVICES)}."
        )
    made: dict[str, t.Any] = {"type": kind}
    if kind in ("bond", "bridge"):
        made["ports"] = [str(each) for each in device.get("ports") or []]
        for port in made["ports"]:
            _check_name(f"{where}.device.ports", port)
        if kind == "bond" and not made["ports"]:
            raise NetworksError(
                f"{where}.device is a bond without ports. Name its interfaces in device.ports."
            )
    if kind == "bond":
        made["mode"] = device.get("mode") or BOND_MODES[0]
        if made["mode"] not in BOND_MODES:
            raise NetworksError(
                f"{where}.device.mode is {made['mode']!r}; it must be one of {', '.join(BOND_MODES)}."
            )
    if kind == "vlan":
        made["parent"] = str(device.get("parent") or "")
        if not made["parent"]:
            raise NetworksError(
                f"{where}.device is a VLAN without a parent. Name the interface in device.parent."
            )
        _check_name(f"{where}.device.parent", made["parent"])
        made["id"] = _whole(f"{where}.device", "id", device, {}, 0, 1, 4094)
    return made


def _check_name(where: str, name: str) -> None:
    if (
        not 0 < len(name.encode()) <= NAME_BYTES
        or "/" in name
        or any(each.isspace() for each in name)
    ):
        raise NetworksError(
            f"{where} is {name!r}, which is no name of an interface. Use at most {NAME_BYTES} bytes without / and spaces."
        )


def _refuse_contradictions(networks: list[Network]) -> None:
    """Each interface has one place only: one device, or a port of one."""
    devices: dict[str, Network] = {}
    places: dict[str, str] = {}
    for network in networks:
        name = network["interface"]
        if name in devices and devices[name]["device"] != network["device"]:
            raise NetworksError(
                f"{name} is described as two different devices. Give each network its own interface."
            )
        devices.setdefault(name, network)
    for name, network in devices.items():
        for port in network["device"].get("ports", []):
            if port in devices or places.get(port, name) != name:
                raise NetworksError(
                    f"{port} is a port of {name} and also {'a network of its own' if port in devices else 'of ' + places[port]}. "
                    "An interface can have one place only."
                )
            places[port] = name
    for name, network in devices.items():
        parent = network["device"].get("parent")
        if parent == name or (parent and parent in places):
            raise NetworksError(
                f"The VLAN {name} lies on {parent}, which is {'itself' if parent == name else 'a port of ' + places[parent]}. "
                "Put it on a plain interface, a bond or a bridge."
            )


def lower(networks: Sequence[Network]) -> list[str]:
    """Interfaces that must exist already: plain ones, ports, and parents that are none of ours."""
    made = {each["interface"] for each in networks if each["device"]["type"] != "interface"}
    found: list[str] = []
    for network in networks:
        device = network["device"]
        names = [network["interface"]] if device["type"] == "interface" else device.get("ports", [])
        found += [*names, *([device["parent"]] if "parent" in device else [])]
    return [name for name in dict.fromkeys(found) if name not in made]


# -- systemd-networkd ---------------------------------------------------------------------------------


def networkd_files(networks: Sequence[Network]) -> dict[str, str]:
    """Contents of /etc/systemd/network by file name (systemd.netdev(5), systemd.network(5))."""
    files: dict[str, str] = {}
    sections: dict[str, list[str]] = {}
    mtu: dict[str, int] = {}
    for network in networks:
        name, device = network["interface"], network["device"]
        lines = sections.setdefault(name, [])
        lines.append(f"Address={network['address']}/{network['prefix']}")
        for each in [
            name,
            *device.get("ports", []),
            *([device["parent"]] if "parent" in device else []),
        ]:
            mtu[each] = max(mtu.get(each, 0), network["mtu"])
        for port in device.get("ports", []):
            enslaved = f"{'Bond' if device['type'] == 'bond' else 'Bridge'}={name}"
            if enslaved not in sections.setdefault(port, []):
                sections[port].append(enslaved)
        if "parent" in device:
            parent = sections.setdefault(device["parent"], [])
            if f"VLAN={name}" not in parent:
                parent.append(f"VLAN={name}")
        if device["type"] != "interface":
            files[f"{OWN}{name}.netdev"] = _netdev(name, device)
    for name, lines in sections.items():
        files[f"{OWN}{name}.network"] = _network_file(name, lines, mtu[name])
    return files


def _netdev(name: str, device: Mapping) -> str:
    kind = device["type"]
    text = f"{HEADER}[NetDev]\nName={name}\nKind={kind}\n"
    if kind == "bond":
        text += f"\n[Bond]\nMode={device['mode']}\nMIIMonitorSec=100ms\n"
        if device["mode"] == "802.3ad":
            text += "LACPTransmitRate=fast\n"
        if device["mode"] in ("802.3ad", "balance-xor"):
            # Agents keep one connection per VM and direction: ports must count, or one link carries all.
            text += "TransmitHashPolicy=layer3+4\n"
    elif kind == "vlan":
        text += f"\n[VLAN]\nId={device['id']}\n"
    else:
        text += "\n[Bridge]\nSTP=no\nForwardDelaySec=0\n"
    return text


def _network_file(name: str, lines: Sequence[str], mtu: int) -> str:
    # The address stays when the carrier goes: on a cable between two servers it goes with the other
    # one's power, and the agent listens there. The boot waits for none of these networks.
    return (
        f"{HEADER}[Match]\nName={name}\n\n[Link]\nMTUBytes={mtu}\nRequiredForOnline=no\n\n"
        + "[Network]\n"
        + "".join(f"{line}\n" for line in lines)
        + "LinkLocalAddressing=no\nIPv6AcceptRA=no\nLLDP=no\nConfigureWithoutCarrier=yes\nIgnoreCarrierLoss=yes\n"
    )


# -- what is wrong --------------------------------------------------------------------------------------


def management(found: Mapping, addresses: Sequence[str], named: str = "") -> dict[str, str]:
    """Interfaces that carry management, with the reason; what lies below and above them included.

    `addresses` are those at which people and Ansible reach the host, `named` is
    `kvmft_management_interface`.
    """
    links = found.get("links", {})
    reasons: dict[str, str] = {}
    for name in found.get("default_routes", []):
        reasons[name] = "carries the default route"
    for name, link in links.items():
        for each in link.get("addresses", []):
            if each["address"] == found.get("connection"):
                reasons[name] = f"carries {each['address']}, at which Ansible is connected"
            elif each["address"] in addresses:
                reasons.setdefault(name, f"carries {each['address']}, an address of management")
    if named:
        reasons.setdefault(named, "is kvmft_management_interface")
    waiting = list(reasons)
    while waiting:
        name = waiting.pop()
        parent = links.get(name, {}).get("parent")
        below = [each for each, link in links.items() if link.get("master") == name] + (
            [parent] if parent else []
        )
        for each in below:
            if each in links and each not in reasons:
                reasons[each] = f"lies below {name}, which {reasons[name]}"
                waiting.append(each)
    return reasons


def refusals(
    networks: Sequence[Network], found: Mapping, addresses: Sequence[str], named: str = ""
) -> list[str]:
    """Why these networks must not be configured on this host; empty when they may be."""
    protected = management(found, addresses, named)
    links = found.get("links", {})
    wanted = [*lower(networks), *(each["interface"] for each in networks)]
    told = [
        f"{name} {protected[name]}; it is never touched. Use another interface for the networks of kvmft, or configure "
        "this one yourself and set kvmft_networks_manage to false."
        for name in dict.fromkeys(wanted)
        if name in protected
    ]
    told += [
        f"{name} does not exist; there are {', '.join(sorted(set(links) - {'lo'})) or 'none'}. Correct its name."
        for name in lower(networks)
        if name not in links
    ]
    for network in networks:
        name, kind = network["interface"], network["device"]["type"]
        has = links.get(name, {}).get("kind")
        if kind != "interface" and name in links and has != kind:
            told.append(
                f"{name} exists and is {'a ' + has if has else 'a plain interface'}, not a {kind}. Choose another name."
            )
    return told


def findings(networks: Sequence[Network], found: Mapping) -> list[dict[str, str]]:
    """What the networks lack on this host: dictionaries with id, what, have, need and remedy."""
    links = found.get("links", {})
    told: list[dict[str, str]] = []
    for network in networks:
        purpose, name = "/".join(network["purpose"]), network["interface"]
        link = links.get(name)
        if link is None:
            told.append(_finding(
                f"{network['purpose'][0]}_interface", f"the interface {name} of the {purpose} network does not exist",
                ", ".join(sorted(set(links) - {"lo"})) or "no interface", name,
                f"Set kvmft_{network['purpose'][0]}_interface to the name of the interface",
            ))  # fmt: skip
            continue
        has = [each["address"] for each in link["addresses"]]
        if network["address"] not in has:
            told.append(_finding(
                f"{network['purpose'][0]}_address",
                f"the {purpose} address {network['address']} is not on {name}",
                ", ".join(has) or "no address", network["address"],
                "Configure it, or let the networks role do so (kvmft_networks_manage: true)",
            ))  # fmt: skip
        if (link["mtu"] or 0) < network["mtu"]:
            told.append(_finding(
                f"{network['purpose'][0]}_mtu", f"the MTU of {name} is too small", str(link["mtu"]),
                str(network["mtu"]),
                f"Raise it: ip link set {name} mtu {network['mtu']}, and in the host's network configuration",
            ))  # fmt: skip
        speed = link.get("speed_mbit")
        if speed is not None and speed < network["min_speed_mbit"]:
            told.append(_finding(
                f"{network['purpose'][0]}_speed", f"the link of {name} is too slow", f"{speed} Mbit/s",
                f"{network['min_speed_mbit']} Mbit/s",
                "Look at cable and switch port (ethtool " + name + "), or lower min_speed_mbit",
            ))  # fmt: skip
    return told


def _finding(name: str, what: str, have: str, need: str, remedy: str) -> dict[str, str]:
    return {"id": name, "what": what, "have": have, "need": need, "remedy": remedy}
