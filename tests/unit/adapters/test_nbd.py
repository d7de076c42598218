"""The NBD server against QEMU's own clients, and against anything at all."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmft.adapters import nbd
from kvmft.adapters.nbd import NbdServer
from kvmft.adapters.reactor import Reactor

SIZE = 4 << 20
REQUEST = struct.Struct(">IHHQQI")


class Image:
    """A sink that is a disk in memory, and a list of what was done to it."""

    def __init__(self) -> None:
        self.data = bytearray(b"\xff" * SIZE)
        self.done: list[str] = []

    def write(self, offset: int, data: memoryview) -> None:
        self.data[offset : offset + len(data)] = data
        self.done.append("write")

    def zero(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)
        self.done.append("zero")

    def flush(self) -> None:
        self.done.append("flush")


class Served:
    """A server, its reactor and sink, and why its connections ended."""

    def __init__(self, path: Path) -> None:
        self.reactor = Reactor()
        self.image = Image()
        self.path = str(path)
        self.lost: list[str] = []
        self.server = NbdServer(self.reactor, self.path, SIZE, self.image, on_lost=self.lost.append)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a client to its end while serving it."""
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            ended = self.reactor.run_until(lambda: process.poll() is not None, 0.02)
            for __ in range(1000):
                if ended:
                    break
                ended = self.reactor.run_until(lambda: process.poll() is not None, 0.02)
            assert ended, f"{command} did not end"
            output, errors = process.communicate()
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def turn(self, seconds: float = 0.02) -> None:
        self.reactor.run_until(lambda: False, seconds)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        return sock

    def transmission(self, client_flags: int = 3) -> socket.socket:
        """A client past the handshake (NBD_OPT_EXPORT_NAME, with an empty name)."""
        sock = self.connect()
        sock.sendall(struct.pack(">IQII", client_flags, nbd.IHAVEOPT, nbd.OPT_EXPORT_NAME, 0))
        size = 28 + (0 if client_flags & 2 else 124)
        greeting = self.receive(sock, size)
        assert greeting[:18] == struct.pack(">QQH", nbd.NBDMAGIC, nbd.IHAVEOPT, 3)
        assert greeting[18:28] == struct.pack(">QH", SIZE, nbd.TRANSMISSION_FLAGS)
        assert len(greeting) == size and not any(greeting[28:])
        return sock

    def receive(self, sock: socket.socket, size: int) -> bytes:
        """The next `size` bytes for the client, and nothing after them."""
        sock.setblocking(False)
        data = bytearray()

        def arrived() -> bool:
            try:
                data.extend(sock.recv(1 << 16))
            except BlockingIOError:
                return False
            return len(data) >= size

        until = self.reactor.now() + 10
        while not arrived() and self.reactor.now() < until:
            self.reactor.step(0.01)
        return bytes(data)

    def answers(self, sock: socket.socket, count: int) -> list[tuple[int, int]]:
        """(error, handle) of the next `count` simple replies."""
        data = self.receive(sock, 16 * count)
        assert len(data) == 16 * count
        replies = struct.iter_unpack(">IIQ", data)
        found = []
        for magic, error, handle in replies:
            assert magic == nbd.REPLY_MAGIC
            found.append((error, handle))
        return found

    def close(self) -> None:
        self.server.close()
        self.reactor.close()


def request(kind: int, handle: int, offset: int, length: int, data: bytes = b"") -> bytes:
    return REQUEST.pack(nbd.REQUEST_MAGIC, 0, kind, handle, offset, length) + data


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "nbd.sock")
    yield made
    made.close()


