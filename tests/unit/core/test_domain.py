"""Which VMs are refused and why, all reasons at once (I7), and the standby's form."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from kvmft.core import domain
from kvmft.errors import KvmftError
from tests.lab.guests import POSTGRES, domain_xml

GOOD = domain_xml(POSTGRES)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


NIC_DRIVER = "<driver name='qemu'/>"
CASES = {
    "hostdev": (changed("</devices>", "<hostdev mode='subsystem' type='pci'/></devices>"), "Detach"),
    "tpm": (changed("</devices>", "<tpm model='tpm-crb'/></devices>"), "Detach"),
    "filesystem": (changed("</devices>", "<filesystem type='mount'/></devices>"), "Detach"),
    "nic_vhost": (changed(NIC_DRIVER, ""), "<driver name='qemu'/>"),
    "nic_type": (changed("type='bridge'>", "type='vhostuser'>"), "Use a bridge"),
    "disk_shared": (changed("<target dev='vda'", "<shareable/><target dev='vda'"), "<shareable/>"),
    "disk_type": (changed("<disk type='file'", "<disk type='block'"), "move it to a file"),
    "hugepages": (
        changed("<devices>", "<memoryBacking><hugepages/></memoryBacking><devices>"),
        "Remove <hugepages/>",
    ),
    "no_disk": (changed("device='disk'", "device='cdrom'"), "Protect VMs that keep something"),
}


def test_the_labs_guest_is_protectable() -> None:
    assert domain.compliance(GOOD) == []


@pytest.mark.parametrize("code", sorted(CASES))
def test_what_cannot_be_protected_is_refused_with_cause_and_remedy(code: str) -> None:
    xml, remedy = CASES[code]
    found = {each.code: each for each in domain.compliance(xml)}
    assert code in found
    assert found[code].message.startswith("VM db1: ") and remedy in found[code].remedy


def test_all_reasons_are_told_at_once() -> None:
    xml = GOOD.replace(NIC_DRIVER, "").replace("</devices>", "<tpm model='x'/></devices>")
    assert {each.code for each in domain.compliance(xml, snapshots=2)} == {
        "nic_vhost", "tpm", "snapshots",
    }  # fmt: skip


def test_malformed_xml_is_one_clear_error() -> None:
    with pytest.raises(KvmftError, match="cannot be read"):
        domain.describe("<domain>")


def test_a_domain_is_described() -> None:
    found = domain.describe(GOOD)
    assert (found.name, found.memory, found.vcpus) == ("db1", 512 << 20, 1)
    assert found.disks == (domain.Disk("vda", "/var/lib/kvmft/images/db1.raw", "raw"),)
    assert found.nics[0].mac == POSTGRES.mac and found.own_monitor is None
    assert "/opt/guests/postgres/kernel" in found.boot_files


def arguments(xml: str) -> list[str]:
    return [each.get("value", "") for each in ET.fromstring(xml).iter(f"{{{domain.QEMU_NS}}}arg")]


def test_the_standby_waits_with_shared_memory_and_the_same_devices() -> None:
    live = GOOD.replace("<source file=", "<backingStore/><mirror/><source index='1' file=")
    live = live.replace("</devices>", "</devices><seclabel type='dynamic'/>").replace(
        "<driver name='qemu' type='raw'", "<driver name='qemu' type='qcow2'"
    )
    standby = domain.standby_xml(live, "db1-1.sock", {"vda": "/pool/db1-vda.raw"})
    root = ET.fromstring(standby)
    backing = root.find("memoryBacking/source")
    assert backing is not None and backing.get("type") == "memfd"
    source, driver = root.find("devices/disk/source"), root.find("devices/disk/driver")
    assert source is not None and source.attrib == {"file": "/pool/db1-vda.raw"}
    assert driver is not None and driver.get("type") == "raw"
    assert root.find("seclabel") is None and root.find("devices/disk/mirror") is None
    assert arguments(standby) == [
        "-qmp", "unix:/run/kvmft/qmp/db1-1.sock,server=on,wait=off", "-incoming", "defer",
    ]  # fmt: skip
    assert POSTGRES.mac in standby and POSTGRES.uuid in standby
    assert domain.describe(standby).own_monitor == "/run/kvmft/qmp/db1-1.sock"


def test_arguments_of_an_earlier_failover_do_not_pile_up() -> None:
    once = domain.standby_xml(GOOD, "one.sock", {})
    assert arguments(domain.standby_xml(once, "two.sock", {})).count("-incoming") == 1
    assert arguments(domain.persistent_xml(once)) == []
