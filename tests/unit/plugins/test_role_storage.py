"""roles/storage in a throw-away copy of this machine: folders, room, volumes, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.roles.loading import plugin_util

from .sandbox import Sandbox

storage = plugin_util("_storage")

STATE = "/var/lib/kvmft"
POOL = "/srv/kvmft-images"
# LVM needs the kernel's device mapper. These answer from files, and a volume is a file in /dev.
LVM = {
    "vgs": "ls /run/lvm 2>/dev/null; true",
    "lvs": 'for last; do :; done; ls /run/lvm/$last; true',
    "vgcreate": 'mkdir -p /run/lvm/$1 && echo "$@" >>/run/calls',
    "lvcreate": 'for last; do :; done; mkdir -p /dev/$last && truncate -s 64M /dev/$last/$3 && touch /run/lvm/$last/$3 && echo "$@" >>/run/calls',
    "lvremove": 'rm -r /dev/$2 /run/lvm/$2; echo "lvremove $@" >>/run/calls',
    "vgremove": 'rm -r /run/lvm/$2 /dev/$2; echo "vgremove $@" >>/run/calls',
}  # fmt: skip
VOLUME: dict[str, Any] = {
    "kvmft_storage_backend": "lvm", "kvmft_storage_create": True, "kvmft_storage_packages": [],
    "kvmft_storage_pool": POOL, "kvmft_storage_min_free_mb": 10,
    "kvmft_storage_lvm": {"vg": "vg0", "devices": ["/srv/disk"]},
}  # fmt: skip
SMALL: dict[str, Any] = {"kvmft_storage_min_free_mb": 10, "kvmft_storage_libvirt_pool": "kvmft"}
VIRSH = """#!/bin/sh
shift 2; verb=$1; cd /run; touch pools state
case $verb in
    pool-list) cat pools ;;
    pool-define-as) echo $2 >pools; echo "$@" >>virsh-calls ;;
    pool-info) cat state ;;
    pool-start) echo 'State:          running' >>state ;;
    pool-autostart) echo 'Autostart:      yes' >>state ;;
    pool-undefine) : >pools ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Sandbox]:
    made = Sandbox(tmp_path)
    made.shell("groupadd --system kvmft; mkdir -p /run/sandbox-systemd /srv /etc/libvirt/qemu; rm -rf /var/lib/kvmft")
    for name, script in LVM.items():
        made.write(f"/usr/sbin/{name}", f"#!/bin/sh\n{script}\n", 0o755)
    made.write("/usr/bin/virsh", VIRSH, 0o755)
    try:
        yield made
    finally:
        made.close()


def test_folders_room_and_the_way_back(machine: Sandbox) -> None:
    before = machine.files()
    assert machine.role("storage", "--check", **SMALL)[0] == 4
    assert machine.files() == before
    assert [machine.role("storage", **SMALL)[0], machine.role("storage", **SMALL)[0]] == [6, 0]
    assert machine.read("/run/virsh-calls") == f"pool-define-as kvmft dir --target {STATE}/images\n"
    assert machine.shell(f"stat -c '%a %G' {STATE} {STATE}/vm {STATE}/images").split() == [
        "751", "kvmft", "750", "kvmft", "751", "kvmft"
    ]  # fmt: skip
    code, output = machine.role("storage", kvmft_storage_min_free_mb=10**8)
    assert code == -1
    assert "/var/lib/kvmft/images on here has" in output and "MiB free, needed are 100000000 MiB" in output
    assert "or set kvmft_storage_pool to a larger file system" in output

    # What is needed is not taken away.
    image = f"{STATE}/images/db1.raw"
    machine.write(f"{STATE}/vm/db1/state.json", "{}")
    machine.write(f"{STATE}/events.jsonl", "{}\n")
    machine.write(image, "x")
    away = {**SMALL, "kvmft_storage_state": "absent"}
    code, output = machine.role("storage", **away)
    assert code == -1 and "still knows db1" in output and "Nothing was changed" in output
    machine.shell(f"rm -r {STATE}/vm/db1")
    code, output = machine.role("storage", **away)
    assert code > 0 and f"1 file(s) are left in {STATE}/images of here: {image}" in output
    assert machine.exists(image) and not machine.exists(f"{STATE}/vm")
    machine.write("/etc/libvirt/qemu/db1.xml", f"<source file='{image}'/>")
    code, output = machine.role("storage", **away, kvmft_storage_purge=True)
    assert code == -1 and "VMs on here have disks in /var/lib/kvmft/images: db1." in output
    machine.shell("rm /etc/libvirt/qemu/db1.xml")
    assert machine.role("storage", **away, kvmft_storage_purge=True)[0] > 0
    assert machine.files() == before and machine.read("/run/pools") == ""
    assert machine.role("storage", **away)[0] == 0


