"""Guests as they are: each kind fails over to the other host and back again, with all it has."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.lab import wide
from tests.lab.guests import IMAGES
from tests.lab.lab import ROOT, Lab
from tests.lab.test_protect import LEDGER, answers_of, status, wait_protected
from tests.lab.wide import NEHALEM, Wide, WideDisk

OTHER = {"node-a": "node-b", "node-b": "node-a"}
UNDER_LOAD = 4.0
"""Seconds that the clients write; the kill is in the middle."""


@pytest.fixture(scope="module")
def networks(lab: Lab) -> Lab:
    """The lab, with the second network."""
    wide.lay_second_network(lab)
    return lab


@contextmanager
def protected(lab: Lab, guest: Wide) -> Iterator[Wide]:
    """The guest, started on node-a by virsh and then protected; taken away at the end."""
    guest.remove(lab)
    try:
        guest.start(lab, "node-a")
        protect(lab, guest)
        yield guest
    finally:
        guest.remove(lab)


def protect(lab: Lab, guest: Wide, host: str = "node-a") -> None:
    """Turn FT on, and wait."""
    lab.run(host, f"kvmft enable {guest.name} --wait 100", timeout=130)
    wait_protected(lab, host, guest.name)


def audit(lab: Lab, host: str, guest: Wide) -> None:
    """The replica's memory equals the guest's."""
    said = lab.run(host, f"kvmft audit {guest.name} --json 2>&1", check=False)
    assert '"different": 0,' in said, said


def client(lab: Lab, address: str, text: str) -> subprocess.Popen[str]:
    """Write records over one TCP connection to one of the guest's addresses."""
    return subprocess.Popen(
        lab.inside(sys.executable, "-c", LEDGER, address, str(wide.LEDGER_PORT), str(UNDER_LOAD), text),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def broadcast(lab: Lab, count: int) -> None:
    """Send broadcasts, as days bring them to a standby."""
    program = ("import socket; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('br-lan', 0))\n"
               f"for each in range({count}): s.send(b'\\xff' * 6 + bytes.fromhex('026b766d0301') + b'\\x88\\xb5' + bytes(46))")  # fmt: skip
    subprocess.run(lab.inside(sys.executable, "-c", program), check=True, timeout=60)


def refused(lab: Lab, host: str, guest: Wide) -> int:
    """Packets that the guest's first tap on `host` had no room for."""
    listed = lab.run(host, f"virsh -q domiflist {guest.name}").split()
    return int(lab.run(host, f"cat /sys/class/net/{listed[0]}/statistics/tx_dropped"))


def room_is_made(lab: Lab, host: str, guest: Wide) -> None:
    """A standby's tap keeps a thousand packets that nobody reads, and soon has room again."""
    before = refused(lab, host, guest)
    for __ in range(20):  # the way there loses some of so many, and room may be made meanwhile
        broadcast(lab, 1500)
        if refused(lab, host, guest) > before:
            break
    before = refused(lab, host, guest)
    assert before > 0, "the tap was never full"
    time.sleep(3.0)
    broadcast(lab, 500)
    assert refused(lab, host, guest) == before, "no room was made"


def drawn(lab: Lab, host: str, guest: Wide) -> None:
    """At the last failover to `host` the guest's packets were drawn there before it was loaded."""
    lines = lab.run(host, f"kvmft events --vm {guest.name} --json").splitlines()
    events = [each for each in map(json.loads, lines) if each["event"] in ("primary_lost", "input_drawn", "loaded", "activated")][-4:]
    assert [each["event"] for each in events] == ["primary_lost", "input_drawn", "loaded", "activated"], events
    assert len(events[1]["data"]["interfaces"]) == len(guest.addresses)


def kill(lab: Lab, host: str, guest: Wide) -> float:
    """Kill the guest's QEMU; when (monotonic, seconds)."""
    lab.run(host, f"kill -9 $(cat /run/libvirt/qemu/{guest.name}.pid)")
    return time.monotonic()


def read_back(lab: Lab, guest: Wide, number: int) -> str:
    """A record of the ledger, from the disk."""
    program = ("import socket, sys; c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30); "
               "c.sendall(f'read {sys.argv[3]}\\n'.encode()); print(c.makefile().readline())")  # fmt: skip
    command = lab.inside(sys.executable, "-c", program, guest.addresses[0], str(wide.LEDGER_PORT),
                         str(number))  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return " ".join(done.stdout.split()[2:])


def switch(lab: Lab, host: str, guest: Wide) -> float:
    """Switch the guest over, as planned; when that began (monotonic, seconds)."""
    begun = time.monotonic()
    lab.run(host, f"kvmft failover {guest.name} --mode planned")
    return begun


def fail_over(lab: Lab, guest: Wide, host: str, how: Callable[[Lab, str, Wide], float] = kill) -> str:
    """Kill the guest on `host` under load on all its interfaces: no connection breaks, nothing that
    was answered is lost, and it is protected again from the other host, whose name is returned."""
    audit(lab, host, guest)
    if how is kill:
        room_is_made(lab, OTHER[host], guest)
    clients = [client(lab, each, f"from-{host}-{i}") for i, each in enumerate(guest.addresses)]
    time.sleep(UNDER_LOAD / 3)
    when = how(lab, host, guest)
    answers = [answers_of(each) for each in clients]
    other = OTHER[host]
    for each in answers:
        assert [at for __, __, at in each if at < when], "the client was not heard before the kill"
        assert [at for __, __, at in each if at > when], "the client was not heard after the kill"
    for number, record, __ in [row for each in answers for row in each[-10:] + each[:2]]:
        assert read_back(lab, guest, number) == record
    if how is kill:
        drawn(lab, other, guest)
    found = status(lab, other, guest.name)
    assert (found["role"], found["primary"]) == ("primary", other)
    wait_protected(lab, other, guest.name)
    audit(lab, other, guest)
    return other


def there_and_back(
    lab: Lab, guest: Wide, check: Callable[[str], None], *turns: Callable[[Lab, str, Wide], float]
) -> None:
    """A -> B -> A by `turns`, or by a kill and as planned; `check` is called with the host that the
    guest runs on, before and after each."""
    host = "node-a"
    check(host)
    for how in turns or (kill, switch):
        host = fail_over(lab, guest, host, how)
        check(host)
    assert host == "node-a"


def formats(lab: Lab, host: str, guest: Wide) -> dict[str, str]:
    """Path -> format of every disk, as libvirt defines the running guest; checked with qemu-img."""
    from kvmft.core.domain import describe

    disks = describe(lab.run(host, f"virsh dumpxml {guest.name}")).disks
    return {disk.path: disk.format for disk in disks}


def start_order(lab: Lab, guest: Wide, devices: str) -> None:
    """Let the guest count on several disks in turn, for as long as it lives."""
    guest.shell(lab, f"order {devices} >/tmp/order 2>&1 </dev/null &")
    time.sleep(1.5)
    rounds, wrong = order_says(lab, guest)
    assert rounds > 0 and wrong == 0


def order_says(lab: Lab, guest: Wide) -> tuple[int, int]:
    """Rounds and mismatches of the guest's counter so far."""
    rounds, wrong = guest.shell(lab, "tail -n 1 /tmp/order").split()
    return int(rounds), int(wrong)


DISKS = Wide(
    "disks", 60,
    disks=(WideDisk("vda"), WideDisk("vdb", "qcow2", "cache='writeback' discard='unmap'"),
           WideDisk("sda", "qcow2", "cache='none' io='native'", backing=True)),
    nics=2, vcpus=2,
)  # fmt: skip


def test_disks_of_all_formats_two_interfaces_and_two_cpus(networks: Lab) -> None:
    lab, seen = networks, []
    with protected(lab, DISKS) as guest:
        start_order(lab, guest, "/dev/vda /dev/vdb /dev/sda")

        def check(host: str) -> None:
            rounds, wrong = order_says(lab, guest)
            assert wrong == 0, f"{wrong} of {rounds} rounds read what was not written"
            assert not seen or rounds > seen[-1]
            seen.append(rounds)
            assert guest.shell(lab, "nproc").strip() == "2"
            found = formats(lab, host, guest)
            if len(seen) > 1:  # a replica is raw, beside the image that it came from
                assert set(found.values()) == {"raw"}
                assert f"{guest.path(guest.disks[1])}.raw" in found
            for path, kind in found.items():
                info = lab.run(host, f"qemu-img info -U --output=json {path}")
                assert kind == "raw" or json.loads(info)["format"] == kind

        there_and_back(lab, guest, check, kill, kill, switch, switch)
        # The images of the beginning are as they were left: nothing wrote over them.
        for disk in guest.disks[1:]:
            info = json.loads(lab.run("node-a", f"qemu-img info --output=json {guest.path(disk)}"))
            assert info["format"] == "qcow2"
            assert info["virtual-size"] == disk.mebibytes << 20


UEFI_LOADER = """
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/uefi_VARS.fd</nvram>"""
UEFI = Wide("uefi", 61, disks=(WideDisk("vda", options="cache='writethrough'"),), memory=256,
            loader=UEFI_LOADER)  # fmt: skip
VARIABLES = "/sys/firmware/efi/efivars"
VENDOR = "6b766d66-7400-4000-8000-00000000cafe"
NVRAM = "/var/lib/libvirt/qemu/nvram/uefi_VARS.fd"


def write_variable(lab: Lab, guest: Wide, name: str, text: str) -> None:
    """Set a non-volatile UEFI variable from inside the guest."""
    guest.shell(lab, f"printf '\\007\\000\\000\\000{text}' > /tmp/v && "
                f"cat /tmp/v > {VARIABLES}/{name}-{VENDOR}")  # fmt: skip


def read_variable(lab: Lab, guest: Wide, name: str) -> str:
    """The text of a UEFI variable, as the guest reads it."""
    return guest.shell(lab, f"tail -c +5 {VARIABLES}/{name}-{VENDOR}").strip()


def test_uefi_variables_go_along(networks: Lab) -> None:
    lab, written = networks, {}
    with protected(lab, UEFI) as guest:

        def check(host: str) -> None:
            for name, text in written.items():
                assert read_variable(lab, guest, name) == text
                # QEMU writes the whole flash to its file when the VM begins to run there.
                wide_text = "".join(f"{letter}\\x00" for letter in name)
                lab.run(host, f"grep -qaP '{wide_text}' {NVRAM} && grep -qa '{text}' {NVRAM}")
            name = f"Mark{len(written)}"
            written[name] = f"written-on-{host}"
            write_variable(lab, guest, name, written[name])
            assert read_variable(lab, guest, name) == written[name]

        there_and_back(lab, guest, check)
        # A restart of the guest reads the variables from the NVRAM file.
        lab.run("node-a", f"kvmft disable {guest.name}")
        lab.run("node-a", f"virsh -q destroy {guest.name} && virsh -q start {guest.name}")
        guest.wait_up(lab)
        for name, text in written.items():
            assert read_variable(lab, guest, name) == text


VGA = Wide(
    "screen", 62, disks=(WideDisk("sda"), WideDisk("sdb", "qcow2", "cache='directsync'")), vcpus=4,
    memory=192, machine="pc",
    devices="<video><model type='vga' vram='16384'/></video><graphics type='vnc' autoport='yes'/>"
    "<memballoon model='virtio'><stats period='2'/></memballoon>"
    "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
    "<watchdog model='i6300esb' action='reset'/><input type='tablet' bus='usb'/>"
    "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
)  # fmt: skip
TEXT_SCREEN = "dd if=/dev/mem bs=4096 skip=184 count=8 2>/dev/null | md5sum"


def screen(lab: Lab, host: str, guest: Wide) -> str:
    """What QEMU shows, as a digest of the picture."""
    return lab.run(host, f"virsh -q screenshot {guest.name} /tmp/{guest.name}.ppm >/dev/null && "
                   f"md5sum < /tmp/{guest.name}.ppm")  # fmt: skip


def test_screen_scsi_balloon_rng_and_four_cpus(networks: Lab) -> None:
    lab, seen = networks, []
    with protected(lab, VGA) as guest:
        start_order(lab, guest, "/dev/sda /dev/sdb")
        # Without the cursor, which blinks by the clock.
        guest.shell(lab, "printf '\\033[?25l\\033[2J\\033[5;5HThe picture goes along' > /dev/tty0")
        lab.run("node-a", f"virsh -q setmem {guest.name} 160M --live")
        time.sleep(4)

        def check(host: str) -> None:
            assert order_says(lab, guest)[1] == 0
            assert guest.shell(lab, "nproc").strip() == "4"
            assert len(guest.shell(lab, "head -c 16 /dev/hwrng | xxd -p").strip()) == 32
            stats = lab.run(host, f"virsh dommemstat {guest.name}")
            assert "actual 163840" in stats
            seen.append((screen(lab, host, guest), guest.shell(lab, TEXT_SCREEN)))
            assert seen[-1] == seen[0]

        there_and_back(lab, guest, check)


DEVICE = Wide(
    "device", 63, disks=(WideDisk("vda", device="/dev/loop8", options="cache='none' io='native'"),
                         WideDisk("vdb", options="cache='unsafe' iothread='1'")),
    memory=256,
    settings="<maxMemory slots='4' unit='MiB'>512</maxMemory><iothreads>1</iothreads>",
    cpu="<cpu mode='maximum'><numa><cell id='0' cpus='0' memory='256' unit='MiB'/></numa></cpu>",
    clock="<clock offset='variable' adjustment='3600' basis='utc'><timer name='rtc' tickpolicy='catchup'/>"
    "<timer name='hpet' present='yes'/></clock>",
    devices="<video><model type='virtio'/></video><memballoon model='none'/>"
    "<serial type='pty'/><disk type='file' device='cdrom'><target dev='sdc' bus='sata'/></disk>",
    extra={"<interface type='bridge'>": "<interface type='network'>",
           "<source bridge='br0'/>": "<source network='blue'/>"},
)  # fmt: skip


@pytest.fixture
def loop_device(lab: Lab) -> Iterator[str]:
    """A block device on node-a. Where containers may not make one, this fails and says so."""
    path, image = DEVICE.disks[0].device, f"{IMAGES}/block-image"
    lab.run("node-a", f"mkdir -p {IMAGES} && truncate -s 64M {image} && "
            f"{{ test -b {path} || mknod {path} b 7 8; }} && losetup {path} {image} && "
            f"chown libvirt-qemu {path}")  # fmt: skip
    try:
        yield path
    finally:
        lab.run("node-a", f"losetup -d {path}; rm -f {image}", check=False)


@pytest.fixture
def blue(lab: Lab) -> None:
    """A libvirt network of that name on both hosts, on br0."""
    for host in OTHER:
        lab.run(host, "virsh -q net-info blue >/dev/null 2>&1 || { echo \"<network><name>blue</name>"
                "<forward mode='bridge'/><bridge name='br0'/></network>\" > /root/blue.xml && "
                "virsh -q net-define /root/blue.xml && virsh -q net-start blue; }")  # fmt: skip


def test_a_block_device_a_network_numa_slots_clock_and_iothread(
    networks: Lab, blue: None, loop_device: str
) -> None:
    lab, clocks = networks, []
    with protected(lab, DEVICE) as guest:
        start_order(lab, guest, "/dev/vda /dev/vdb")

        def check(host: str) -> None:
            assert order_says(lab, guest)[1] == 0
            clocks.append(int(guest.shell(lab, "date +%s")))
            assert clocks == sorted(clocks)
            assert abs(clocks[-1] - time.time() - 3600) < 120, "the guest's clock jumped"
            if len(clocks) > 1:
                assert loop_device not in formats(lab, host, guest)

        there_and_back(lab, guest, check)


PLUGGED = Wide("plugged", 64, disks=(WideDisk("sda"),), cpu="<cpu mode='host-model'/>",
               extra={"<memballoon": "<disk type='file' device='cdrom'>"
                      f"<source file='{IMAGES}/both.iso'/><target dev='sdd' bus='scsi'/>"
                      "<readonly/></disk><memballoon"})  # fmt: skip


def events(lab: Lab, host: str, vm: str, name: str) -> list[dict[str, object]]:
    """Events of one name about one VM."""
    lines = lab.run(host, f"kvmft events --vm {vm} --json").splitlines()
    return [each for each in map(json.loads, lines) if each["event"] == name]


def test_a_disk_that_is_plugged_in_while_protected_goes_along(networks: Lab) -> None:
    lab, guest = networks, PLUGGED
    for host in OTHER:
        lab.run(host, f"mkdir -p {IMAGES} && echo the same medium > {IMAGES}/both.iso && "
                f"truncate -s 4096 {IMAGES}/both.iso")  # fmt: skip
    with protected(lab, guest):
        image = f"{IMAGES}/{guest.name}-sdb.qcow2"
        lab.run("node-a", f"qemu-img create -q -f qcow2 {image} 64M && virsh -q attach-disk "
                f"{guest.name} {image} sdb --targetbus scsi --subdriver qcow2 --persistent")  # fmt: skip
        until = time.monotonic() + 20
        while not (seen := events(lab, "node-a", guest.name, "hardware_changed")):
            assert time.monotonic() < until, "the new disk was not noticed"
            time.sleep(0.3)
        assert "scsi0-0-0-1" in str(seen[-1]["reason"])
        while events(lab, "node-a", guest.name, "synced")[-1]["time"] < seen[-1]["time"]:
            assert time.monotonic() < until + 60, "no new standby was made"
            time.sleep(0.3)
        wait_protected(lab, "node-a", guest.name)
        start_order(lab, guest, "/dev/sda /dev/sdb")
        medium = guest.shell(lab, "head -c 15 /dev/sr0")

        def check(host: str) -> None:
            assert order_says(lab, guest)[1] == 0
            assert guest.shell(lab, "head -c 15 /dev/sr0") == medium == "the same medium"

        there_and_back(lab, guest, check)


BAD_MEDIA = f"""<disk type='file' device='cdrom'><source file='{IMAGES}/only-a.iso'/>
<target dev='sda' bus='sata'/><readonly/></disk><disk type='file' device='cdrom'>
<source file='{IMAGES}/differs.iso'/><target dev='sdb' bus='sata'/><readonly/></disk>"""
NVME = """<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<qemu:arg value='-blockdev'/><qemu:arg value='null-co,node-name=nothing,size=1048576'/>
<qemu:arg value='-device'/><qemu:arg value='nvme,serial=a,drive=nothing,bus=pcie.0,addr=0x1d'/>
</qemu:commandline></domain>"""


def test_every_objection_of_both_hosts_is_told_at_once_and_the_vm_runs_on(networks: Lab) -> None:
    lab = networks
    guest = Wide("objections", 65, disks=(WideDisk("vda"),), nics=2)
    twin = Wide("twin", 65, disks=(WideDisk("vda"),))
    xml = guest.xml().replace("<driver name='qemu'/>", "", 1).replace("bridge='br1'", "bridge='br9'")
    xml = xml.replace("<memballoon", f"{BAD_MEDIA}<memballoon").replace("</domain>", NVME)
    other = twin.xml().replace("000000000141", "000000000199")
    guest.remove(lab)
    try:
        guest.make_images(lab, "node-a")
        lab.run("node-a", "ip link add br9 type bridge; ip link set br9 up; "
                f"echo a > {IMAGES}/only-a.iso; echo a > {IMAGES}/differs.iso; "
                f"cat > /root/objections.xml <<'END'\n{xml}END\n"
                "virsh -q define /root/objections.xml && virsh -q start objections")  # fmt: skip
        lab.run("node-b", f"mkdir -p {IMAGES}; echo bb > {IMAGES}/differs.iso; "
                f"echo precious > {IMAGES}/objections-vda.raw; "
                f"cat > /root/twin.xml <<'END'\n{other}END\nvirsh -q define /root/twin.xml")  # fmt: skip
        guest.wait_up(lab)
        pid = lab.run("node-a", "cat /run/libvirt/qemu/objections.pid")
        lines = lab.run("node-a", "kvmft check objections --json", check=False).splitlines()
        found = [json.loads(line) for line in lines]
        assert sorted(each["code"] for each in found) == sorted([
            "nic_vhost", "migration_blocked", "bridge_missing", "file_missing", "file_differs",
            "mac_taken", "replica_path_taken",
        ]), found  # fmt: skip
        assert all(each["message"] and each["remedy"] for each in found)
        refused = subprocess.run([*lab.ssh_command("node-a"), "kvmft enable objections"],
                                 capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
        assert refused.returncode == 1
        for each in found:
            assert str(each["message"]).rstrip(".") in refused.stderr
        assert lab.run("node-a", "cat /run/libvirt/qemu/objections.pid") == pid
        assert status(lab, "node-a", "objections")["state"] == "disabled"
        assert lab.run("node-b", f"cat {IMAGES}/objections-vda.raw") == "precious\n"
    finally:
        lab.run("node-b", f"virsh -q undefine twin; rm -f {IMAGES}/*.iso", check=False)
        lab.run("node-a", f"ip link del br9; rm -f {IMAGES}/*.iso", check=False)
        guest.remove(lab)


ADMIT = """
import json, sys
from kvmft.agent.host import Host
from kvmft.core.admission import Request
from kvmft.core.domain import describe
XML = "<domain type='%s'><name>v</name><uuid>6b766d66-7400-4000-8000-000000000166</uuid>" \\
    "<memory>65536</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='%s'>hvm</type></os>%s" \\
    "<devices><emulator>%s</emulator></devices></domain>"
host, rows = Host(), json.load(sys.stdin)
for kind, machine, cpu, emulator, facts in rows:
    found = host.admit(describe(XML % (kind, machine, cpu, emulator)), [], "/tmp",
                       lambda path: False, Request.read(facts))
    print(json.dumps([error.to_dict() for error in found]))
"""
NEEDS_AVX512 = NEHALEM.replace("</cpu>", "<feature policy='require' name='avx512f'/></cpu>")
EMULATOR = "/usr/bin/qemu-system-x86_64"


def test_machine_type_cpu_and_emulator_are_compared_by_libvirt_on_the_secondary(lab: Lab) -> None:
    machine = re.findall(r"pc-q35-[0-9.]+", lab.run("node-b", f"{EMULATOR} -machine help"))[0]
    rows = [
        (("qemu", machine, "", EMULATOR, None), None, ""),
        (("qemu", machine, NEHALEM, EMULATOR, None), None, ""),
        (("qemu", "pc-q35-99.9", "", EMULATOR, None), "machine_unknown", "pc-q35-99.9"),
        (("qemu", machine, "", "/opt/qemu", None), "emulator_missing", "/opt/qemu"),
        # Emulation has no AVX-512: as if the primary's CPU could more than the secondary's.
        (("qemu", machine, NEEDS_AVX512, EMULATOR, None), "cpu_differs", "avx512f"),
    ]
    done = subprocess.run(
        [*lab.ssh_command("node-b"), f"/opt/kvmft/venv/bin/python -c {shlex.quote(ADMIT)}"],
        input=json.dumps([row for row, __, __ in rows]), capture_output=True, text=True, check=True,
        timeout=90,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(rows)
    for found, (__, code, word) in zip(answers, rows, strict=True):
        assert [each["code"] for each in found] == ([code] if code else [])
        assert not found or word in found[0]["message"]
