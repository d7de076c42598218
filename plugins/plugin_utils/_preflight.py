# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that is wrong with an inventory and its hosts, found at once. Pure: no socket, no clock.

What was seen on a host comes from roles/preflight/files/probe.py. A finding has a stable `id`, the `host`
(or `inventory`), `what` is wrong, what it `have`s and `need`s, the `remedy`, and a `severity`: errors stop the
set-up, warnings do not.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t
from collections.abc import Iterator, Mapping, Sequence

from ansible_collections.kvmft.core.plugins.plugin_utils import _networks

ERROR, WARNING = "error", "warning"
INVENTORY = "inventory"
WANTED = (
    "kvmft_management_address", "kvmft_ft_address", "kvmft_ft_interface",
    "kvmft_migration_address", "kvmft_migration_interface",
)  # fmt: skip
ALONE = ("ansible_host", "kvmft_management_address", "kvmft_ft_address", "kvmft_migration_address")
"""Variables that no two hosts may have in common."""
SYSTEMS = ("debian 12", "debian 13", "ubuntu 24.04")
ARBITERS = ("etcd", "file", "none")

Finding = dict[str, t.Any]


def finding(
    name: str, host: str, what: str, have: t.Any, need: t.Any, remedy: str, severity: str = ERROR
) -> Finding:  # fmt: skip
    """One row of the report."""
    return {
        "id": name, "severity": severity, "host": host, "what": what, "have": str(have), "need": str(need),
        "remedy": remedy,
    }  # fmt: skip


def version(text: t.Any) -> tuple[int, ...]:
    """`6.12.1-amd64` as (6, 12, 1)."""
    found = re.match(r"\d+(?:\.\d+)*", str(text or ""))
    return tuple(int(each) for each in found[0].split(".")) if found else ()


def judge(
    hosts: Sequence[str], arbiters: Sequence[str], examined: Mapping[str, Mapping | None], ended: float
) -> list[Finding]:  # fmt: skip
    """All findings, those of the inventory first, then host by host.

    `examined` has, for every host of the group kvmft_hosts and every arbiter, `variables` (those of the
    inventory), and for hosts that were looked at also `limits`, `begun` (time on the controller before,
    seconds since 1970) and `seen` (what the probe printed; None when it could not run). `ended` is the
    controller's time afterwards.
    """
    variables = {
        name: (examined.get(name) or {}).get("variables") or {} for name in [*hosts, *arbiters]
    }
    found = list(_of_inventory(hosts, arbiters, variables))
    looked_at = [name for name in hosts if "limits" in (examined.get(name) or {})]
    for name in looked_at:
        record = examined[name] or {}
        if not record.get("seen"):
            found.append(finding("not_examined", name, "it could not be examined", "no answer", "an answer",
                                 "Make it answer to Ansible over SSH, as root or with become"))  # fmt: skip
            continue
        found += _of_host(name, record, ended)
    seen = {
        name: examined[name]["seen"] for name in looked_at if (examined[name] or {}).get("seen")
    }  # type: ignore[index]
    found += _of_several(seen, {name: variables[name] for name in seen}, examined)
    return found


# -- the inventory ----------------------------------------------------------------------------------------


def _of_inventory(
    hosts: Sequence[str], arbiters: Sequence[str], variables: Mapping[str, Mapping]
) -> Iterator[Finding]:  # fmt: skip
    if len(hosts) < 2:
        yield finding("hosts_too_few", INVENTORY, f"kvmft_hosts has {len(hosts)} host(s)", len(hosts), "2 or more",
                      "Add the second server to the group kvmft_hosts")  # fmt: skip
    if len(arbiters) not in (0, 1, 3):
        yield finding("arbiters_number", INVENTORY,
                      f"kvmft_arbiter has {len(arbiters)} machines; an even number decides nothing",
                      len(arbiters), "1 or 3", "Use one machine (the witness) or three")  # fmt: skip
    both = sorted(set(arbiters) & set(hosts))
    if both:
        yield finding("arbiter_is_host", INVENTORY, f"the arbiter {', '.join(both)} is a host too and would die with it",
                      ", ".join(both), "a machine of its own", "Use a machine of its own for kvmft_arbiter")  # fmt: skip
    yield from _of_arbiter(hosts, arbiters, variables)
    yield from _of_variables(hosts, arbiters, variables)
    yield from _of_names_used_twice(hosts, variables)


