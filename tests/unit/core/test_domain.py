"""A domain's XML is read; what is malformed is one clear error (I7)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmft.core import domain
from kvmft.core.compliance import compliance
from kvmft.core.standby import standby_xml
from kvmft.errors import KvmftError
from tests.lab.guests import POSTGRES, domain_xml

GOOD = domain_xml(POSTGRES)


def test_a_domain_is_described() -> None:
    found = domain.describe(GOOD)
    assert (found.name, found.memory, found.vcpus) == ("db1", 512 << 20, 1)
    assert found.disks == (domain.Disk("vda", "/var/lib/kvmft/images/db1.raw", "raw", "file"),)
    assert found.nics[0].mac == POSTGRES.mac and found.own_monitor is None
    assert "/opt/guests/postgres/kernel" in found.files
    assert (found.bridges, found.networks) == (("br0",), ())
    assert found.emulator == "/usr/bin/qemu-system-x86_64"
    assert found.cpu_mode == "custom" and "Nehalem" in found.cpu


def test_media_firmware_and_roms_are_files_that_the_other_host_must_have() -> None:
    xml = GOOD.replace("<kernel>", "<loader readonly='yes' type='pflash'>/fw/CODE.fd</loader>"
                       "<nvram template='/fw/VARS.fd'>/var/x_VARS.fd</nvram><kernel>")  # fmt: skip
    xml = xml.replace("<memballoon", "<disk type='file' device='cdrom'><source file='/iso/a.iso'/>"
                      "<target dev='sda'/><readonly/></disk><disk type='file' device='cdrom'>"
                      "<target dev='sdb'/><readonly/></disk><disk type='file'><source file='/ro.img'/>"
                      "<target dev='vdb'/><readonly/></disk><memballoon")  # fmt: skip
    xml = xml.replace("<model type='virtio'/>", "<model type='virtio'/><rom file='/rom/net.rom'/>")
    found = domain.describe(xml)
    assert set(found.files) >= {"/fw/CODE.fd", "/iso/a.iso", "/ro.img", "/rom/net.rom"}
    assert "" not in found.files
    assert (found.nvram, found.nvram_template) == ("/var/x_VARS.fd", "/fw/VARS.fd")
    assert [disk.target for disk in found.disks] == ["vda"]


def test_a_block_device_is_described_by_its_path() -> None:
    xml = GOOD.replace("type='file' device='disk'", "type='block' device='disk'")
    xml = xml.replace("<source file='/var/lib/kvmft/images/db1.raw'/>", "<source dev='/dev/vg/db1'/>")
    assert domain.describe(xml).disks == (domain.Disk("vda", "/dev/vg/db1", "raw", "block"),)


@pytest.mark.parametrize(("text", "size"), [
    ("<memory unit='b'>4096</memory>", 4096), ("<memory>4</memory>", 4096),
    ("<memory unit='GiB'>2</memory>", 2 << 30), ("<memory unit='MB'>3</memory>", 3_000_000),
])  # fmt: skip
def test_memory_in_any_unit_of_libvirt(text: str, size: int) -> None:
    assert domain.describe(f"<domain><name>a</name>{text}</domain>").memory == size


LAUGHS = "<!DOCTYPE d [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY a{i} '{'&a;' if i == 0 else f'&a{i - 1};'}{'&a;' if i == 0 else f'&a{i - 1};'}'>"
    for i in range(40)
) + "]><domain><name>&a39;</name></domain>"  # fmt: skip
HOSTILE = {
    "empty": "",
    "not XML": "VM db1",
    "cut off": GOOD[: len(GOOD) // 2],
    "another document": "<network><name>default</name></network>",
    "an unknown unit": GOOD.replace("unit='MiB'", "unit='parsec'"),
    "memory in words": GOOD.replace(">512<", ">plenty<"),
    "negative memory": GOOD.replace(">512<", ">-512<"),
    "digits of another script": GOOD.replace(">512<", ">٥١٢<"),
    "CPUs in words": GOOD.replace("<vcpu>1<", "<vcpu>one<"),
    "entities that grow": LAUGHS,
    "a file of the host": "<!DOCTYPE d [<!ENTITY f SYSTEM 'file:///etc/passwd'>]><domain>&f;</domain>",
    "too much": f"<domain><name>{'a' * domain.MAX_XML}</name></domain>",
    "a null byte": GOOD.replace("db1", "db\0"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_malformed_and_hostile_xml_is_one_clear_error(name: str) -> None:
    with pytest.raises(KvmftError, match="domain XML cannot be read: ") as caught:
        domain.describe(HOSTILE[name])
    assert caught.value.code == "domain_xml" and caught.value.remedy
    assert len(str(caught.value)) < 400


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_damaged_xml_is_read_or_refused_and_nothing_else(seed: int, changes: int) -> None:
    rng = random.Random(seed)
    text = list(GOOD)
    for __ in range(changes):
        text[rng.randrange(len(text))] = rng.choice("<>/'=& a0")
    xml = "".join(text)
    for read in (domain.describe, compliance, lambda xml: standby_xml(xml, "a.sock", {"vda": "/a"})):
        try:
            read(xml)
        except KvmftError as error:
            assert error.code == "domain_xml"


LIVE = GOOD.replace("</devices>", """
<disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sda'/><readonly/>
<alias name='sata0-0-0'/><address type='drive' unit='0'/></disk>
<interface type='bridge'><link state='up'/><alias name='net1'/>
<address type='pci' bus='0x02' slot='0x00'/></interface></devices>""")  # fmt: skip


@pytest.mark.parametrize(("old", "new"), [
    ("<alias name='net1'/>", "<alias name='net2'/>"), ("bus='0x02'", "bus='0x03'"),
    ("/a.iso", "/b.iso"), ("<source file='/a.iso'/>", ""), ("<vcpu>1<", "<vcpu current='2'>4<"),
])  # fmt: skip
def test_plugging_and_pulling_change_the_hardware(old: str, new: str) -> None:
    assert domain.hardware(LIVE.replace(old, new)) != domain.hardware(LIVE)


@pytest.mark.parametrize(("old", "new"), [
    ("<link state='up'/>", "<link state='down'/>"), (">512<", ">256<"), ("</domain>", "<metadata/></domain>"),
])  # fmt: skip
def test_what_a_standby_need_not_have_alike_does_not(old: str, new: str) -> None:
    assert old in LIVE
    assert domain.hardware(LIVE.replace(old, new)) == domain.hardware(LIVE)


def test_a_vm_that_is_off_has_no_hardware_in_use() -> None:
    assert domain.hardware(GOOD) == frozenset()


def test_the_cpu_that_the_guest_has_replaces_the_one_that_was_asked_for() -> None:
    live = GOOD.replace("match='exact'>", "match='exact' check='full'><feature policy='disable' name='avx'/>")
    found = domain.describe(domain.with_cpu_of(GOOD, live))
    assert "check=\"full\"" in found.cpu and "avx" in found.cpu
    assert domain.with_cpu_of("<domain/>", live) == "<domain/>"
