"""Tracking that is not lasting: QEMU keeps no descriptor of it, and the kernel ends it with the process that tracks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kvmft.adapters import inject
from kvmft.adapters.memory import GuestMemory
from kvmft.errors import KvmftError
from tests.unit.adapters.test_memory import Toucher, pages_of

TRACKER = """
import sys, time
from kvmft.adapters.memory import GuestMemory, RamBlock
pid, start, size = map(int, sys.argv[1:])
guest = GuestMemory()
guest.attach(pid, [RamBlock("ram", start, size, "anon")], lasting=False)
print("tracks", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["anon", "memfd"])
def toucher(request: pytest.FixtureRequest) -> Iterator[Toucher]:
    made = Toucher(request.param)
    yield made
    made.process.kill()
    made.process.wait()


def test_pages_are_found_while_the_process_has_no_descriptor_of_it(toucher: Toucher) -> None:
    before = sorted(os.listdir(f"/proc/{toucher.process.pid}/fd"))
    guest = GuestMemory()
    guest.attach(toucher.process.pid, [toucher.block], lasting=False)
    assert sorted(os.listdir(f"/proc/{toucher.process.pid}/fd")) == before
    toucher.touch(5, 6, 40)
    assert pages_of(guest, guest.collect()) == [5, 6, 40]
    guest.detach()
    again = GuestMemory()
    again.attach(toucher.process.pid, [toucher.block])
    toucher.touch(7)
    assert pages_of(again, again.collect()) == [7]
    again.detach()


def test_memory_that_is_tracked_already_is_left_alone(toucher: Toucher) -> None:
    guest = GuestMemory()
    guest.attach(toucher.process.pid, [toucher.block])
    with pytest.raises(KvmftError) as caught:
        GuestMemory().attach(toucher.process.pid, [toucher.block], lasting=False)
    assert caught.value.code == "memory_tracked"
    toucher.touch(9)
    assert pages_of(guest, guest.collect()) == [9]
    guest.detach()


def test_nothing_stays_when_the_tracker_is_killed() -> None:
    toucher = Toucher("anon")
    command = [sys.executable, "-c", TRACKER, *map(str, (toucher.process.pid, toucher.block.hva, toucher.block.size))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}) as tracker:
        assert tracker.stdout is not None and tracker.stdout.readline() == b"tracks\n"
        busy = GuestMemory()
        with pytest.raises(KvmftError, match="is tracked already by another process"):
            busy.attach(toucher.process.pid, [toucher.block], lasting=False)
        busy.detach()
        tracker.send_signal(signal.SIGKILL)
    assert inject.find_userfaultfd(toucher.process.pid) is None
    toucher.touch(1, 2, 3)
    guest = GuestMemory()
    guest.attach(toucher.process.pid, [toucher.block], lasting=False)
    toucher.touch(3)
    assert pages_of(guest, guest.collect()) == [3]
    guest.detach()
    toucher.process.kill()
    toucher.process.wait()