def _of_arbiter(
    hosts: Sequence[str], arbiters: Sequence[str], variables: Mapping[str, Mapping]
) -> Iterator[Finding]:  # fmt: skip
    def kind(name: str) -> t.Any:
        value = variables[name].get("kvmft_arbiter")
        return (
            value.get("type", "") if isinstance(value, Mapping) else ("" if value is None else None)
        )

    for name in hosts:
        value = variables[name].get("kvmft_arbiter")
        if value is None:
            continue
        what = f"kvmft_arbiter of {name}"
        if kind(name) not in ARBITERS:
            yield finding("arbiter_kind", INVENTORY, f"{what} has no type etcd, file or none", value, "a type",
                          "Write for example {type: file, directory: /srv/kvmft-arbiter}")  # fmt: skip
        elif kind(name) == "file" and not str(value.get("directory") or "").startswith("/"):
            yield finding("arbiter_directory", INVENTORY, f"kvmft_arbiter.directory of {name} is no absolute path",
                          value.get("directory", ""), "/...", "Name the directory that all hosts mount")  # fmt: skip
        elif kind(name) != "etcd" and arbiters:
            yield finding("arbiter_two_kinds", INVENTORY,
                          f"{what} is of type {kind(name)}, but the group kvmft_arbiter has machines for etcd",
                          f"{kind(name)} and etcd", "one of them", "Empty the group or take the type away")  # fmt: skip
        elif (
            kind(name) == "etcd" and not arbiters and not value.get("endpoints")
            and not variables[name].get("kvmft_arbiter_endpoints")
        ):  # fmt: skip
            yield finding("arbiter_missing", INVENTORY, f"{what} is etcd, but there is none", "no machine", "1 or 3",
                          "Add a machine to the group kvmft_arbiter, or set kvmft_arbiter.endpoints")  # fmt: skip
        if isinstance(value, Mapping) and kind(name) != kind(hosts[0]):
            yield finding("arbiter_differs", INVENTORY, f"{what} is of another type than that of {hosts[0]}",
                          kind(name), kind(hosts[0]) or "none given", "Set it once for the group kvmft_hosts")  # fmt: skip


def _of_variables(
    hosts: Sequence[str], arbiters: Sequence[str], variables: Mapping[str, Mapping]
) -> Iterator[Finding]:  # fmt: skip
    wanted = [(name, each) for name in hosts for each in _wanted(variables[name])]
    wanted += [(name, "kvmft_management_address") for name in arbiters]
    for name, each in wanted:
        value = variables[name].get(each)
        if not value:
            yield finding("variable_missing", INVENTORY, f"{each} is missing for {name}", "nothing", each,
                          f"Set it in the inventory among the variables of {name}")  # fmt: skip
        elif each.endswith("_address") and not _is_ipv4(value):
            yield finding("address_malformed", INVENTORY, f'{each} of {name} is "{value}", which is no IPv4 address',
                          value, "an IPv4 address", "Correct it in the inventory")  # fmt: skip
    for name in hosts:
        if variables[name].get("kvmft_networks"):
            try:
                _networks.normalised(variables[name]["kvmft_networks"], variables[name])
            except _networks.NetworksError as error:
                what, __, remedy = str(error).rstrip(".").partition(". ")
                yield finding("networks_description", INVENTORY, f"of {name}, {what}", "see there", "see the role networks",
                              remedy or "Correct kvmft_networks")  # fmt: skip


def _wanted(variables: Mapping) -> tuple[str, ...]:
    """What the inventory must say of a host; networks that are described in full need no simple variables."""
    return WANTED[:1] if variables.get("kvmft_networks") else WANTED


def _is_ipv4(value: t.Any) -> bool:
    try:
        ipaddress.IPv4Address(str(value))
    except ValueError:
        return False
    return True


