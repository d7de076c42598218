"""What is measured inside a guest, with this machine in the guest's place."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

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


def test_a_command_is_timed_by_the_lines_around_it(
    guest: inside.Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends only after the clock was read once, and it had ended when the clock was read again."""
    go_on, ended = tmp_path / "go_on", tmp_path / "ended"
    os.mkfifo(go_on)
    writer = os.open(go_on, os.O_RDWR)
    looks: list[bool] = []

    def clock() -> float:
        looks.append(ended.exists())
        os.write(writer, b"now\n")
        return 100.0 if len(looks) == 1 else 107.5

    monkeypatch.setattr(inside, "time", SimpleNamespace(monotonic=clock))
    assert guest.seconds(f"echo noise; timeout 20 head -n 1 {go_on}; echo noise >&2; touch {ended}") == 7.5
    assert looks == [False, True]
    os.close(writer)


def test_a_command_that_fails_is_no_measurement(guest: inside.Guest) -> None:
    with pytest.raises(RuntimeError, match="in the guest: false failed"):
        guest.seconds("false")
    with pytest.raises(RuntimeError, match="exit 3: because"):
        guest.run("echo because >&2; exit 3")


def test_what_is_given_reaches_the_command(guest: inside.Guest) -> None:
    assert guest.run("cat", b"one\ntwo\n") == "one\ntwo\n"


class Steady(inside.Guest):
    """Its processor takes `each` seconds for a round, whatever else this machine does."""

    each = 0.01

    def seconds(self, command: str) -> float:
        found = re.search(r"for \(1\.\.(\d+)\)", command)
        assert found
        return self.each * int(found[1])


def test_so_many_rounds_take_about_so_long() -> None:
    guest = Steady(here, "127.0.0.1")
    count = inside.rounds(guest, 0.5)
    assert count == 50 and inside.processor(guest, count) == pytest.approx(100)
    guest.each = 40.0
    assert inside.rounds(guest, 0.5) == 1


def test_each_round_costs_the_processor_as_much(guest: inside.Guest) -> None:
    def used(rounds: int) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        assert inside.processor(guest, rounds) > 0
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before

    assert used(40) > 3 * used(4), "processor time, which a busy machine does not stretch"


def test_http_requests_over_one_connection(web: int, guest: inside.Guest) -> None:
    begun = time.monotonic()
    found = inside.http(guest, 0.3)
    taken = (time.monotonic() - begun) * 1000
    assert len(found) > 1 and min(found) > 0
    assert 30 < sum(found) < taken, "milliseconds, of one request after the other"


def test_the_clock_is_asked_for_in_the_middle_of_its_way(web: int, guest: inside.Guest) -> None:
    begun = time.monotonic()
    ours, theirs, apart = inside.clock(guest)
    assert abs(ours - theirs) <= apart + 0.001, "here both are one clock"
    assert 0 < apart <= (time.monotonic() - begun) / 2 / httpget.LOOKS, "of the quickest look"


def test_a_page_that_is_not_there_is_an_error(web: int) -> None:
    connection = httpget.http.client.HTTPConnection("127.0.0.1", web, timeout=5)
    assert httpget.get(connection, "/") == b"x" * 1024 + b"\n"
    connection.close()


def test_a_clock_that_stood_still_has_lost() -> None:
    found = inside.loss((100.0, 7.0, 0.001), (120.0, 26.0, 0.003))
    assert found == {"seconds": 20.0, "ppm": 50_000, "resolution_ppm": 200}


def serve(answer: bool, at_end: Callable[[], None] = lambda: None) -> tuple[threading.Thread, int, list[int]]:
    """A service for one connection: it takes all, calls `at_end` and closes, or sends until the other side closes."""
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
            at_end()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, listener.getsockname()[1], counts


def test_bytes_count_as_carried_when_the_other_side_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.015625
        return now[0]

    def tarry() -> None:
        now[0] += 5.0

    monkeypatch.setattr(stream, "time", SimpleNamespace(monotonic=clock))
    thread, port, counts = serve(answer=False, at_end=tarry)
    rate = stream.to("127.0.0.1", port, 0.2)
    thread.join(60)
    assert counts[0] > stream.PIECE and now[0] > 5.2
    assert rate == counts[0] / (now[0] - 0.015625), "the wait for its end counts"


def test_bytes_that_arrive_are_counted() -> None:
    thread, port, counts = serve(answer=True)
    rate = stream.from_("127.0.0.1", port, 0.2)
    thread.join(60)
    assert 0 < rate * 0.2 <= counts[0] * 1.1


def test_a_service_that_ends_is_an_error() -> None:
    thread, port, __ = serve(answer=False)
    with socket.create_connection(("127.0.0.1", port)):
        pass
    thread.join(60)
    with pytest.raises(ConnectionError):
        stream.from_("127.0.0.1", port, 0.2)
