"""Output capture with a real QEMU: a host puts frames into a hub as a guest would, and out of it.

The netdev under test is a `dgram` netdev on unix sockets; a second one, joined to it by a hub,
plays the guest. No kernel, no tap, no privileges.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmft.adapters.reactor import Reactor
from kvmft.adapters.redirector import (
    MAX_PACKET,
    RedirectorPort,
    Segment,
    attach_commands,
    detach_commands,
    is_connected,
)

NAME = "kvmft-net0"


def frame(number: int, size: int = 60) -> bytes:
    """An Ethernet frame to everybody, told apart by `number`."""
    head = b"\xff" * 6 + b"\x52\x54\x00\x00\x00\x01" + b"\x88\xb5" + number.to_bytes(4, "big")
    return head.ljust(size, b"\x5a")


class Machine:
    """A QEMU without a guest: `guest` is the guest's end of the wire, `network` the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reactor = Reactor()
        self.outputs = 0
        self.port = self.make_port()
        self.guest = self._datagram("guest")
        self.network = self._datagram("network")
        monitor = directory / "qmp"
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none",
             "-qmp", f"unix:{monitor},server=on,wait=off",
             "-netdev", self._netdev("wire", "network"),
             "-netdev", "hubport,id=hub-wire,hubid=1,netdev=wire",
             "-netdev", self._netdev("stand-in", "guest"),
             "-netdev", "hubport,id=hub-guest,hubid=1,netdev=stand-in"],
        )  # fmt: skip
        self._monitor = socket.socket(socket.AF_UNIX)
        for __ in range(500):
            # The file is there before QEMU listens.
            if self._monitor.connect_ex(str(monitor)) == 0:
                break
            self.turn(0.01)
        self._lines = self._monitor.makefile("r")
        self._lines.readline()
        self.qmp("qmp_capabilities")

    def make_port(self) -> RedirectorPort:
        out, back = (str(self.directory / f"{NAME}-{way}.sock") for way in ("out", "in"))
        return RedirectorPort(self.reactor, out, back, self._count_output)

    def _count_output(self) -> None:
        self.outputs += 1

    def _datagram(self, name: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(self.directory / name))
        sock.settimeout(5)
        return sock

    def _netdev(self, identity: str, peer: str) -> str:
        return (
            f"dgram,id={identity},local.type=unix,local.path={self.directory}/qemu-{peer},"
            f"remote.type=unix,remote.path={self.directory}/{peer}"
        )

    def qmp(self, name: str, **arguments: Any) -> dict[str, Any]:
        line = json.dumps({"execute": name, "arguments": arguments})
        self._monitor.sendall(line.encode() + b"\n")
        while True:
            reply: dict[str, Any] = json.loads(self._lines.readline())
            if "event" not in reply:
                return reply

    def attach(self) -> None:
        for item in attach_commands("wire", NAME, str(self.directory)):
            reply = self.qmp(item.name, **item.arguments)
            assert "return" in reply, reply
        assert self.reactor.run_until(lambda: self.port.connected, 5)
        until = self.reactor.now() + 5
        while not is_connected(self.qmp("query-chardev")["return"], NAME):
            assert self.reactor.now() < until
            self.turn(0.002)

    def detach(self) -> None:
        for item in detach_commands("wire", NAME, str(self.directory)):
            reply = self.qmp(item.name, **item.arguments)
            assert "return" in reply, reply

    def turn(self, seconds: float = 0.05) -> None:
        self.reactor.run_until(lambda: False, seconds)

    def send(self, data: bytes) -> None:
        """The guest sends a frame."""
        self.guest.sendto(data, str(self.directory / "qemu-guest"))

    def received(self, wait: float = 5) -> bytes | None:
        """The next frame that reached the network; None when none comes in `wait` seconds."""
        self.network.settimeout(wait)
        try:
            return self.network.recv(1 << 16)
        except TimeoutError:
            return None

    def wait_held(self, size: int) -> None:
        assert self.reactor.run_until(lambda: self.port.held_bytes >= size, 5)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for sock in (self._monitor, self.guest, self.network):
            sock.close()
        self._lines.close()
        self.port.close()
        self.reactor.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def test_packets_wait_until_they_are_released_and_keep_their_order(machine: Machine) -> None:
    machine.send(frame(0))
    assert machine.received() == frame(0), "the wire works before it is captured"
    machine.attach()
    for number in range(1, 4):
        machine.send(frame(number, 60 + number))
    machine.wait_held(3 * 68 + 6)
    assert machine.received(0.1) is None
    first = machine.port.cut()
    assert first.packets == 3 and len(first.data) == 3 * 68 + 6
    machine.send(frame(4))
    machine.wait_held(len(first.data) + 68)
    second = machine.port.cut()
    assert (second.packets, machine.outputs) == (1, 2)
    machine.port.release(first)
    assert [machine.received() for __ in range(3)] == [frame(n, 60 + n) for n in range(1, 4)]
    assert machine.received(0.1) is None, "the second segment's commit has not come"
    machine.port.release(second)
    assert machine.received() == frame(4)
    assert machine.port.held_bytes == 0 and machine.port.idle


