"""The standby's form of a domain, and the form to keep once it runs."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from kvmft.core import domain
from kvmft.core.standby import persistent_xml, standby_xml
from tests.lab.guests import POSTGRES, domain_xml

GOOD = domain_xml(POSTGRES)


def arguments(xml: str) -> list[str]:
    return [each.get("value", "") for each in ET.fromstring(xml).iter(f"{{{domain.QEMU_NS}}}arg")]


def test_the_standby_waits_with_shared_memory_and_the_same_devices() -> None:
    live = GOOD.replace("<source file=", "<backingStore/><mirror/><source index='1' file=")
    live = live.replace("</devices>", "</devices><seclabel type='dynamic'/>").replace(
        "<driver name='qemu' type='raw'", "<driver name='qemu' type='qcow2'"
    )
    standby = standby_xml(live, "db1-1.sock", {"vda": "/pool/db1-vda.raw"})
    root = ET.fromstring(standby)
    backing = root.find("memoryBacking/source")
    assert backing is not None and backing.get("type") == "memfd"
    source, driver = root.find("devices/disk/source"), root.find("devices/disk/driver")
    assert source is not None and source.attrib == {"file": "/pool/db1-vda.raw"}
    assert driver is not None and driver.get("type") == "raw" and driver.get("cache") == "none"
    assert root.find("seclabel") is None and root.find("devices/disk/mirror") is None
    assert arguments(standby) == [
        "-qmp", "unix:/run/kvmft/qmp/db1-1.sock,server=on,wait=off", "-incoming", "defer",
    ]  # fmt: skip
    assert POSTGRES.mac in standby and POSTGRES.uuid in standby
    assert domain.describe(standby).own_monitor == "/run/kvmft/qmp/db1-1.sock"


def test_arguments_of_an_earlier_failover_do_not_pile_up() -> None:
    once = standby_xml(GOOD, "one.sock", {})
    assert arguments(standby_xml(once, "two.sock", {})).count("-incoming") == 1
    assert arguments(persistent_xml(once)) == []


def test_arguments_of_the_administrator_stay() -> None:
    own = GOOD.replace("</domain>", "<qemu:commandline><qemu:arg value='-set'/>"
                       "<qemu:arg value='device.x.y=1'/></qemu:commandline></domain>")  # fmt: skip
    standby = standby_xml(own, "one.sock", {})
    assert arguments(standby)[:2] == ["-set", "device.x.y=1"]
    assert arguments(persistent_xml(standby)) == ["-set", "device.x.y=1"]


def test_a_replica_of_a_block_device_is_a_file_and_a_read_only_disk_is_left_alone() -> None:
    live = GOOD.replace("type='file' device='disk'", "type='block' device='disk'").replace(
        "<source file='/var/lib/kvmft/images/db1.raw'/>", "<source dev='/dev/vg/db1'/>"
    )
    live = live.replace("<memballoon", "<disk type='file'><driver name='qemu' type='qcow2'/>"
                        "<source file='/ro.qcow2'/><target dev='vdb'/><readonly/></disk><memballoon")  # fmt: skip
    root = ET.fromstring(standby_xml(live, "a.sock", {"vda": "/pool/db1-vda.raw"}))
    first, second = root.findall("devices/disk")
    assert first.get("type") == "file" and domain.attribute(first, "source", "file") == "/pool/db1-vda.raw"
    assert domain.attribute(first, "source", "dev") == ""
    assert domain.attribute(second, "driver", "type") == "qcow2"
    assert domain.attribute(second, "source", "file") == "/ro.qcow2"


def test_a_disk_without_a_driver_is_raw_by_name() -> None:
    """libvirt would take the missing type for raw, but say so: nothing is ever probed."""
    live = GOOD.replace("<driver name='qemu' type='raw' cache='none'/>", "")
    assert "<driver name='qemu' type='raw'" not in live
    driver = ET.fromstring(standby_xml(live, "a.sock", {"vda": "/a"})).find("devices/disk/driver")
    assert driver is not None and driver.get("type") == "raw"


def test_the_port_on_a_libvirt_network_is_forgotten() -> None:
    live = GOOD.replace("<interface type='bridge'>", "<interface type='network'>").replace(
        "<source bridge='br0'/>", "<source network='blue' portid='1-2' bridge='virbr7' portgroup='a'/>"
    )
    source = ET.fromstring(standby_xml(live, "a.sock", {})).find("devices/interface/source")
    assert source is not None and source.attrib == {"network": "blue", "portgroup": "a"}


def test_what_says_nothing_of_the_place_of_memory_stays() -> None:
    live = GOOD.replace("<devices>", "<memoryBacking><nosharepages/><locked/><source type='anonymous'/>"
                        "<allocation mode='immediate'/></memoryBacking><devices>", 1)  # fmt: skip
    backing = ET.fromstring(standby_xml(live, "a.sock", {})).find("memoryBacking")
    assert backing is not None
    assert [each.tag for each in backing] == ["nosharepages", "locked", "source", "access"]
