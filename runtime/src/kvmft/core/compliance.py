"""What cannot be protected, and why: one list of checks, all of which are applied. Pure.

The table in docs/administration.md is made from this list.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kvmft.core.domain import attribute, parse, writable_disks
from kvmft.errors import KvmftError

Finder = Callable[[ET.Element], Iterable[str]]
"""Yields, for each offence in a domain, a clause that names it (`interface 52:... uses vhost`)."""


@dataclass(frozen=True)
class Check:
    """One reason against protection. `what` and `why` go into the documentation; `why` also into
    the message, `remedy` is what to do."""

    code: str
    what: str
    why: str
    remedy: str
    find: Finder


CHECKS: list[Check] = []


def _check(code: str, what: str, why: str, remedy: str) -> Callable[[Finder], Finder]:
    def register(find: Finder) -> Finder:
        CHECKS.append(Check(code, what, why, remedy, find))
        return find

    return register


def compliance(xml: str, snapshots: int = 0) -> list[KvmftError]:
    """All reasons why this VM cannot be protected, each with its remedy; none: it can.

    `snapshots` is how many snapshots libvirt has of it. KvmftError `domain_xml` when the XML is
    malformed.
    """
    root = parse(xml)
    name = root.findtext("name", "").strip()
    found = [
        KvmftError(check.code, f"VM {name}: {clause}, {check.why}.", check.remedy)
        for check in CHECKS
        for clause in check.find(root)
    ]
    if snapshots:
        found.append(
            KvmftError("snapshots", f"VM {name}: it has {snapshots} snapshots, {SNAPSHOTS_WHY}.",
                       SNAPSHOTS_REMEDY)  # fmt: skip
        )
    return found


SNAPSHOTS_WHY = "which stay on this host and belong to images that a failover leaves behind"
SNAPSHOTS_REMEDY = "Delete them: `virsh snapshot-delete`."


def documented() -> list[tuple[str, str, str, str]]:
    """Rows of (code, what, why, remedy) for the documentation."""
    rows = [(check.code, check.what, check.why, check.remedy) for check in CHECKS]
    return [*rows, ("snapshots", "snapshots, with or without memory", SNAPSHOTS_WHY, SNAPSHOTS_REMEDY)]


def _each(root: ET.Element, path: str, clause: str) -> Iterator[str]:
    for __ in root.findall(path):
        yield clause


# -- the machine ------------------------------------------------------------------------------------


@_check("hypervisor", "domains that are not of QEMU on x86", "which kvmft cannot look into",
        "Use <domain type='kvm'> with arch x86_64.")  # fmt: skip
def _hypervisor(root: ET.Element) -> Iterator[str]:
    kind, arch = root.get("type", ""), attribute(root, "os/type", "arch", "x86_64")
    if kind not in ("kvm", "qemu") or arch not in ("x86_64", "i686"):
        yield f"it is of type {kind} for {arch}"


@_check("machine", "machine types other than q35 and i440fx (microvm, isapc, ...)",
        "whose device state is not known to load elsewhere",
        "Use a q35 or pc machine type.")  # fmt: skip
def _machine(root: ET.Element) -> Iterator[str]:
    machine = attribute(root, "os/type", "machine", "pc")
    if machine not in ("pc", "q35") and not machine.startswith(("pc-q35-", "pc-i440fx-")):
        yield f"its machine type is {machine}"


@_check("launch_security", "encrypted memory (SEV, SEV-SNP, TDX: <launchSecurity>)",
        "which nobody outside the guest can copy", "Remove <launchSecurity>.")  # fmt: skip
def _launch_security(root: ET.Element) -> Iterator[str]:
    yield from _each(root, "launchSecurity", "its memory is encrypted (<launchSecurity>)")


@_check("invtsc", "the CPU feature invtsc without a fixed TSC frequency",
        "so that the guest's clock would change its speed on the other host",
        "Add <timer name='tsc' frequency='HZ'/> to <clock>, or remove invtsc.")  # fmt: skip
def _invtsc(root: ET.Element) -> Iterator[str]:
    wanted = any(
        each.get("name") == "invtsc" and each.get("policy", "require") in ("require", "force")
        for each in root.findall("cpu/feature")
    )
    fixed = any(
        each.get("name") == "tsc" and each.get("frequency") for each in root.findall("clock/timer")
    )
    if wanted and not fixed:
        yield "it has an invariant TSC (invtsc) of the host's frequency"


@_check("loader_writable", "firmware that the guest writes (pflash loader without readonly='yes')",
        "which is not carried to the secondary",
        "Use <loader readonly='yes' type='pflash'> with an <nvram> of its own.")  # fmt: skip
def _loader_writable(root: ET.Element) -> Iterator[str]:
    loader = root.find("os/loader")
    if loader is not None and loader.get("type") == "pflash" and loader.get("readonly") != "yes":
        yield f"its firmware {(loader.text or '').strip()} is writable"


@_check("nvram_type", "UEFI variables on a network or block device",
        "which the secondary must not share", "Keep <nvram> in a file.")  # fmt: skip
def _nvram_type(root: ET.Element) -> Iterator[str]:
    kind = attribute(root, "os/nvram", "type", "file")
    if kind != "file":
        yield f"its UEFI variables are on a source of type {kind}"


# -- memory -----------------------------------------------------------------------------------------


@_check("hugepages", "memory on huge pages of hugetlbfs", "whose writes cannot be tracked",
        "Remove <hugepages/>; transparent huge pages are used by themselves.")  # fmt: skip
def _hugepages(root: ET.Element) -> Iterator[str]:
    yield from _each(root, "memoryBacking/hugepages", "its memory is on huge pages of hugetlbfs")


@_check("file_memory", "memory in files", "so that every page would also be written to a disk",
        "Use anonymous or memfd memory: remove <source type='file'/>.")  # fmt: skip
def _file_memory(root: ET.Element) -> Iterator[str]:
    if attribute(root, "memoryBacking/source", "type") == "file":
        yield "its memory is backed by a file"


@_check("memory_device", "memory devices other than DIMMs (nvdimm, virtio-pmem, virtio-mem, sgx-epc)",
        "whose content is not carried", "Remove the <memory> device.")  # fmt: skip
def _memory_device(root: ET.Element) -> Iterator[str]:
    for device in root.findall("devices/memory"):
        if device.get("model") != "dimm":
            yield f"it has a memory device of model {device.get('model')}"


# -- devices that are tied to this host -------------------------------------------------------------

for _tag, _what, _remedy in (
    ("hostdev", "a host device (PCI, USB, SCSI or mediated)", "Detach it: remove <hostdev>."),
    ("tpm", "a TPM", "Detach it: remove <tpm>."),
    ("filesystem", "a shared file system (9p, virtiofs)", "Detach it: remove <filesystem>."),
    ("shmem", "memory shared with another process", "Detach it: remove <shmem>."),
    ("redirdev", "a redirected USB device", "Detach it: remove <redirdev>."),
    ("vsock", "a socket to the host (vhost-vsock)", "Detach it: remove <vsock>."),
    ("crypto", "a crypto device", "Detach it: remove <crypto>."),
):

    def _tied(root: ET.Element, tag: str = _tag, what: str = _what) -> Iterator[str]:
        yield from _each(root, f"devices/{tag}", f"it has {what} (<{tag}>)")

    CHECKS.append(
        Check(_tag, f"{_what.removeprefix('a ')} (`<{_tag}>`)",
              "whose state another host cannot have", _remedy, _tied)  # fmt: skip
    )


@_check("smartcard", "smart cards of the host", "which the other host does not have",
        "Detach it: remove <smartcard>.")  # fmt: skip
def _smartcard(root: ET.Element) -> Iterator[str]:
    yield from _each(root, "devices/smartcard", "it has a smart card (<smartcard>)")


@_check("input_host", "input devices of the host (passthrough, evdev)",
        "which the other host does not have", "Use <input type='tablet' bus='usb'/>.")  # fmt: skip
def _input_host(root: ET.Element) -> Iterator[str]:
    for device in root.findall("devices/input"):
        if device.get("type") in ("passthrough", "evdev"):
            yield f"it has an input device of type {device.get('type')}"


_CHARS = ("serial", "parallel", "console", "channel")


@_check("char_network", "serial ports, consoles and channels over TCP or UDP",
        "which would show output that a failover can take back",
        "Use type pty, file or unix.")  # fmt: skip
def _char_network(root: ET.Element) -> Iterator[str]:
    for tag in _CHARS:
        for device in root.findall(f"devices/{tag}"):
            if device.get("type") in ("tcp", "udp"):
                yield f"a {tag} device is connected by {device.get('type')}"


@_check("char_host", "serial ports, consoles and channels on devices or pipes of the host",
        "which the other host does not have", "Use type pty, file or unix.")  # fmt: skip
def _char_host(root: ET.Element) -> Iterator[str]:
    for tag in _CHARS:
        for device in root.findall(f"devices/{tag}"):
            if device.get("type") in ("dev", "pipe"):
                path = attribute(device, "source", "path", "?")
                yield f"a {tag} device is connected to {path} of the host"


@_check("video_several", "more than one graphics device", "whose memories QEMU does not tell apart",
        "Keep one <video>.")  # fmt: skip
def _video_several(root: ET.Element) -> Iterator[str]:
    count = len([each for each in root.findall("devices/video") if _model(each) != "none"])
    if count > 1:
        yield f"it has {count} graphics devices"


@_check("video_model", "graphics devices other than vga, bochs, cirrus and virtio without acceleration",
        "whose memory is not carried", "Use <model type='vga'/>, or virtio without accel3d.")  # fmt: skip
def _video_model(root: ET.Element) -> Iterator[str]:
    for video in root.findall("devices/video"):
        model = _model(video)
        if model not in ("none", "vga", "bochs", "cirrus", "virtio"):
            yield f"it has a graphics device of model {model}"
        elif attribute(video, "driver", "name") == "vhostuser":
            yield "its graphics device is another process (vhost-user)"
        elif attribute(video, "model/acceleration", "accel3d") == "yes":
            yield "its graphics device uses the host's GPU"


def _model(video: ET.Element) -> str:
    return attribute(video, "model", "type", "vga")


@_check("watchdog_action", "watchdogs with the action pause or dump",
        "which the next checkpoint would undo, as it lets the VM run on",
        "Use <watchdog action='reset'/> or poweroff.")  # fmt: skip
def _watchdog_action(root: ET.Element) -> Iterator[str]:
    for device in root.findall("devices/watchdog"):
        if device.get("action") in ("pause", "dump"):
            yield f"its watchdog's action is {device.get('action')}"


# -- network interfaces -----------------------------------------------------------------------------


def _nic(nic: ET.Element) -> str:
    return f"interface {attribute(nic, 'mac', 'address', '?')}"


@_check("nic_type", "interfaces that hang on neither a bridge nor a libvirt network (user, direct or "
        "macvtap, hostdev, vhost-user, vdpa, ethernet, ...)",
        "whose output cannot be held here and continued there",
        "Use a bridge: <interface type='bridge'>.")  # fmt: skip
def _nic_type(root: ET.Element) -> Iterator[str]:
    for nic in root.findall("devices/interface"):
        kind, source = nic.get("type", ""), nic.find("source")
        if kind not in ("bridge", "network"):
            yield f"{_nic(nic)} is of type {kind}"
        elif source is not None and source.get("mode"):
            # A libvirt network of macvtap interfaces: the live XML shows what was chosen.
            yield f"{_nic(nic)} is a macvtap on {source.get('dev', '?')}"


@_check("nic_vhost", "virtio interfaces with vhost", "which sends packets past QEMU",
        "Add <driver name='qemu'/> to it and restart the VM once.")  # fmt: skip
def _nic_vhost(root: ET.Element) -> Iterator[str]:
    for nic in root.findall("devices/interface"):
        virtio = attribute(nic, "model", "type").startswith("virtio")
        if virtio and attribute(nic, "driver", "name") != "qemu":
            yield f"{_nic(nic)} uses vhost"


@_check("nic_queues", "interfaces with several queues", "which QEMU's packet filter does not take",
        "Remove queues from its <driver> and restart the VM once.")  # fmt: skip
def _nic_queues(root: ET.Element) -> Iterator[str]:
    for nic in root.findall("devices/interface"):
        queues = attribute(nic, "driver", "queues", "1")
        if queues != "1":
            yield f"{_nic(nic)} has {queues} queues"


# -- disks ------------------------------------------------------------------------------------------


def _disk(disk: ET.Element) -> str:
    return f"disk {attribute(disk, 'target', 'dev', '?')}"


@_check("no_disk", "VMs without a writable disk", "so there is nothing to keep",
        "Protect VMs that keep something.")  # fmt: skip
def _no_disk(root: ET.Element) -> Iterator[str]:
    if not writable_disks(root):
        yield "it has no writable disk"


@_check("disk_shared", "disks that several VMs write (`<shareable/>`)",
        "so that another VM would see writes that a failover can take back",
        "A protected VM's disks must be its own; remove <shareable/>.")  # fmt: skip
def _disk_shared(root: ET.Element) -> Iterator[str]:
    for disk in root.findall("devices/disk"):
        if disk.find("shareable") is not None:
            yield f"{_disk(disk)} is shared with other VMs (<shareable/>)"


@_check("disk_type", "disks that are neither an image file nor a block device (network, volume, dir, "
        "nvme, vhost-user, ...)", "which cannot be mirrored to the secondary's own disk",
        "Use <disk type='file'> or type='block'; for a volume, the path of `virsh vol-path`.")  # fmt: skip
def _disk_type(root: ET.Element) -> Iterator[str]:
    for disk in writable_disks(root):
        if disk.get("type") not in ("file", "block"):
            yield f"{_disk(disk)} is of type {disk.get('type')}"


@_check("disk_lun", "SCSI disks that are passed through (device='lun', persistent reservations)",
        "whose commands go past QEMU", "Use device='disk' without <reservations>.")  # fmt: skip
def _disk_lun(root: ET.Element) -> Iterator[str]:
    for disk in root.findall("devices/disk"):
        if disk.get("device") == "lun" or disk.find("source/reservations") is not None:
            yield f"{_disk(disk)} is passed through"


@_check("disk_transient", "disks whose writes are thrown away (`<transient/>`)",
        "which the secondary would have to throw away too", "Remove <transient/>.")  # fmt: skip
def _disk_transient(root: ET.Element) -> Iterator[str]:
    for disk in root.findall("devices/disk"):
        if disk.find("transient") is not None:
            yield f"{_disk(disk)} throws its writes away (<transient/>)"


@_check("disk_encrypted", "encrypted images",
        "and its replica would lie on the secondary in clear text",
        "Encrypt inside the guest, or the file systems of both hosts.")  # fmt: skip
def _disk_encrypted(root: ET.Element) -> Iterator[str]:
    for disk in writable_disks(root):
        if disk.find("encryption") is not None or disk.find("source/encryption") is not None:
            yield f"{_disk(disk)} is encrypted"


@_check("disk_job", "disks on which a block job runs (copy, commit, backup)",
        "which ends on this host only", "Wait for it, or end it: `virsh blockjob --abort`.")  # fmt: skip
def _disk_job(root: ET.Element) -> Iterator[str]:
    for disk in root.findall("devices/disk"):
        if disk.find("mirror") is not None:
            yield f"{_disk(disk)} has a block job"


@_check("removable", "writable removable media (floppies)", "which are not mirrored", "Eject it.")
def _removable(root: ET.Element) -> Iterator[str]:
    for disk in root.findall("devices/disk"):
        if (
            disk.get("device") in ("cdrom", "floppy")
            and disk.find("source") is not None
            and disk.find("readonly") is None
        ):
            yield f"{_disk(disk)} is a writable removable medium"


@_check("medium_not_a_file", "media and read-only disks that are not image files",
        "which the other host cannot be checked to have",
        "Eject it, or use an image file that is at the same path on both hosts.")  # fmt: skip
def _medium_not_a_file(root: ET.Element) -> Iterator[str]:
    for disk in root.findall("devices/disk"):
        if (
            disk.find("readonly") is not None
            and disk.find("source") is not None
            and disk.get("type") != "file"
        ):
            yield f"{_disk(disk)} reads from a source of type {disk.get('type')}"