def tool(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is missing: apt-get install qemu-utils"
    return found


def test_qemu_img_copies_an_image_byte_for_byte(served: Served, tmp_path: Path) -> None:
    source = tmp_path / "source"
    content = os.urandom(SIZE - (1 << 20)) + bytes(1 << 20)
    source.write_bytes(content)
    result = served.run(
        tool("qemu-img"), "convert", "-n", "-f", "raw", "-O", "raw", str(source),
        f"nbd+unix:///vda?socket={served.path}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert served.image.data == content
    assert "zero" in served.image.done and "write" in served.image.done


def test_qemu_io_writes_zeroes_discards_and_flushes(served: Served) -> None:
    result = served.run(
        tool("qemu-io"), "-f", "raw", f"nbd+unix:///vda?socket={served.path}",
        "-c", "write -P 7 4096 8192", "-c", "write -z 8192 4096", "-c", "discard 65536 65536",
        "-c", "flush",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    data = served.image.data
    assert data[4096:8192] == b"\7" * 4096 and data[8192:12288] == bytes(4096)
    assert data[12288:65536] == b"\xff" * (65536 - 12288) and data[65536:131072] == bytes(65536)
    assert served.image.done[:4] == ["write", "zero", "zero", "flush"]


def test_a_read_is_an_error_and_not_made_up_data(served: Served) -> None:
    result = served.run(
        tool("qemu-io"), "-f", "raw", f"nbd+unix:///vda?socket={served.path}", "-c", "read 0 512"
    )
    assert "Input/output error" in result.stdout + result.stderr


def test_requests_in_flight_are_answered_in_order_whatever_the_pieces(served: Served) -> None:
    sock = served.transmission()
    stream = b"".join(
        request(nbd.CMD_WRITE, number, number * 512, 512, bytes([number]) * 512)
        for number in range(20)
    )
    for start in range(0, len(stream), 333):
        sock.sendall(stream[start : start + 333])
        served.reactor.step(0.01)
    assert served.answers(sock, 20) == [(0, number) for number in range(20)]
    assert all(served.image.data[n * 512 : n * 512 + 512] == bytes([n]) * 512 for n in range(20))


def test_a_client_without_no_zeroes_gets_the_padding(served: Served) -> None:
    sock = served.transmission(client_flags=1)
    sock.sendall(request(nbd.CMD_FLUSH, 5, 0, 0))
    assert served.answers(sock, 1) == [(0, 5)]


@pytest.mark.parametrize(
    ("kind", "offset", "length", "error"),
    [
        (nbd.CMD_WRITE, SIZE - 256, 512, nbd.ENOSPC),
        (nbd.CMD_WRITE, 2**64 - 512, 512, nbd.ENOSPC),
        (nbd.CMD_WRITE_ZEROES, 0, 2**32 - 1, nbd.ENOSPC),
        (nbd.CMD_TRIM, SIZE, 512, nbd.EINVAL),
        (nbd.CMD_READ, 0, 512, nbd.EIO),
        (99, 0, 0, nbd.EINVAL),
    ],
)
def test_a_request_that_cannot_be_met_changes_nothing(
    served: Served, kind: int, offset: int, length: int, error: int
) -> None:
    sock = served.transmission()
    data = bytes(length) if kind == nbd.CMD_WRITE else b""
    sock.sendall(request(kind, 1, offset, length, data) + request(nbd.CMD_FLUSH, 2, 0, 0))
    assert served.answers(sock, 2) == [(error, 1), (0, 2)]
    writes = kind in (nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES, nbd.CMD_TRIM)
    assert len(served.lost) == (1 if writes else 0), "the copy differs from here on"
    assert served.image.done == ["flush"] and set(served.image.data) == {0xFF}


def test_while_held_nothing_is_read_or_answered(served: Served) -> None:
    sock = served.transmission()
    served.server.hold()
    sock.sendall(request(nbd.CMD_WRITE, 1, 0, 512, b"\1" * 512))
    served.turn(0.05)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    assert served.image.done == []
    served.server.release()
    assert served.answers(sock, 1) == [(0, 1)] and served.image.done == ["write"]


def test_a_client_that_dies_while_held_costs_no_processor_time(served: Served) -> None:
    sock = served.transmission()
    served.server.hold()
    sock.close()
    assert served.reactor.run_until(lambda: bool(served.lost), 5)
    steps = 0
    until = served.reactor.now() + 0.1
    while served.reactor.now() < until:
        served.reactor.step(0.1)
        steps += 1
    assert steps < 5, "the reactor turns idly"


def test_a_client_that_is_gone_before_the_greeting_is_only_an_event(served: Served) -> None:
    for __ in range(3):
        served.connect().close()
    assert served.reactor.run_until(lambda: len(served.lost) == 3, 5)
    served.transmission()


def test_the_socket_is_for_its_owner_only_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    path.write_text("left behind")
    reactor = Reactor()
    server = NbdServer(reactor, str(path), SIZE, Image(), owner=(12, 34))
    state = path.stat()
    assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (12, 34, 0o600)
    server.close()
    assert not path.exists()
    reactor.close()


OPTIONS = st.builds(
    lambda magic, option, data, length: (
        struct.pack(">QII", magic, option, len(data) if length is None else length) + data
    ),
    st.sampled_from([nbd.IHAVEOPT, nbd.IHAVEOPT, nbd.IHAVEOPT, 0]),
    st.integers(0, 12),
    st.binary(max_size=40),
    st.sampled_from([None, None, None, 2**32 - 1, 8192]),
)
REQUESTS = st.builds(
    lambda magic, kind, offset, length, data: (
        REQUEST.pack(magic, 0, kind, 1, offset, length) + data
    ),
    st.sampled_from([nbd.REQUEST_MAGIC, nbd.REQUEST_MAGIC, nbd.REQUEST_MAGIC, 1]),
    st.integers(0, 9),
    st.sampled_from([0, 512, SIZE - 512, SIZE, 2**63, 2**64 - 1]),
    st.sampled_from([0, 1, 512, 4096, SIZE, 2**32 - 1]),
    st.binary(max_size=600),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flags=st.sampled_from([b"\0\0\0\3", b"\0\0\0\1", b"\xff\xff\xff\xff"]),
    options=st.lists(OPTIONS, max_size=4),
    start=st.booleans(),
    requests=st.lists(REQUESTS, max_size=4),
    junk=st.binary(max_size=50),
    cut=st.integers(1, 700),
)
def test_any_bytes_end_at_most_their_own_connection(
    flags: bytes, options: list[bytes], start: bool, requests: list[bytes], junk: bytes, cut: int
) -> None:
    go = struct.pack(">QII", nbd.IHAVEOPT, nbd.OPT_GO, 6) + bytes(6) if start else b""
    stream = flags + b"".join(options) + go + b"".join(requests) + junk
    with tempfile.TemporaryDirectory() as directory:
        served = Served(Path(directory) / "s")
        good, bad = served.transmission(), served.connect()
        try:
            for position in range(0, len(stream), cut):
                bad.sendall(stream[position : position + cut])
                served.reactor.step(0.01)
        except (BrokenPipeError, ConnectionResetError):
            assert served.lost
        bad.close()
        served.turn(0.005)
        good.sendall(request(nbd.CMD_FLUSH, 77, 0, 0))
        assert served.answers(good, 1) == [(0, 77)]
        assert len(served.image.data) == SIZE
        good.close()
        served.close()
