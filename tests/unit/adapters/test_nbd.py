"""Disk capture with a real NBD client (qemu-io), and with bytes that are none."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmft.adapters.nbd import NbdServer
from kvmft.adapters.reactor import Reactor
from kvmft.core.wire import OP_FLUSH, OP_WRITE, OP_ZERO
from kvmft.worker.disklog import DiskLog, DiskSink

SIZE = 1 << 20


class Capture:
    def __init__(self, path: Path) -> None:
        self.reactor = Reactor()
        self.log = DiskLog()
        self.path = path
        self.server = NbdServer(
            self.reactor, str(path), SIZE, DiskSink(self.log, 0, lambda: None)
        )

    def qemu_io(self, *commands: str) -> int:
        arguments = [word for command in commands for word in ("-c", command)]
        process = subprocess.Popen(
            ["qemu-io", "-f", "raw", *arguments, f"nbd+unix:///x?socket={self.path}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.reactor.run_until(lambda: process.poll() is not None, 20)
        return process.wait(timeout=1)

    def rows(self) -> list[tuple[int, ...]]:
        table, self.data = self.log.cut()
        words = memoryview(bytes(table)).cast("Q").tolist()
        return [tuple(words[at : at + 4]) for at in range(0, len(words), 4)]


@pytest.fixture
def capture(tmp_path: Path) -> Iterator[Capture]:
    made = Capture(tmp_path / "nbd.sock")
    yield made
    made.server.close()


def test_writes_zeros_and_flushes_arrive_in_the_clients_order(capture: Capture) -> None:
    assert capture.qemu_io("write -P 7 4096 8192", "write -z 65536 4096", "flush") == 0
    rows = capture.rows()
    assert rows[:2] == [(0, OP_WRITE, 4096, 8192), (0, OP_ZERO, 65536, 4096)]
    assert (0, OP_FLUSH, 0, 0) in rows[2:]
    assert capture.data == b"\x07" * 8192


def test_a_write_beyond_the_end_is_refused_and_captured_nowhere(capture: Capture) -> None:
    assert capture.qemu_io(f"write {SIZE} 512") != 0
    assert all(row[1] != OP_WRITE for row in capture.rows())


def test_a_large_write_is_whole(capture: Capture) -> None:
    assert capture.qemu_io(f"write -P 9 0 {SIZE}") == 0
    assert sum(row[3] for row in capture.rows() if row[1] == OP_WRITE) == SIZE
    assert capture.data.count(9) == SIZE


def test_held_writers_wait_until_the_release(capture: Capture) -> None:
    capture.server.hold()
    capture.reactor.call_later(0.5, capture.server.release)
    begun = capture.reactor.now()
    assert capture.qemu_io("write -P 7 0 512") == 0
    assert capture.reactor.now() - begun >= 0.5


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300), magic=st.booleans())
def test_bytes_that_are_no_nbd_end_that_connection_only(
    capture: Capture, data: bytes, magic: bool
) -> None:
    head = b"\x00\x00\x00\x03" + b"IHAVEOPT" if magic else b""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(capture.path))
        client.sendall(head + data)
        for _ in range(4):
            capture.reactor.step(0.002)
    for _ in range(4):
        capture.reactor.step(0.002)
    assert capture.rows() == [] or magic
