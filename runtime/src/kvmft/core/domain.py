"""A libvirt domain's XML: what kvmft needs to know of it. Pure.

Why a domain may not be protected is in `compliance`, its standby's form in `standby`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass

from kvmft.errors import KvmftError

QEMU_NS = "http://libvirt.org/schemas/domain/qemu/1.0"
MONITOR_PREFIX = "unix:/run/kvmft/qmp/"
MAX_XML = 4 << 20
"""Bytes of a domain's XML beyond which it is not read."""
UNITS = {
    "b": 1, "bytes": 1,
    "KB": 10**3, "k": 1 << 10, "KiB": 1 << 10, "MB": 10**6, "M": 1 << 20, "MiB": 1 << 20,
    "GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40,
}  # fmt: skip
"""libvirt's domain XML format, element `memory`."""
ET.register_namespace("qemu", QEMU_NS)


@dataclass(frozen=True)
class Disk:
    """A writable disk: target name, image path, format, and `kind`: `file` or `block`."""

    target: str
    path: str
    format: str
    kind: str = "file"


@dataclass(frozen=True)
class Nic:
    """A network interface: libvirt's alias and the MAC address."""

    alias: str
    mac: str


@dataclass(frozen=True)
class Domain:
    """What kvmft needs of a domain. `memory` in bytes.

    `files` are read and never written by the VM: kernel, firmware, media. `cpu` is the XML of the
    element <cpu>, empty when there is none.
    """

    name: str
    uuid: str
    machine: str
    accelerator: str
    memory: int
    vcpus: int
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    files: tuple[str, ...]
    own_monitor: str | None
    arch: str = "x86_64"
    emulator: str = ""
    cpu: str = ""
    cpu_mode: str = ""
    bridges: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    nvram: str = ""
    nvram_template: str = ""


def unreadable(why: str) -> KvmftError:
    """The error for XML that is no domain."""
    return KvmftError("domain_xml", f"The domain XML cannot be read: {why}.",
                      "Check it with `virsh dumpxml`.")  # fmt: skip


def parse(xml: str) -> ET.Element:
    """The root element of a domain's XML; KvmftError `domain_xml` when it is none.

    Document types are refused, because libvirt writes none and entities may grow without bound.
    """
    if len(xml) > MAX_XML:
        raise unreadable(f"it has {len(xml)} characters; at most {MAX_XML} are read")
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise unreadable("it has a document type, which libvirt never writes")
    try:
        root = ET.fromstring(xml)
    except (ET.ParseError, ValueError) as error:
        raise unreadable(str(error)) from error
    if root.tag != "domain":
        raise unreadable(f"its root element is <{root.tag}>, not <domain>")
    return root


def attribute(element: ET.Element, path: str, name: str, default: str = "") -> str:
    """The attribute `name` of the child at `path`; `default` where either is missing."""
    found = element.find(path)
    return default if found is None else found.get(name, default)


def is_writable_disk(disk: ET.Element) -> bool:
    """True for a disk that the guest writes, which therefore has to be mirrored."""
    return disk.get("device", "disk") in ("disk", "lun") and disk.find("readonly") is None


def writable_disks(root: ET.Element) -> list[ET.Element]:
    """The elements of all writable disks, in the XML's order."""
    return [disk for disk in root.findall("devices/disk") if is_writable_disk(disk)]


def arguments(root: ET.Element) -> list[str]:
    """QEMU arguments that the XML passes through."""
    return [arg.get("value", "") for arg in root.findall(f"{{{QEMU_NS}}}commandline/{{{QEMU_NS}}}arg")]


def _memory(root: ET.Element) -> int:
    memory = root.find("memory")
    if memory is None:
        return 0
    unit = memory.get("unit", "KiB")
    if unit not in UNITS:
        raise unreadable(f"<memory> has the unit {unit!r}")
    return _count(memory.text, "memory") * UNITS[unit]


def _count(text: str | None, tag: str) -> int:
    value = (text or "0").strip()
    if not value.isascii() or not value.isdigit():
        raise unreadable(f"<{tag}> holds {value!r} instead of a number")
    return int(value)