def _of_names_used_twice(
    hosts: Sequence[str], variables: Mapping[str, Mapping]
) -> Iterator[Finding]:
    for each in ALONE:
        owners: dict[str, str] = {}
        for name in hosts:
            value = str(variables[name].get(each) or "")
            if value and value in owners:
                yield finding("address_twice", INVENTORY, f"{owners[value]} and {name} have the same {each} {value}",
                              value, "one each", "Give each host its own; two names of one server are no fault tolerance")  # fmt: skip
            elif value:
                owners[value] = name


# -- one host ---------------------------------------------------------------------------------------------


def _of_host(name: str, record: Mapping, ended: float) -> Iterator[Finding]:
    seen, limits, variables = record["seen"], record["limits"], record.get("variables") or {}
    yield from _of_machine(name, seen, limits)
    yield from _of_clock(name, seen, limits, float(record.get("begun") or 0), ended)
    yield from _of_security(name, seen, limits)
    yield from _of_room(name, seen, limits)
    yield from _of_networks(name, seen, limits, variables)
    arbiter = variables.get("kvmft_arbiter")
    if (
        isinstance(arbiter, Mapping)
        and arbiter.get("type") == "file"
        and str(arbiter.get("directory") or "").startswith("/")
    ):
        yield from _of_directory(name, arbiter["directory"], seen.get("mount"))


def _of_machine(name: str, seen: Mapping, limits: Mapping) -> Iterator[Finding]:
    system = f"{seen['os']['id']} {seen['os']['version']}"
    systems = limits.get("systems") or SYSTEMS
    if system not in systems:
        yield finding("system", name, f"{seen['os'].get('name') or system} is not a system that kvmft is made for", system,
                      ", ".join(systems), "Install one of these")  # fmt: skip
    cpu, kernel = seen["cpu"], seen["kernel"]
    if cpu["architecture"] != "x86_64":
        yield finding("cpu_architecture", name, f"the processor is {cpu['architecture']}, not x86_64", cpu["architecture"],
                      "x86_64", "Use an x86-64 server")  # fmt: skip
    elif not cpu.get("kvm"):
        yield finding("kvm", name, "there is no usable /dev/kvm: guests would run under emulation", "no /dev/kvm", "/dev/kvm",
                      "Turn virtualisation (VT-x, AMD-V) on in the firmware, and load kvm_intel or kvm_amd", WARNING)  # fmt: skip
    has_scan = kernel.get("pagemap_scan")
    if has_scan is None:
        has_scan = version(kernel["release"]) >= version(limits["min_kernel"])
    if not has_scan:
        planned = bool(limits.get("kernel_planned"))
        yield finding("kernel", name,
                      f"the kernel is {kernel['release']}; PAGEMAP_SCAN needs {limits['min_kernel']}", kernel["release"],
                      limits["min_kernel"],
                      "The role hypervisor will install the kernel of backports and reboot" if planned else
                      "Install a newer kernel (Debian 12: kvmft_hypervisor_kernel: backports, or linux-image-amd64 of "
                      "bookworm-backports) and reboot", WARNING if planned else ERROR)  # fmt: skip
    if (kernel.get("ptrace_scope") or 0) > 2:
        yield finding("ptrace", name, "the kernel lets nobody trace processes", "kernel.yama.ptrace_scope = 3", "2 or less",
                      "Set kernel.yama.ptrace_scope to 1 in /etc/sysctl.d and reboot")  # fmt: skip
    memory = seen.get("memory_mib") or 0
    if memory < int(limits["min_memory_mb"]):
        yield finding("memory", name, f"memory is {memory} MiB", f"{memory} MiB", f"{limits['min_memory_mb']} MiB",
                      "Add memory")  # fmt: skip
    for program, least in (("qemu", limits["min_qemu"]), ("libvirt", limits["min_libvirt"])):
        has = seen.get("versions", {}).get(program)
        if has and version(has) < version(least):
            yield finding(f"{program}_old", name, f"{program} {has} is too old", has, least,
                          "Upgrade it, or use a newer release of the system")  # fmt: skip