def test_a_volume_is_made_mounted_and_taken_away_again(machine: Sandbox) -> None:
    machine.write("/srv/disk", "")
    before = machine.files()
    machine.write(f"{POOL}/old.raw", "x")
    code, output = machine.role("storage", **VOLUME)
    assert code == -1 and f"{POOL} has files (old.raw) that vg0/kvmft would hide" in output
    machine.shell(f"rm -r {POOL}")
    code, output = machine.role("storage", "--check", **VOLUME)
    assert code > 0 and machine.files() == before and not machine.exists("/run/calls"), output
    code, output = machine.role("storage", **VOLUME)
    assert code > 0, output
    assert machine.read("/run/calls").splitlines() == [
        "vg0 /srv/disk", "--yes --name kvmft --extents 100%FREE vg0"
    ]  # fmt: skip
    assert machine.shell("blkid -p -o value -s TYPE /dev/vg0/kvmft").strip() == "ext4"
    assert machine.shell(f"findmnt -no SOURCE,OPTIONS --mountpoint {POOL}").startswith("/dev/vg0/kvmft")
    assert machine.shell(f"stat -c '%a %G' {POOL}").split() == ["751", "kvmft"]
    assert f"RequiresMountsFor={POOL}" in machine.read("/etc/systemd/system/kvmft-agent.service.d/storage.conf")
    assert machine.role("storage", **VOLUME)[0] == 0

    away = {**VOLUME, "kvmft_storage_state": "absent"}
    machine.write(f"{POOL}/db1.raw", "x")
    code, output = machine.role("storage", **away)
    assert code > 0 and f"left in {POOL}" in output and machine.exists(f"{POOL}/db1.raw"), output
    code, output = machine.role("storage", **away, kvmft_storage_purge=True)
    assert code > 0, output
    assert machine.read("/run/calls").splitlines()[-1] == "vgremove --yes vg0"
    assert machine.files() == before
    assert machine.role("storage", **away, kvmft_storage_purge=True)[0] == 0


FRESH: dict[str, Any] = {
    "vg": False, "lv": False, "fstype": "", "mounted": False, "mounted_other": "", "hidden": [],
    "devices": {"/dev/sdb": {"exists": True, "carries": ""}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "wanted", "create", "words"),
    [
        ({}, {"vg": ""}, True, "kvmft_storage_lvm has no vg"),
        ({}, {}, False, "There is no volume group vg0. Make it, or set kvmft_storage_create to true"),
        ({"devices": {}}, {}, True, "no devices to make it of"),
        ({"devices": {"/dev/sdb": {"exists": False, "carries": ""}}}, {}, True, "/dev/sdb does not exist"),
        ({"devices": {"/dev/sdb": {"exists": True, "carries": "ext4"}}}, {}, True, "/dev/sdb carries ext4; it is not"),
        ({"vg": True}, {}, False, "vg0 has no logical volume kvmft"),
        ({"vg": True, "lv": True, "fstype": "xfs"}, {}, True, "vg0/kvmft carries xfs and not ext4"),
        ({"vg": True, "lv": True}, {}, False, "vg0/kvmft has no file system"),
        ({"hidden": ["db1.raw"]}, {}, True, "/pool has files (db1.raw) that vg0/kvmft would hide"),
        ({"mounted_other": "/dev/else"}, {}, True, "/dev/else is mounted at /pool, not vg0/kvmft"),
    ],
)
def test_nothing_is_overwritten(found: dict[str, Any], wanted: dict[str, Any], create: bool, words: str) -> None:
    (told,) = storage.refusals({**FRESH, **found}, {"vg": "vg0", **wanted}, "/pool", create)
    assert words in told and told.endswith((".", ")."))


def test_a_volume_may_be_made_or_be_there() -> None:
    assert storage.refusals(FRESH, {"vg": "vg0"}, "/pool", True) == []
    there = {**FRESH, "vg": True, "lv": True, "fstype": "ext4", "mounted": True, "hidden": [], "devices": {}}
    assert storage.refusals(there, {"vg": "vg0"}, "/pool", False) == []
