"""A libvirt domain's XML: what it is, why it may not be protected, and its standby's form. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kvmft.errors import KvmftError

QEMU_NS = "http://libvirt.org/schemas/domain/qemu/1.0"
MONITOR_PREFIX = "unix:/run/kvmft/qmp/"
ET.register_namespace("qemu", QEMU_NS)


@dataclass(frozen=True)
class Disk:
    """A writable disk: target name, image path and format."""

    target: str
    path: str
    format: str


@dataclass(frozen=True)
class Nic:
    """A network interface: libvirt's alias and the MAC address."""

    alias: str
    mac: str


@dataclass(frozen=True)
class Domain:
    """What kvmft needs of a live domain. `memory` in bytes."""

    name: str
    uuid: str
    machine: str
    accelerator: str
    memory: int
    vcpus: int
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    boot_files: tuple[str, ...]
    own_monitor: str | None


def _parse(xml: str) -> ET.Element:
    try:
        return ET.fromstring(xml)
    except ET.ParseError as error:
        raise KvmftError("domain_xml", f"The domain XML cannot be read: {error}.",
                         "Check it with `virsh dumpxml`.") from error  # fmt: skip


def _writable_disks(root: ET.Element) -> list[ET.Element]:
    return [
        disk
        for disk in root.findall("devices/disk")
        if disk.get("device", "disk") == "disk" and disk.find("readonly") is None
    ]


def _arguments(root: ET.Element) -> list[str]:
    return [arg.get("value", "") for arg in root.findall(f"{{{QEMU_NS}}}commandline/{{{QEMU_NS}}}arg")]