def _of_clock(
    name: str, seen: Mapping, limits: Mapping, begun: float, ended: float
) -> Iterator[Finding]:
    clock, most = seen.get("clock") or {}, float(limits["max_clock_seconds"])
    if clock.get("time") is not None:
        # Seen at some moment between both; only what lies outside of them is certain.
        off = max(begun - clock["time"], clock["time"] - ended, 0.0)
        if off > most:
            where = "behind" if clock["time"] < begun else "ahead of"
            yield finding("clock", name, f"the clock is {off:.0f} s {where} the controller's", f"{off:.0f} s", f"{most:g} s",
                          "Set it, and have NTP keep it (timedatectl set-ntp true): certificates and events carry times")  # fmt: skip
    if clock.get("synchronized") is False:
        yield finding("clock_free", name, "the clock is not synchronised", "free running", "NTP",
                      "Have chrony or systemd-timesyncd keep it (timedatectl set-ntp true)", WARNING)  # fmt: skip


def _of_security(name: str, seen: Mapping, limits: Mapping) -> Iterator[Finding]:
    has = seen.get("security") or {}
    if has.get("selinux_enforcing"):
        yield finding("selinux", name, "SELinux is enforcing; kvmft brings no policy for it", "enforcing", "permissive or off",
                      "Set it to permissive (setenforce 0, and /etc/selinux/config)")  # fmt: skip
    if has.get("apparmor") and not has.get("apparmor_parser"):
        yield finding("apparmor_parser", name, "AppArmor is on, but apparmor_parser is not installed", "nothing",
                      "apparmor_parser", "Install the package apparmor: QEMU could not reach the agent's sockets")  # fmt: skip
    if has.get("apparmor") and has.get("apparmor_local") is False:
        yield finding("apparmor_local", name, "libvirt's AppArmor abstraction leaves local additions out",
                      "no include of local/abstractions/libvirt-qemu", "include if exists <local/abstractions/libvirt-qemu>",
                      "Restore /etc/apparmor.d/abstractions/libvirt-qemu of the package libvirt-daemon-system")  # fmt: skip
    if has.get("container") and limits.get("cgroup_controllers") is None:
        yield finding("cgroup", name, f"it is a container ({has['container']}), where libvirt finds no cgroup tree of its own",
                      "kvmft_hypervisor_cgroup_controllers not set", "[]",
                      "Set kvmft_hypervisor_cgroup_controllers to an empty list")  # fmt: skip


