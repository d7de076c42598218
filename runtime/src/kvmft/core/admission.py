"""What a host lacks for the standby of a domain: every reason at once, with need and have. Pure.

`HostFacts` is what the agent there found out; `Request` what the primary's agent said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvmft.core.domain import Domain
from kvmft.errors import KvmftError

MEMORY_RESERVE = 64 << 20
"""Bytes beyond the VM's RAM that a QEMU needs."""


@dataclass(frozen=True)
class FileFact:
    """A file's size in bytes, and its SHA-256 where it was small enough to be read whole."""

    size: int
    sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The shape that crosses the FT network."""
        return {"size": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class Replica:
    """Where a disk's replica would lie. Sizes in bytes; `used` is what the file there occupies.

    `ours`: the file there is a replica of this VM. `regular`: it is a file, or nothing is there.
    `room` names the file system, whose free bytes `HostFacts.free` has.
    """

    target: str
    path: str
    size: int
    used: int
    ours: bool
    regular: bool
    room: str


@dataclass(frozen=True)
class HostFacts:
    """What this host has. `domains` are other VMs' names -> (uuid, MAC addresses).

    `cannot_run` is libvirt's answer to the wish for this emulator, machine type and accelerator;
    `cpu_missing` its answer to the wish for this CPU; both empty when all is well.
    """

    memory: int
    replicas: Sequence[Replica]
    free: dict[str, int]
    files: dict[str, FileFact]
    bridges: frozenset[str]
    networks: dict[str, bool]
    domains: dict[str, tuple[str, frozenset[str]]]
    emulator: bool = True
    cannot_run: str = ""
    cpu_missing: str = ""
    nvram: bool = True
    nvram_template: bool = True
    managed_save: bool = False


@dataclass(frozen=True)
class Request:
    """What the primary's agent says besides the XML: the files that the VM reads, as it has them,
    and its host's CPU as libvirt describes it."""

    files: dict[str, FileFact] = field(default_factory=dict)
    host_cpu: str = ""

    @classmethod
    def read(cls, value: Any) -> Request:
        """From the agent's JSON; KvmftError `bad_request` when it is malformed."""
        try:
            files = {
                str(path): FileFact(int(fact["size"]), str(fact["sha256"]))
                for path, fact in (value or {}).get("files", {}).items()
            }
            return cls(files, str((value or {}).get("host_cpu", "")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise KvmftError("bad_request", f"The request's facts are malformed: {error!r}.",
                             "Both hosts need the same kvmft version.") from error  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The shape that crosses the FT network."""
        files = {path: fact.to_dict() for path, fact in self.files.items()}
        return {"files": files, "host_cpu": self.host_cpu}


REASONS: dict[str, tuple[str, str]] = {
    "memory": ("too little free memory", "Stop other VMs there, or choose another host."),
    "disk_space": ("too little free disk space", "Free space there, or choose another host."),
    "replica_path_taken": ("a file that is no replica of this VM where a replica would lie",
                           "Move it away, or remove it there if nothing needs it."),
    "emulator_missing": ("another emulator path", "Install QEMU there at the same path."),
    "machine_unknown": ("no support for the VM's machine type or accelerator (KVM)",
                        "Install the same QEMU on both hosts, and enable KVM there."),
    "cpu_differs": ("a CPU that lacks what the guest sees; another CPU than the primary's for "
                    "host-passthrough",
                    "Give the VM a CPU model that both hosts have (`virsh cpu-baseline`), and "
                    "restart it once."),
    "file_missing": ("kernel, firmware, media or read-only disks that are missing",
                     "Copy it to the same path there, or eject the medium."),
    "file_differs": ("kernel, firmware, media or read-only disks of other content",
                     "Copy the primary's file to the same path there."),
    "nvram_template": ("no UEFI variables and no template to make them from",
                       "Install the same firmware there (Debian: package ovmf)."),
    "bridge_missing": ("a bridge that is missing", "Create a bridge of that name there."),
    "network_missing": ("a libvirt network that is missing or not active",
                        "Define and start it there: virsh net-start."),
    "mac_taken": ("another VM with one of the VM's MAC addresses",
                  "Give one of the two VMs another MAC address."),
    "name_taken": ("another VM of the same name", "Rename one of the two VMs."),
    "managed_save": ("a saved state of the VM, which its next start would bring back",
                     "Remove it there: virsh managedsave-remove."),
}  # fmt: skip
"""Code -> what the secondary's host may have against it (for the documentation), and the remedy."""


def lacking(domain: Domain, request: Request, facts: HostFacts) -> list[KvmftError]:
    """Everything this host lacks for the standby of `domain`; empty when it can take it."""
    return [
        KvmftError(code, message, REASONS[code][1])
        for check in (_room, _replicas, _machine, _files, _network, _identity)
        for code, message in check(domain, request, facts)
    ]


_Found = Iterator[tuple[str, str]]


def _room(domain: Domain, _request: Request, facts: HostFacts) -> _Found:
    need = domain.memory + MEMORY_RESERVE
    if facts.memory < need:
        yield "memory", (f"The secondary needs {need >> 20} MiB of memory and has "
                         f"{facts.memory >> 20} MiB.")  # fmt: skip
    missing: dict[str, int] = {}
    for replica in facts.replicas:
        missing[replica.room] = missing.get(replica.room, 0) + max(0, replica.size - replica.used)
    for room, amount in missing.items():
        if facts.free[room] < amount:
            yield "disk_space", (f"The replica needs {amount >> 20} MiB in {room}; "
                                 f"{facts.free[room] >> 20} MiB are free.")  # fmt: skip


def _replicas(_domain: Domain, _request: Request, facts: HostFacts) -> _Found:
    seen: set[str] = set()
    for replica in facts.replicas:
        if (replica.used and not replica.ours) or not replica.regular:
            yield "replica_path_taken", (f"{replica.path} exists on the secondary's host and is no "
                                         "replica of this VM.")  # fmt: skip
        elif replica.path in seen:
            yield "replica_path_taken", (f"{replica.path} would be the replica of two disks of the "
                                         "VM.")  # fmt: skip
        seen.add(replica.path)


def _machine(domain: Domain, _request: Request, facts: HostFacts) -> _Found:
    if not facts.emulator:
        yield "emulator_missing", (f"The VM's emulator is {domain.emulator}, which the secondary does "
                                   "not have.")  # fmt: skip
    elif facts.cannot_run:
        yield "machine_unknown", (f"The secondary cannot run machine type {domain.machine} with "
                                  f"{domain.accelerator}: {facts.cannot_run}.")  # fmt: skip
    if facts.cpu_missing:
        yield "cpu_differs", f"The VM's CPU cannot be had on the secondary: {facts.cpu_missing}."


def _files(domain: Domain, request: Request, facts: HostFacts) -> _Found:
    for path in domain.files:
        here, there = facts.files.get(path), request.files.get(path)
        if here is None:
            yield "file_missing", f"The VM reads {path}, which the secondary does not have."
        elif there is not None and here != there:
            yield "file_differs", (f"The VM reads {path}, which is another file on the secondary "
                                   f"(its size is {here.size} bytes, the primary has {there.size}).")  # fmt: skip
    if domain.nvram and not facts.nvram and not facts.nvram_template:
        yield "nvram_template", (f"The secondary has neither {domain.nvram} nor the template "
                                 f"{domain.nvram_template or 'of its firmware'}.")  # fmt: skip


def _network(domain: Domain, _request: Request, facts: HostFacts) -> _Found:
    for bridge in domain.bridges:
        if bridge not in facts.bridges:
            yield "bridge_missing", (f"The VM hangs on bridge {bridge}, which the secondary does not "
                                     "have.")  # fmt: skip
    for network in domain.networks:
        if network not in facts.networks:
            yield "network_missing", (f"The VM hangs on libvirt network {network}, which the "
                                      "secondary does not have.")  # fmt: skip
        elif not facts.networks[network]:
            yield "network_missing", (f"The VM hangs on libvirt network {network}, which is not "
                                      "active on the secondary.")  # fmt: skip


def _identity(domain: Domain, _request: Request, facts: HostFacts) -> _Found:
    macs = {nic.mac.lower() for nic in domain.nics if nic.mac}
    for name, (uuid, theirs) in facts.domains.items():
        if uuid == domain.uuid:
            continue
        if name == domain.name:
            yield "name_taken", f"The secondary's host has another VM {name} (UUID {uuid})."
        for mac in sorted(macs & theirs):
            yield "mac_taken", f"MAC address {mac} is that of VM {name} on the secondary's host too."
    if facts.managed_save:
        yield "managed_save", f"The secondary's host has a saved state of VM {domain.name}."