def _disk(disk: ET.Element) -> Disk:
    kind = "block" if disk.get("type") == "block" else "file"
    return Disk(
        attribute(disk, "target", "dev"),
        attribute(disk, "source", "dev" if kind == "block" else "file"),
        attribute(disk, "driver", "type", "raw"),
        kind,
    )


def _files(root: ET.Element) -> Iterator[str]:
    for tag in ("kernel", "initrd", "dtb", "loader", "acpi/table"):
        for element in root.findall(f"os/{tag}"):
            yield (element.text or "").strip()
    for disk in root.findall("devices/disk"):
        if not is_writable_disk(disk):
            yield attribute(disk, "source", "file")
    for rom in root.findall("devices/*/rom"):
        yield rom.get("file", "")


def describe(xml: str) -> Domain:
    """Read a domain's XML; KvmftError `domain_xml` when it is malformed."""
    root = parse(xml)
    nics = root.findall("devices/interface")
    monitor = [arg for arg in arguments(root) if arg.startswith(MONITOR_PREFIX)]
    cpu = root.find("cpu")
    return Domain(
        name=root.findtext("name", "").strip(),
        uuid=root.findtext("uuid", "").strip(),
        machine=attribute(root, "os/type", "machine"),
        accelerator="kvm" if root.get("type") == "kvm" else "tcg",
        memory=_memory(root),
        vcpus=_count(root.findtext("vcpu", "1"), "vcpu"),
        disks=tuple(_disk(disk) for disk in writable_disks(root)),
        nics=tuple(
            Nic(attribute(nic, "alias", "name", f"net{index}"), attribute(nic, "mac", "address"))
            for index, nic in enumerate(nics)
        ),
        files=tuple(dict.fromkeys(path for path in _files(root) if path)),
        own_monitor=monitor[0].split(",")[0].removeprefix("unix:") if monitor else None,
        arch=attribute(root, "os/type", "arch", "x86_64"),
        emulator=root.findtext("devices/emulator", "").strip(),
        cpu="" if cpu is None else ET.tostring(cpu, encoding="unicode"),
        cpu_mode="" if cpu is None else cpu.get("mode", "custom"),
        bridges=_sources(nics, "bridge"),
        networks=_sources(nics, "network"),
        nvram=root.findtext("os/nvram", "").strip() or attribute(root, "os/nvram/source", "file"),
        nvram_template=attribute(root, "os/nvram", "template"),
    )


def _sources(nics: list[ET.Element], kind: str) -> tuple[str, ...]:
    """The bridges or networks that interfaces of this type hang on."""
    names = [attribute(nic, "source", kind) for nic in nics if nic.get("type") == kind]
    return tuple(dict.fromkeys(name for name in names if name))


def with_cpu_of(xml: str, live: str) -> str:
    """`xml` with the <cpu> of the running VM's XML `live`.

    The migratable XML has the CPU as it was asked for. The running VM has it without the features
    that its host lacks; a standby elsewhere must not have them either, or the guest could begin to
    use what is missing here after the way back.
    """
    root, running = parse(xml), parse(live).find("cpu")
    wanted = root.find("cpu")
    if wanted is None or running is None:
        return xml
    root[list(root).index(wanted)] = running
    return ET.tostring(root, encoding="unicode")


def hardware(live: str) -> frozenset[str]:
    """What a standby must have alike: every device with its address, media, vCPUs in use.

    Two live XMLs of one running VM differ in this when something was plugged in, pulled out or
    changed in between. What may change without harm is left out (balloon, link state, passwords).
    Empty for a VM that is off: its devices have no alias.
    """
    root = parse(live)
    found: set[str] = set()
    for device in root.findall("devices/*"):
        alias = attribute(device, "alias", "name")
        if not alias:
            continue
        address = device.find("address")
        place = "" if address is None else " ".join(f"{k}={v}" for k, v in sorted(address.items()))
        line = f"{device.tag} {alias} {place}"
        if device.tag == "disk":
            source = device.find("source")
            line += f" {'' if source is None else source.get('file') or source.get('dev') or ''}"
        found.add(line.rstrip())
    return frozenset({*found, f"vcpus {_vcpus(root)}"}) if found else frozenset()


def _vcpus(root: ET.Element) -> str:
    vcpu = root.find("vcpu")
    return "1" if vcpu is None else vcpu.get("current") or (vcpu.text or "1").strip()
