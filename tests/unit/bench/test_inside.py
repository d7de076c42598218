"""What is measured inside a guest, with this machine in the guest's place."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from tests.bench import httpget, inside, stream
from tests.pair.harness import free_port, wait_for


def here(*command: str) -> list[str]:
    """A command of Lab.inside, on this machine: what ssh would run runs in a shell."""
    return ["sh", "-c", command[-1]] if command[0] == "ssh" else list(command)


@pytest.fixture
def guest() -> inside.Guest:
    return inside.Guest(here, "127.0.0.1")


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of tests/guest/bench.pl, which runs here."""
    perl = shutil.which("perl")
    assert perl, "perl is missing: apt-get install perl"
    port = free_port()
    monkeypatch.setattr(inside, "HTTP", port)
    process = subprocess.Popen([perl, str(inside.SERVER), str(port)])

    def up() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    wait_for("the server", up)
    yield port
    process.kill()
    process.wait()


def test_a_command_is_timed_by_the_lines_around_it(guest: inside.Guest) -> None:
    assert 0.2 <= guest.seconds("echo noise; sleep 0.2; echo noise >&2") < 2


def test_a_command_that_fails_is_no_measurement(guest: inside.Guest) -> None:
    with pytest.raises(RuntimeError, match="in the guest: false failed"):
        guest.seconds("false")
    with pytest.raises(RuntimeError, match="exit 3: because"):
        guest.run("echo because >&2; exit 3")


def test_what_is_given_reaches_the_command(guest: inside.Guest) -> None:
    assert guest.run("cat", b"one\ntwo\n") == "one\ntwo\n"


def test_so_many_rounds_take_about_so_long(guest: inside.Guest) -> None:
    count = inside.rounds(guest, 0.5)
    rate = inside.processor(guest, count)
    assert count > 1 and 0.1 < count / rate < 3


def test_http_requests_over_one_connection(web: int, guest: inside.Guest) -> None:
    found = inside.http(guest, 0.3)
    assert len(found) > 10 and all(0 < each < 300 for each in found)


def test_the_clock_is_asked_for_in_the_middle_of_its_way(web: int, guest: inside.Guest) -> None:
    ours, theirs, apart = inside.clock(guest)
    assert abs(ours - theirs) <= apart + 0.001, "here both are one clock"
    assert 0 < apart < 0.5


def test_a_page_that_is_not_there_is_an_error(web: int) -> None:
    connection = httpget.http.client.HTTPConnection("127.0.0.1", web, timeout=5)
    assert httpget.get(connection, "/") == b"x" * 1024 + b"\n"
    connection.close()


def test_a_clock_that_stood_still_has_lost() -> None:
    found = inside.loss((100.0, 7.0, 0.001), (120.0, 26.0, 0.003))
    assert found == {"seconds": 20.0, "ppm": 50_000, "resolution_ppm": 200}


def serve(answer: bool, pause: float = 0.0) -> tuple[threading.Thread, int, list[int]]:
    """A service for one connection: it takes all and closes after `pause`, or sends until the other side closes."""
    listener, counts = socket.create_server(("127.0.0.1", 0)), [0]

    def run() -> None:
        connection, __ = listener.accept()
        with listener, connection:
            try:
                while answer:
                    counts[0] += connection.send(bytes(65536))
                while data := connection.recv(65536):
                    counts[0] += len(data)
            except OSError:
                return
            time.sleep(pause)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, listener.getsockname()[1], counts


def test_bytes_count_as_carried_when_the_other_side_has_them() -> None:
    thread, port, counts = serve(answer=False, pause=0.4)
    begun = time.monotonic()
    rate = stream.to("127.0.0.1", port, 0.2)
    taken = time.monotonic() - begun
    thread.join(5)
    assert taken >= 0.6 and rate == pytest.approx(counts[0] / taken, rel=0.1), "the wait for its end counts"


def test_bytes_that_arrive_are_counted() -> None:
    thread, port, counts = serve(answer=True)
    rate = stream.from_("127.0.0.1", port, 0.2)
    thread.join(5)
    assert 0 < rate * 0.2 <= counts[0] * 1.1


def test_a_service_that_ends_is_an_error() -> None:
    thread, port, __ = serve(answer=False)
    with socket.create_connection(("127.0.0.1", port)):
        pass
    thread.join(5)
    with pytest.raises(ConnectionError):
        stream.from_("127.0.0.1", port, 0.2)