def _of_room(name: str, seen: Mapping, limits: Mapping) -> Iterator[Finding]:
    for path, wanted in (limits.get("free") or {}).items():
        has = (seen.get("free") or {}).get(path)
        if not has:
            continue
        need = max(int(wanted["mb"]), -(-has["size_mib"] * int(wanted.get("percent", 0)) // 100))
        if has["free_mib"] < need:
            yield finding(wanted["id"], name, f"there is too little room for {path}, at {has['mount']}",
                          f"{has['free_mib']} MiB", f"{need} MiB", wanted["remedy"])  # fmt: skip


def _of_networks(
    name: str, seen: Mapping, limits: Mapping, variables: Mapping
) -> Iterator[Finding]:
    own = {each["address"] for link in seen.get("links", {}).values() for each in link["addresses"]}
    management = variables.get("kvmft_management_address")
    if _is_ipv4(management) and str(management) not in own:
        yield finding("management_address", name, f"the management address {management} is on none of its interfaces",
                      ", ".join(sorted(each for each in own if ":" not in each)), management,
                      "Correct kvmft_management_address, or configure it")  # fmt: skip
    for networks in _understood(variables):
        for network in networks:
            link = seen["links"].get(network["interface"]) or {}
            speed, wanted = link.get("speed_mbit"), int(limits.get("good_speed_mbit") or 0)
            if (
                "ft" in network["purpose"]
                and speed is not None
                and network["min_speed_mbit"] <= speed < wanted
            ):
                yield finding("ft_speed_low", name, f"the link of {network['interface']} is slow for an FT network",
                              f"{speed} Mbit/s", f"{wanted} Mbit/s",
                              "Expect long commits under load; use a faster link for FT", WARNING)  # fmt: skip
        if limits.get("networks_manage"):
            addresses = [
                str(variables[each])
                for each in ("kvmft_management_address", "ansible_host")
                if variables.get(each)
            ]
            for each in _networks.refusals(
                networks, seen, addresses, str(variables.get("kvmft_management_interface") or "")
            ):
                what, __, remedy = each.rstrip(".").partition(". ")
                yield finding(
                    "networks_managed", name, what, "see there", "an interface of its own", remedy
                )
        else:
            for each in _networks.findings(networks, seen):
                yield finding(
                    each["id"], name, each["what"], each["have"], each["need"], each["remedy"]
                )


def _understood(variables: Mapping) -> Iterator[list[dict[str, t.Any]]]:
    """The networks, purpose by purpose where the simple form is not complete: what is missing is told elsewhere."""
    if variables.get("kvmft_networks"):
        try:
            yield _networks.normalised(variables["kvmft_networks"], variables)
        except _networks.NetworksError:
            return
        return
    made: list[dict[str, t.Any]] = []
    for purpose in _networks.PURPOSES:
        address, interface = (
            variables.get(f"kvmft_{purpose}_{each}") for each in ("address", "interface")
        )
        if _is_ipv4(address) and interface:
            made.append({
                "purpose": [purpose], "interface": str(interface), "address": str(address), "device": {"type": "interface"},
                "mtu": int(variables.get("kvmft_networks_mtu") or _networks.MTU),
                "min_speed_mbit": int(variables.get("kvmft_networks_min_speed_mbit") or _networks.SPEED),
            })  # fmt: skip
    yield made


def _of_directory(name: str, path: str, mount: Mapping | None) -> Iterator[Finding]:
    if not mount:
        yield finding("directory_missing", name, f"the directory {path} of the arbiter does not exist", "nothing",
                      "a mounted directory", "Make it and mount the shared directory there")  # fmt: skip
        return
    if mount.get("target") == "/":
        yield finding("directory_not_mounted", name, f"the directory {path} of the arbiter is on the root file system",
                      "/", "a mount point", "Mount the shared directory there; see findmnt and /etc/fstab")  # fmt: skip
    if str(mount.get("fstype") or "").startswith("nfs"):
        options = str(mount.get("options") or "")
        has = set(options.split(","))
        if not has & {"vers=4.1", "vers=4.2"}:
            yield finding("directory_nfs_version", name, f"the arbiter is on NFS with {options}", options, "vers=4.1 or 4.2",
                          "Mount it with vers=4.1 or 4.2")  # fmt: skip
        if "hard" not in has or has & {"soft", "softerr", "intr", "nocto"}:
            yield finding("directory_nfs_options", name, f"the arbiter is on NFS with {options}", options, "hard",
                          "Mount it with hard, and without soft, softerr, intr and nocto")  # fmt: skip


# -- several hosts ----------------------------------------------------------------------------------------


def _of_several(
    seen: Mapping[str, Mapping], variables: Mapping[str, Mapping], examined: Mapping[str, Mapping | None]
) -> Iterator[Finding]:  # fmt: skip
    first = next(iter(seen), "")
    for name in list(seen)[1:]:
        yield from _of_pair(first, seen[first], name, seen[name])
    yield from _of_identity(seen)
    yield from _of_paths(seen, variables, examined)


def _of_pair(first: str, one: Mapping, name: str, other: Mapping) -> Iterator[Finding]:
    def differs(what: str, has: t.Any, need: t.Any) -> bool:
        return bool(has) and bool(need) and has != need

    if differs("architecture", other["cpu"]["architecture"], one["cpu"]["architecture"]):
        yield finding("architecture_differs", name, f"its architecture is not that of {first}", other["cpu"]["architecture"],
                      one["cpu"]["architecture"], "Use servers of one architecture")  # fmt: skip
    elif differs("model", other["cpu"].get("model"), one["cpu"].get("model")):
        yield finding("cpu_differs", name, f"its processor is not that of {first}", other["cpu"]["model"], one["cpu"]["model"],
                      "Give VMs a CPU model that both have (virsh cpu-baseline), not host-passthrough", WARNING)  # fmt: skip
    for program in ("qemu", "libvirt"):
        has, need = other.get("versions", {}).get(program), one.get("versions", {}).get(program)
        if differs(program, has, need):
            yield finding(f"{program}_differs", name, f"its {program} is not that of {first}", has, need,
                          "Upgrade both hosts to the same release: no VM is protected between two versions of QEMU", WARNING)  # fmt: skip


def _of_identity(seen: Mapping[str, Mapping]) -> Iterator[Finding]:
    for key, name_of, severity, remedy in (
        ("machine_id", "machine-id", ERROR,
         "If it is another server, give it an identity (rm /etc/machine-id; systemd-machine-id-setup; reboot)"),
        ("hostname", "host name", WARNING, "Give each server its own: hostnamectl set-hostname"),
    ):  # fmt: skip
        owners: dict[str, str] = {}
        for name, has in seen.items():
            value = str(has.get(key) or "")
            if value and value in owners:
                yield finding(f"{key}_twice", name, f"it has the same {name_of} as {owners[value]}", value, "one each", remedy,
                              severity)  # fmt: skip
            owners.setdefault(value, name)


def _of_paths(
    seen: Mapping[str, Mapping], variables: Mapping[str, Mapping], examined: Mapping[str, Mapping | None]
) -> Iterator[Finding]:  # fmt: skip
    """MTU and network of each purpose, the same on all hosts."""
    for purpose in _networks.PURPOSES:
        largest: tuple[int, str] = (0, "")
        found: list[tuple[str, int, str, str]] = []
        for name in seen:
            managed = ((examined.get(name) or {}).get("limits") or {}).get("networks_manage")
            for network in next(_understood(variables[name]), []):
                link = seen[name]["links"].get(network["interface"])
                if purpose not in network["purpose"] or link is None or managed:
                    continue
                prefix = next(
                    (
                        each["prefix"]
                        for each in link["addresses"]
                        if each["address"] == network["address"]
                    ),
                    None,
                )
                subnet = (
                    str(ipaddress.ip_network(f"{network['address']}/{prefix}", strict=False))
                    if prefix
                    else ""
                )
                found.append((name, int(link["mtu"] or 0), network["interface"], subnet))
                largest = max(largest, (int(link["mtu"] or 0), name), key=lambda each: each[0])
        for name, mtu, interface, __ in found:
            if mtu != largest[0]:
                yield finding("mtu_differs", name, f"the MTU of {interface} is not that of {largest[1]} on the {purpose} network",
                              mtu, largest[0], f"Set the same MTU on all hosts: ip link set {interface} mtu {largest[0]}")  # fmt: skip
        subnets = [(name, subnet) for name, __, __, subnet in found if subnet]
        for name, subnet in subnets[1:]:
            if subnet != subnets[0][1]:
                yield finding("subnet_differs", name, f"its {purpose} address lies in another network than that of {subnets[0][0]}",
                              subnet, subnets[0][1], "Use addresses of one network, unless it is routed on purpose", WARNING)  # fmt: skip


# -- telling it -------------------------------------------------------------------------------------------


def table(findings: Sequence[Finding], ignored: int = 0) -> list[str]:
    """Lines for people: a headline, then two lines per finding, errors first."""
    errors = [each for each in findings if each["severity"] == ERROR]
    warnings = [each for each in findings if each["severity"] != ERROR]
    told = f"kvmft preflight: {len(errors)} finding(s)"
    told += f", {len(warnings)} warning(s)" if warnings else ""
    lines = [told + (f", {ignored} ignored" if ignored else "") + "; nothing was changed."]
    if not findings:
        return lines
    ids = max(len(each["id"]) for each in findings)
    hosts = max(len(each["host"]) for each in findings)
    for each in [*errors, *warnings]:
        mark = "!" if each["severity"] == ERROR else "?"
        lines.append(
            f"{mark} {each['id']:<{ids}}  {each['host']:<{hosts}}  {each['what']} (have: {each['have']}; need: {each['need']})"
        )
        lines.append(f"  {'':<{ids}}  {'':<{hosts}}  {each['remedy']}.")
    return lines
