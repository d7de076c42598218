"""A packet socket on a real tap, in a network namespace of the test's own."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = r"""
import fcntl, os, struct, subprocess
from kvmft.adapters.reactor import Reactor
from kvmft.adapters.taps import GuestInput
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000  # linux/if_tun.h
guest = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(guest, TUNSETIFF, struct.pack("16sH22x", b"vnet0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
open("/proc/sys/net/ipv6/conf/vnet0/disable_ipv6", "w").write("1")
subprocess.run(["ip", "link", "set", "vnet0", "up"], check=True)
reactor, seen = Reactor(), []
watch, network = GuestInput(reactor, "vnet0"), GuestInput(reactor, "vnet0")
watch.watch(seen.append)

def packet(text):
    return bytes(10) + b"\x52\x54\x00\x00\x00\x01" + b"\x52\x54\x00\x00\x00\x02" + b"\x88\xb5" + text.ljust(46, b"\0")

def bring(*texts):
    for text in texts:
        assert network.put(packet(text))

bring(b"one", b"two")
reactor.run_until(lambda: len(seen) == 2, 20)
assert seen == [packet(b"one"), packet(b"two")], seen
assert [os.read(guest, 2000) for __ in range(2)] == seen, "what is put in is what the guest reads"
os.write(guest, packet(b"of the guest"))
bring(b"three")
reactor.run_until(lambda: len(seen) == 3, 20)
assert seen[2:] == [packet(b"three")], "the guest's own packets are no input"
watch.rest()
bring(b"four", b"five")
reactor.run_until(lambda: False, 0.05)
assert len(seen) == 3, [each[24:34] for each in seen]
watch.go_on()
bring(b"six")
reactor.run_until(lambda: len(seen) == 4, 20)
assert seen[3:] == [packet(b"six")]
other = GuestInput(reactor, "vnet0")
other.watch(seen.append)
os.close(guest)  # as when QEMU dies: the interface goes with it, and its sockets say "Network is down"
reactor.run_until(lambda: False, 0.2)
watch.rest()
watch.go_on()
watch.rest()
watch.close()
other.close()
network.close()
assert not network.put(packet(b"closed"))
"""


def test_packets_for_the_guest_are_seen_put_in_and_left_out_while_resting() -> None:
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False,
                          timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