def test_the_format_is_two_lengths_and_the_packet(machine: Machine) -> None:
    """What QEMU writes with vnet_hdr_support: be32 length, be32 virtio header length."""
    machine.attach()
    machine.send(frame(1))
    machine.wait_held(68)
    assert machine.port.cut().data == struct.pack(">II", 60, 0) + frame(1)


def test_inbound_packets_are_not_captured(machine: Machine) -> None:
    machine.attach()
    machine.network.sendto(frame(7), str(machine.directory / "qemu-network"))
    assert machine.guest.recv(1 << 16) == frame(7)
    assert machine.port.held_bytes == 0


def test_with_nobody_there_nothing_leaves_and_a_new_redirector_opens_again(
    machine: Machine,
) -> None:
    """kill -9 of the agent: its sockets close. It comes back, takes the old object out and adds
    one: a filter-redirector that has lost its indev does not read from it again by itself."""
    machine.attach()
    machine.send(frame(1))
    machine.wait_held(68)
    machine.port.close()
    for number in range(2, 5):
        machine.send(frame(number))
    assert machine.received(0.3) is None
    machine.detach()
    machine.port = machine.make_port()
    machine.attach()
    machine.send(frame(5))
    machine.wait_held(68)
    segment = machine.port.cut()
    assert segment.packets == 1
    machine.port.release(segment)
    assert machine.received() == frame(5), "nothing of before may come"


def test_detached_the_wire_is_as_it_was(machine: Machine) -> None:
    machine.attach()
    machine.detach()
    machine.send(frame(1))
    assert machine.received() == frame(1)
    machine.attach()


class Fake:
    """QEMU's side of both sockets, played by the test."""

    def __init__(self, directory: Path) -> None:
        self.reactor = Reactor()
        self.outputs = 0
        paths = [str(directory / way) for way in ("out", "in")]
        self.port = RedirectorPort(self.reactor, *paths, self._count)
        self.out, self.back = (socket.socket(socket.AF_UNIX) for __ in paths)
        self.out.connect(paths[0])
        self.back.connect(paths[1])
        self.paths = paths
        assert self.reactor.run_until(lambda: self.port.connected, 5)

    def _count(self) -> None:
        self.outputs += 1


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    made = Fake(tmp_path)
    yield made
    made.port.close()
    made.reactor.close()
    made.out.close()
    made.back.close()


def packed(data: bytes) -> bytes:
    return struct.pack(">II", len(data), 10) + data


