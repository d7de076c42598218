"""Which VMs are refused and why, all reasons at once (I7)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmft.core.admission import REASONS
from kvmft.core.compliance import CHECKS, compliance, documented
from tests.lab import test_guests
from tests.lab.guests import POSTGRES, QUICK, domain_xml

GOOD = domain_xml(POSTGRES)
NIC_DRIVER = "<driver name='qemu'/>"
DEVICES = "</devices>"
DISK = "<disk type='file' device='disk'>"
NIC = "<interface type='bridge'>"
MODEL = "<model type='virtio'/>"
VIDEO = "<video><model type='none'/></video>"


def add(device: str) -> tuple[str, str]:
    """A change that adds a device."""
    return DEVICES, f"{device}</devices>"


OFFENCES: dict[str, list[tuple[str, str]]] = {
    "hypervisor": [("<domain type='qemu'", "<domain type='xen'"), ("arch='x86_64'", "arch='aarch64'")],
    "machine": [("machine='q35'", "machine='microvm'"), ("machine='q35'", "machine='isapc'")],
    "launch_security": [("<devices>", "<launchSecurity type='sev'/><devices>")],
    "invtsc": [("<model fallback", "<feature policy='require' name='invtsc'/><model fallback")],
    "loader_writable": [("<kernel>", "<loader type='pflash'>/x/OVMF.fd</loader><kernel>")],
    "nvram_type": [("<kernel>", "<nvram type='network'><source protocol='nbd'/></nvram><kernel>")],
    "hugepages": [("<devices>", "<memoryBacking><hugepages/></memoryBacking><devices>")],
    "file_memory": [("<devices>", "<memoryBacking><source type='file'/></memoryBacking><devices>")],
    "memory_device": [add("<memory model='nvdimm'/>"), add("<memory model='virtio-mem'/>"),
                      add("<memory model='virtio-pmem'/>"), add("<memory model='sgx-epc'/>")],
    "hostdev": [add("<hostdev mode='subsystem' type='pci'/>"), add("<hostdev mode='subsystem' type='usb'/>"),
                add("<hostdev mode='subsystem' type='mdev'/>")],
    "tpm": [add("<tpm model='tpm-crb'><backend type='emulator'/></tpm>")],
    "filesystem": [add("<filesystem type='mount'/>"),
                   add("<filesystem type='mount'><driver type='virtiofs'/></filesystem>")],
    "shmem": [add("<shmem name='a'/>")],
    "redirdev": [add("<redirdev bus='usb'/>")],
    "vsock": [add("<vsock model='virtio'/>")],
    "crypto": [add("<crypto model='virtio'/>")],
    "smartcard": [add("<smartcard mode='host'/>")],
    "input_host": [add("<input type='evdev'/>"), add("<input type='passthrough' bus='virtio'/>")],
    "char_network": [("<serial type='file'>", "<serial type='tcp'>"), add("<channel type='udp'/>")],
    "char_host": [add("<serial type='dev'><source path='/dev/ttyS0'/></serial>"),
                  add("<console type='pipe'><source path='/tmp/x'/></console>")],
    "video_several": [(VIDEO, "<video><model type='vga'/></video><video><model type='virtio'/></video>")],
    "video_model": [(VIDEO, "<video><model type='qxl'/></video>"),
                    (VIDEO, "<video><model type='virtio'><acceleration accel3d='yes'/></model></video>"),
                    (VIDEO, "<video><driver name='vhostuser'/><model type='virtio'/></video>")],
    "watchdog_action": [add("<watchdog model='itco' action='pause'/>"),
                        add("<watchdog model='itco' action='dump'/>")],
    "nic_type": [*((NIC, f"<interface type='{kind}'>") for kind in
                   ("user", "direct", "hostdev", "vhostuser", "vdpa", "ethernet", "udp", "mcast")),
                 ("<source bridge='br0'/>", "<source network='v' dev='eth0' mode='bridge'/>")],
    "nic_vhost": [(NIC_DRIVER, ""), (NIC_DRIVER, "<driver name='vhost'/>")],
    "nic_queues": [(NIC_DRIVER, "<driver name='qemu' queues='4'/>")],
    "no_disk": [("<target dev='vda'", "<readonly/><target dev='vda'")],
    "disk_shared": [("<target dev='vda'", "<shareable/><target dev='vda'")],
    "disk_type": [(DISK, f"<disk type='{kind}' device='disk'>") for kind in
                  ("network", "dir", "volume", "nvme", "vhostuser", "vhostvdpa")],
    "disk_lun": [(DISK, "<disk type='block' device='lun'>"),
                 ("<source file='/var/lib/kvmft/images/db1.raw'/>",
                  "<source file='/a'><reservations managed='yes'/></source>")],
    "disk_transient": [("<target dev='vda'", "<transient/><target dev='vda'")],
    "disk_encrypted": [("<target dev='vda'", "<encryption format='luks'/><target dev='vda'"),
                       ("<source file='/var/lib/kvmft/images/db1.raw'/>",
                        "<source file='/a'><encryption format='luks'/></source>")],
    "disk_job": [("<target dev='vda'", "<mirror type='file' job='copy'/><target dev='vda'")],
    "removable": [add("<disk type='file' device='floppy'><source file='/f'/><target dev='fda'/></disk>")],
    "medium_not_a_file": [
        add("<disk type='block' device='cdrom'><source dev='/dev/sr0'/><readonly/></disk>"),
        add("<disk type='network' device='cdrom'><source protocol='http'/><readonly/></disk>")],
}  # fmt: skip
ROWS = [(code, old, new) for code, changes in OFFENCES.items() for old, new in changes]


def codes(xml: str, snapshots: int = 0) -> list[str]:
    return sorted(each.code for each in compliance(xml, snapshots))


@pytest.mark.parametrize("xml", [GOOD, domain_xml(QUICK)] + [
    guest.xml() for guest in vars(test_guests).values() if isinstance(guest, test_guests.Wide)
])  # fmt: skip
def test_the_labs_guests_are_protectable(xml: str) -> None:
    assert compliance(xml) == []


def test_every_check_has_an_offence_here() -> None:
    assert {check.code for check in CHECKS} == set(OFFENCES)
    assert len(CHECKS) == len({check.code for check in CHECKS})


@pytest.mark.parametrize(("code", "old", "new"), ROWS, ids=[f"{row[0]}-{i}" for i, row in enumerate(ROWS)])
def test_each_offence_is_refused_with_cause_and_remedy_and_is_the_only_finding(
    code: str, old: str, new: str
) -> None:
    assert old in GOOD
    found = compliance(GOOD.replace(old, new, 1))
    assert [each.code for each in found] == [code]
    message, remedy = found[0].message, found[0].remedy
    assert message.startswith("VM db1: ") and message.endswith(".") and remedy.endswith((".", ")"))


def test_eight_reasons_are_told_at_once_and_no_other() -> None:
    eight = ("nic_vhost", "tpm", "hostdev", "hugepages", "disk_shared", "filesystem", "invtsc",
             "video_model")  # fmt: skip
    xml = GOOD
    for code in eight:
        xml = xml.replace(*OFFENCES[code][0], 1)
    assert codes(xml) == sorted(eight)
    assert codes(xml, snapshots=2) == sorted((*eight, "snapshots"))


INDEPENDENT = sorted(set(OFFENCES) - {"hypervisor", "no_disk", "disk_type", "disk_lun", "nic_type"})
"""Offences whose changes do not replace the same text of the XML."""


@given(st.sets(st.sampled_from(INDEPENDENT)))
def test_any_set_of_offences_gives_exactly_its_reasons(wanted: set[str]) -> None:
    xml, applied = GOOD, set()
    for code in sorted(wanted):
        old, new = OFFENCES[code][0]
        if old in xml:
            xml = xml.replace(old, new, 1)
            applied.add(code)
    assert set(codes(xml)) == applied


def test_vhost_is_no_matter_for_other_models_than_virtio() -> None:
    assert compliance(GOOD.replace(MODEL, "<model type='e1000'/>").replace(NIC_DRIVER, "")) == []


def test_two_offending_interfaces_are_named_each() -> None:
    second = "<interface type='direct'><mac address='52:54:00:00:00:99'/></interface>"
    found = compliance(GOOD.replace(*add(second)).replace(NIC, "<interface type='user'>"))
    assert [each.code for each in found] == ["nic_type", "nic_type"]
    assert POSTGRES.mac in found[0].message and "52:54:00:00:00:99" in found[1].message


def test_the_remedy_for_vhost_says_exactly_what_to_change() -> None:
    found = compliance(GOOD.replace(NIC_DRIVER, ""))
    assert "Add <driver name='qemu'/>" in found[0].remedy


@pytest.mark.parametrize(("old", "new"), [
    add("<disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sda'/><readonly/></disk>"),
    add("<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>"),
    add("<memory model='dimm'/>"), add("<watchdog model='itco' action='reset'/>"),
    (VIDEO, "<video><model type='vga'/></video>"), (DISK, "<disk type='block' device='disk'>"),
    ("<kernel>", "<loader readonly='yes' type='pflash'>/x</loader><nvram>/y</nvram><kernel>"),
    ("<model fallback", "<feature policy='disable' name='invtsc'/><model fallback"),
])  # fmt: skip
def test_what_can_be_protected_is_not_refused(old: str, new: str) -> None:
    assert compliance(GOOD.replace(old, new, 1)) == []


PAGE = Path(__file__).parents[3] / "docs" / "administration.md"


def test_the_documentation_has_the_table_of_these_checks() -> None:
    """To write it anew: PYTHONPATH=.:runtime/src python -m tests.unit.core.test_compliance"""
    text = PAGE.read_text()
    assert table() in text, f"run: python -m {__name__}"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("`\\<", "`<")


def table() -> str:
    """Both tables of docs/administration.md, from the code's lists."""
    lines = ["| refused (`code`) | because of it | what to do |", "| --- | --- | --- |"]
    lines += [f"| {cell(what)} (`{code}`) | {cell(why)} | {cell(remedy)} |"
              for code, what, why, remedy in documented()]  # fmt: skip
    lines += ["", "The host of the secondary is refused, with need and have, when it has:", "",
              "| there (`code`) | what to do |", "| --- | --- |"]  # fmt: skip
    lines += [f"| {what} (`{code}`) | {cell(remedy)} |" for code, (what, remedy) in REASONS.items()]
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- checks: begin -->\n", "<!-- checks: end -->\n"

if __name__ == "__main__":
    before, __, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}")