def describe(xml: str) -> Domain:
    """Read a live domain's XML."""
    root = _parse(xml)
    units = {"b": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    memory = root.find("memory")
    size = int(memory.text or 0) * units[memory.get("unit", "KiB")] if memory is not None else 0
    disks = []
    for disk in _writable_disks(root):
        source, target, driver = disk.find("source"), disk.find("target"), disk.find("driver")
        path = source.get("file", "") if source is not None else ""
        name = target.get("dev", "") if target is not None else ""
        disks.append(Disk(name, path, driver.get("type", "raw") if driver is not None else "raw"))
    nics = []
    for index, nic in enumerate(root.findall("devices/interface")):
        alias, mac = nic.find("alias"), nic.find("mac")
        nics.append(
            Nic(
                alias.get("name", "") if alias is not None else f"net{index}",
                mac.get("address", "") if mac is not None else "",
            )
        )
    system = root.find("os/type")
    monitor = [arg for arg in _arguments(root) if arg.startswith(MONITOR_PREFIX)]
    files = [root.findtext(f"os/{tag}") for tag in ("kernel", "initrd", "loader")]
    return Domain(
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", ""),
        machine=system.get("machine", "") if system is not None else "",
        accelerator="kvm" if root.get("type") == "kvm" else "tcg",
        memory=size,
        vcpus=int(root.findtext("vcpu", "1")),
        disks=tuple(disks),
        nics=tuple(nics),
        boot_files=tuple(path for path in files if path),
        own_monitor=monitor[0].split(",")[0].removeprefix("unix:") if monitor else None,
    )


def compliance(xml: str, snapshots: int = 0) -> list[KvmftError]:
    """All reasons why this VM cannot be protected, each with its remedy; none: it can."""
    root = _parse(xml)
    name = root.findtext("name", "")
    found: list[KvmftError] = []

    def add(code: str, message: str, remedy: str) -> None:
        found.append(KvmftError(code, f"VM {name}: {message}", remedy))

    for tag, what in (
        ("hostdev", "a host device"),
        ("tpm", "an emulated TPM"),
        ("filesystem", "a shared file system"),
        ("shmem", "shared memory with another VM"),
        ("redirdev", "a redirected USB device"),
    ):
        if root.find(f"devices/{tag}") is not None:
            add(tag, f"it has {what} (<{tag}>), whose state another host cannot have.",
                f"Detach it: remove <{tag}> from the domain.")  # fmt: skip
    for nic in root.findall("devices/interface"):
        _check_nic(nic, add)
    for disk in root.findall("devices/disk"):
        _check_disk(disk, add)
    if not _writable_disks(root):
        add("no_disk", "it has no writable disk.", "Protect VMs that keep something.")
    backing = root.find("memoryBacking")
    if backing is not None and backing.find("hugepages") is not None:
        add("hugepages", "its memory is on huge pages of hugetlbfs, which cannot be tracked.",
            "Remove <hugepages/>; transparent huge pages are used by themselves.")  # fmt: skip
    source = backing.find("source") if backing is not None else None
    if source is not None and source.get("type") == "file":
        add("file_memory", "its memory is backed by a file.", "Use anonymous or memfd memory.")
    if snapshots:
        add("snapshots", f"it has {snapshots} snapshots.", "Delete them: `virsh snapshot-delete`.")
    return found


def _check_nic(nic: ET.Element, add) -> None:  # type: ignore[no-untyped-def]
    mac = nic.find("mac")
    label = f"interface {mac.get('address') if mac is not None else '?'}"
    kind = nic.get("type", "")
    if kind not in ("bridge", "network", "user", "ethernet"):
        add("nic_type", f"{label} is of type {kind}, whose packets cannot be held.",
            "Use a bridge: <interface type='bridge'>.")  # fmt: skip
    model, driver = nic.find("model"), nic.find("driver")
    virtio = model is not None and (model.get("type") or "").startswith("virtio")
    if virtio and (driver is None or driver.get("name") != "qemu"):
        add("nic_vhost", f"{label} uses vhost, which sends packets past QEMU.",
            "Add <driver name='qemu'/> to it and restart the VM once.")  # fmt: skip


def _check_disk(disk: ET.Element, add) -> None:  # type: ignore[no-untyped-def]
    target = disk.find("target")
    label = f"disk {target.get('dev') if target is not None else '?'}"
    if disk.get("device", "disk") in ("cdrom", "floppy"):
        if disk.find("source") is not None and disk.find("readonly") is None:
            add("removable", f"{label} is a writable removable medium.", "Eject it.")
        return
    if disk.find("shareable") is not None:
        add("disk_shared", f"{label} is shared with other VMs (<shareable/>).",
            "A protected VM's disks must be its own; remove <shareable/>.")  # fmt: skip
    if disk.get("type") != "file":
        add("disk_type", f"{label} is of type {disk.get('type')}, not an image file.",
            "Only image files are mirrored in this version; move it to a file.")  # fmt: skip
    if disk.find("transient") is not None:
        add("disk_transient", f"{label} throws its writes away (<transient/>).",
            "Remove <transient/>.")  # fmt: skip


def _strip_ours(root: ET.Element) -> None:
    line = root.find(f"{{{QEMU_NS}}}commandline")
    if line is None:
        return
    kept: list[ET.Element] = []
    for element in list(line):
        value = element.get("value", "")
        if value == "defer" or value.startswith(MONITOR_PREFIX):
            if kept and kept[-1].get("value") in ("-incoming", "-qmp"):
                kept.pop()
            continue
        kept.append(element)
    for element in list(line):
        line.remove(element)
    line.extend(kept)
    if not kept:
        root.remove(line)


def _add_arguments(root: ET.Element, *values: str) -> None:
    line = root.find(f"{{{QEMU_NS}}}commandline")
    if line is None:
        line = ET.SubElement(root, f"{{{QEMU_NS}}}commandline")
    for value in values:
        ET.SubElement(line, f"{{{QEMU_NS}}}arg", {"value": value})


def standby_xml(live_xml: str, monitor: str, paths: dict[str, str]) -> str:
    """The standby's domain: the live one, with shared memory, waiting for device state.

    `paths` gives the image path here for each writable disk's target; replicas are raw.
    """
    root = _parse(live_xml)
    root.attrib.pop("id", None)
    for tag in ("seclabel", "iothreadids"):
        for element in root.findall(tag):
            root.remove(element)
    backing = root.find("memoryBacking")
    if backing is None:
        backing = ET.Element("memoryBacking")
        root.insert(3, backing)
    for element in list(backing):
        backing.remove(element)
    ET.SubElement(backing, "source", {"type": "memfd"})
    ET.SubElement(backing, "access", {"mode": "shared"})
    for disk in root.findall("devices/disk"):
        for tag in ("backingStore", "mirror"):
            for element in disk.findall(tag):
                disk.remove(element)
    for disk in _writable_disks(root):
        target, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
        name = target.get("dev", "") if target is not None else ""
        if source is not None and name in paths:
            source.attrib.clear()
            source.set("file", paths[name])
            for element in list(source):
                source.remove(element)
        if driver is not None:
            driver.set("type", "raw")
    for nic in root.findall("devices/interface"):
        for element in nic.findall("target"):
            nic.remove(element)
    _strip_ours(root)
    _add_arguments(
        root, "-qmp", f"{MONITOR_PREFIX}{monitor},server=on,wait=off", "-incoming", "defer"
    )
    return ET.tostring(root, encoding="unicode")


def persistent_xml(standby: str) -> str:
    """The definition to keep once the standby runs: no longer waiting for an incoming state."""
    root = _parse(standby)
    root.attrib.pop("id", None)
    _strip_ours(root)
    return ET.tostring(root, encoding="unicode")