def test_a_cut_never_goes_through_a_packet(fake: Fake) -> None:
    stream = packed(b"a" * 100) + packed(b"b" * 200)
    fake.out.sendall(stream[:150])
    assert fake.port.drain() == 150
    assert fake.port.cut() == Segment(packed(b"a" * 100), 1)
    assert fake.port.cut() == Segment(b"", 0)
    fake.out.sendall(stream[150:])
    assert fake.port.drain() == len(stream) - 150
    assert fake.port.cut() == Segment(packed(b"b" * 200), 1)


@pytest.mark.parametrize("piece", [1, 7, 8, 9, 64])
def test_packets_are_counted_whatever_the_pieces(fake: Fake, piece: int) -> None:
    stream = b"".join(packed(bytes(size)) for size in (0, 1, 60, 120))
    for position in range(0, len(stream), piece):
        fake.out.sendall(stream[position : position + piece])
        fake.port.drain()
    assert fake.port.cut() == Segment(stream, 4)


def test_output_is_told_once_per_segment(fake: Fake) -> None:
    for __ in range(2):
        fake.out.sendall(packed(b"x" * 60))
        fake.reactor.step(0.02)
        fake.reactor.step(0.02)
    assert fake.outputs == 1
    fake.port.cut()
    fake.out.sendall(packed(b"y" * 60))
    assert fake.reactor.run_until(lambda: fake.outputs == 2, 5)


def test_a_slow_reader_gets_everything_and_the_port_is_idle_only_then(fake: Fake) -> None:
    stream = b"".join(packed(bytes([n % 251]) * 1500) for n in range(4000))
    fake.port.release(Segment(stream, 4000))
    assert not fake.port.idle
    got = bytearray()
    fake.back.setblocking(False)

    def read() -> bool:
        try:
            got.extend(fake.back.recv(1 << 16))
        except BlockingIOError:
            pass
        return len(got) >= len(stream)

    until = fake.reactor.now() + 20
    while not read() and fake.reactor.now() < until:
        fake.reactor.step(0.01)
    assert got == stream and fake.port.idle


def test_a_stream_that_is_not_qemus_shuts_the_output(fake: Fake) -> None:
    fake.out.sendall(packed(b"x" * 60) + struct.pack(">II", MAX_PACKET + 1, 0))
    fake.port.drain()
    assert not fake.port.connected
    assert fake.port.cut() == Segment(b"", 0)


def test_a_new_connection_drops_what_the_old_one_left_half_said(fake: Fake) -> None:
    fake.out.sendall(packed(b"x" * 60)[:30])
    fake.port.drain()
    again = socket.socket(socket.AF_UNIX)
    again.connect(fake.paths[0])
    fake.out.close()
    assert fake.reactor.run_until(lambda: fake.port.connected and not fake.port.held_bytes, 5)
    again.sendall(packed(b"z" * 60))
    assert fake.reactor.run_until(lambda: bool(fake.port.held_bytes), 5)
    assert fake.port.cut() == Segment(packed(b"z" * 60), 1)
    again.close()


def test_released_while_the_network_side_is_gone_is_dropped_not_kept(fake: Fake) -> None:
    fake.back.close()
    assert fake.reactor.run_until(lambda: not fake.port.connected, 5)
    fake.port.release(Segment(packed(b"x" * 60), 1))
    assert fake.port.idle


@pytest.mark.parametrize(
    ("out", "back", "connected"),
    [
        ("unix:/r/out.sock", "unix:/r/in.sock", True),
        ("disconnected:unix:/r/out.sock", "unix:/r/in.sock", False),
        ("unix:/r/out.sock", "disconnected:unix:/r/in.sock", False),
        ("unix:/r/out.sock", None, False),
    ],
)
def test_connected_is_what_qemu_says_of_both(out: str, back: str | None, connected: bool) -> None:
    found = [{"label": "compat_monitor0", "filename": "disconnected:unix:/m"},
             {"label": f"{NAME}-out", "filename": out}]  # fmt: skip
    if back is not None:
        found.append({"label": f"{NAME}-in", "filename": back})
    assert is_connected(found, NAME) == connected
