"""What this host has, for `core.admission` to decide on. Blocking; asks libvirt and the kernel."""

from __future__ import annotations

import hashlib
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from typing import Any

from kvmft.core.admission import FileFact, HostFacts, Replica, Request
from kvmft.core.domain import Domain, describe
from kvmft.errors import KvmftError

WHOLE = 64 << 20
"""Files up to this size (bytes) are compared by content; of larger ones (media) by size."""
SAME_CPU_MODES = ("host-passthrough", "maximum")
"""CPU modes in which the guest sees whatever its host has."""
_digests: dict[tuple[str, int, int], str] = {}


def file_fact(path: str) -> FileFact | None:
    """Size and digest of the file at `path`; None when there is none."""
    try:
        found = os.stat(path)
        if found.st_size > WHOLE:
            return FileFact(found.st_size)
        key = (path, found.st_mtime_ns, found.st_size)
        if key not in _digests:
            with open(path, "rb") as file:
                _digests[key] = hashlib.sha256(file.read()).hexdigest()
        return FileFact(found.st_size, _digests[key])
    except OSError:
        return None


def request_of(connection: Any, domain: Domain) -> Request:
    """What the primary tells of itself: the files that the VM reads, and its CPU where the guest
    sees it as it is."""
    known = {path: file_fact(path) for path in domain.files}
    cpu = _host_cpu(connection) if _sees_the_host(domain) else ""
    return Request({path: fact for path, fact in known.items() if fact is not None}, cpu)


def _sees_the_host(domain: Domain) -> bool:
    return domain.accelerator == "kvm" and domain.cpu_mode in SAME_CPU_MODES


def _host_cpu(connection: Any) -> str:
    found = ET.fromstring(connection.getCapabilities()).find("host/cpu")
    return "" if found is None else ET.tostring(found, encoding="unicode")


def gather(
    connection: Any,
    domain: Domain,
    request: Request,
    replicas: Iterable[tuple[str, str, int]],
    ours: Callable[[str], bool],
    memory: int,
) -> HostFacts:
    """Everything that `core.admission.lacking` asks. `connection` is libvirt's; `replicas` are rows
    of target, path and size (bytes); `ours` says which files are replicas of this VM."""
    where = [_replica(*row, ours) for row in replicas]
    emulator = not domain.emulator or os.access(domain.emulator, os.X_OK)
    cannot_run = _cannot_run(connection, domain) if emulator else ""
    return HostFacts(
        memory=memory,
        replicas=where,
        free={each.room: shutil.disk_usage(each.room).free for each in where},
        files={path: fact for path in domain.files if (fact := file_fact(path)) is not None},
        bridges=frozenset(name for name in domain.bridges if _is_interface(name)),
        networks=_networks(connection, domain.networks),
        domains=_domains(connection),
        emulator=emulator,
        cannot_run=cannot_run,
        cpu_missing=_cpu_missing(connection, domain, request) if not cannot_run else "",
        nvram=os.path.exists(domain.nvram),
        nvram_template=not domain.nvram_template or os.path.exists(domain.nvram_template),
        managed_save=_managed_save(connection, domain.uuid),
    )


def _replica(target: str, path: str, size: int, ours: Callable[[str], bool]) -> Replica:
    used, regular = 0, True
    if os.path.lexists(path):
        regular = os.path.isfile(path)
        used = os.stat(path).st_blocks * 512 if regular else 0
    return Replica(target, path, size, used, regular and ours(path), regular, _room(path))


def _room(path: str) -> str:
    """The nearest folder that exists and is on the same file system: equal for equal ones."""
    folder = os.path.dirname(os.path.realpath(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    device = os.stat(folder).st_dev
    while folder != "/" and os.stat(os.path.dirname(folder)).st_dev == device:
        folder = os.path.dirname(folder)
    return folder


def _is_interface(name: str) -> bool:
    return "/" not in name and os.path.isdir(f"/sys/class/net/{name}")


def _cannot_run(connection: Any, domain: Domain) -> str:
    import libvirt

    kind = "kvm" if domain.accelerator == "kvm" else "qemu"
    try:
        connection.getDomainCapabilities(
            domain.emulator or None, domain.arch, domain.machine or None, kind
        )
    except libvirt.libvirtError as error:
        return str(error).rstrip(".")
    return ""


def _cpu_missing(connection: Any, domain: Domain, request: Request) -> str:
    import libvirt

    try:
        if _sees_the_host(domain):
            if not request.host_cpu:
                return f"the primary did not say which CPU mode {domain.cpu_mode} means there"
            same = connection.compareCPU(request.host_cpu) == libvirt.VIR_CPU_COMPARE_IDENTICAL
            return "" if same else f"mode {domain.cpu_mode} needs the primary's very CPU"
        if not domain.cpu or domain.cpu_mode != "custom" or "<model" not in domain.cpu:
            return ""
        kind = "kvm" if domain.accelerator == "kvm" else "qemu"
        connection.compareHypervisorCPU(
            domain.emulator or None, domain.arch, domain.machine or None, kind, domain.cpu,
            libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE,
        )  # fmt: skip
    except libvirt.libvirtError as error:
        return str(error).rstrip(".")
    return ""


def _networks(connection: Any, names: Iterable[str]) -> dict[str, bool]:
    import libvirt

    found = {}
    for name in names:
        try:
            found[name] = bool(connection.networkLookupByName(name).isActive())
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (
                libvirt.VIR_ERR_NO_NETWORK,
                libvirt.VIR_ERR_NO_SUPPORT,
                libvirt.VIR_ERR_NO_CONNECT,
            ):
                raise _down(error) from error
    return found


def _domains(connection: Any) -> dict[str, tuple[str, frozenset[str]]]:
    import libvirt

    found = {}
    try:
        for each in connection.listAllDomains():
            try:
                described = describe(each.XMLDesc(0))
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    continue  # it went away between the two calls
                raise
            macs = frozenset(nic.mac.lower() for nic in described.nics if nic.mac)
            found[described.name] = (described.uuid, macs)
    except libvirt.libvirtError as error:
        raise _down(error) from error
    return found


def _managed_save(connection: Any, uuid: str) -> bool:
    import libvirt

    try:
        return bool(connection.lookupByUUIDString(uuid).hasManagedSaveImage())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        raise _down(error) from error


def _down(error: Exception) -> KvmftError:
    return KvmftError("libvirt_down", f"libvirt does not answer: {error}.",
                      "See `systemctl status libvirtd`.")  # fmt: skip
