"""QEMU's end of a tap, on a real tap in a bridge, in a network namespace of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kvmft.adapters.tap_end import TapEnd, announcement
from kvmft.adapters.taps import address_of
from kvmft.errors import KvmftError

INFO = """\
net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:93:00:50
 \\ hostnet0: index=0,type=tap,fd=32
filters:
  - kvmft-net0-hold: type=filter-redirector,vnet_hdr_support=true,indev=kvmft-net0-in,outdev=kvmft-net0-out
  net01: index=0,type=nic,model=e1000,macaddr=52:54:00:93:00:51
"""
"""As QEMU 7.2 answers; a NIC without a back end is not at the line's beginning."""

SCRIPT = r"""
import fcntl, json, os, select, socket, struct, subprocess, sys, time
from kvmft.adapters.reactor import Reactor
from kvmft.adapters.tap_end import TapEnd, announcement
from kvmft.adapters.taps import GuestInput
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000  # linux/if_tun.h
TUNSETVNETHDRSZ = 0x400454D8
HEADER = int(sys.argv[1])
VM, CLIENT = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")

def run(line):
    return subprocess.run(line.split(), check=True, capture_output=True, text=True).stdout

qemu = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(qemu, TUNSETIFF, struct.pack("16sH22x", b"vnet0", IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if HEADER else 0)))
if HEADER:
    fcntl.ioctl(qemu, TUNSETVNETHDRSZ, struct.pack("i", HEADER))
for name in ("default", "vnet0"):
    open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w").write("1")
run("ip link add br0 type bridge forward_delay 0 stp_state 0")
run("ip link add uplink type veth peer name switch")
for name in ("vnet0", "uplink"):
    run(f"ip link set {name} master br0")
for name in ("vnet0", "uplink", "switch", "br0"):
    run(f"ip link set {name} up")
switch = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
switch.bind(("switch", 0))

def heard(seconds):
    # the VM's, and not the bridge's own
    while select.select([switch], [], [], seconds)[0]:
        frame = switch.recv(2000)
        if frame[6:12] == VM:
            return frame
    return None

def to_vm(number, to=VM):
    switch.send(to + CLIENT + b"\x88\xb5" + struct.pack(">I", number).ljust(46, b"\0"))

def lying():
    found = []
    while select.select([qemu], [], [], 0.3)[0]:
        packet = os.read(qemu, 2000)[HEADER:]
        if packet[12:14] == b"\x88\xb5":  # and not the bridge's own
            found.append(struct.unpack_from(">I", packet, 14)[0])
    return found

def shown():
    return json.loads(run("ip -s -j link show vnet0"))[0]

def wait(what, again):
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        again()
        time.sleep(0.01)

# The VM runs elsewhere: the switch and this bridge know it there, and broadcasts fill the standby's tap.
wait(lambda: "52:54:00:00:00:01 dev uplink" in run("bridge fdb show br br0"),
     lambda: switch.send(b"\xff" * 6 + VM + b"\x88\xb5" + bytes(46)))
while heard(0.3):
    pass
end = TapEnd(os.getpid(), "vnet0")
end.clear()
to_vm(1)
assert lying() == [], "the bridge knows the VM elsewhere"
wait(lambda: shown()["stats64"]["tx"]["dropped"], lambda: [to_vm(0, b"\xff" * 6) for each in range(100)])
guest = GuestInput(Reactor(), "vnet0")
guest.put(bytes(10) + VM + CLIENT + b"\x88\xb5" + struct.pack(">I", 6).ljust(46, b"\0"))  # there is no room for it
while heard(0.3):
    pass
cleared = end.clear()
assert 0.9 * shown()["txqlen"] < cleared <= shown()["txqlen"], cleared
assert guest.put(bytes(10) + VM + CLIENT + b"\x88\xb5" + struct.pack(">I", 7).ljust(46, b"\0"))
assert lying() == [7]
end.announce(VM)
assert heard(2) == announcement(VM), "the network is told, through the uplink"
to_vm(2)
to_vm(3)
assert lying() == [2, 3], "what is sent to the VM comes here now, and waits"
end.close()
os.write(qemu, bytes(HEADER) + announcement(VM))
assert heard(2), "QEMU's own descriptor is as before"
"""


@pytest.mark.parametrize("header", [0, 10, 12])
def test_what_lies_there_is_cleared_and_what_is_announced_comes(header: int) -> None:
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", SCRIPT, str(header)], capture_output=True, text=True,
                          check=False, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_announcement_is_a_reverse_arp_request_from_the_vms_own_address() -> None:
    address = bytes.fromhex("525400930050")
    frame = announcement(address)
    assert len(frame) == 60 and frame[:6] == b"\xff" * 6 and frame[6:12] == address
    assert frame[12:42].hex() == "8035" "0001" "0800" "06" "04" "0003" + 2 * (address.hex() + "00000000")


def test_the_address_of_a_nic() -> None:
    assert address_of(INFO, "net0") == bytes.fromhex("525400930050")
    assert address_of(INFO, "net01") == bytes.fromhex("525400930051")
    assert address_of(INFO, "net1") is None and address_of("", "net0") is None


def test_a_process_without_such_a_tap_is_told() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmftError) as caught:
        TapEnd(os.getpid(), "vnet0")
    assert caught.value.code == "tap_end_missing" and "vnet0" in caught.value.message
    assert len(os.listdir("/proc/self/fd")) == descriptors
