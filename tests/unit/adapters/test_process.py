"""The end of real processes, seen from outside."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from kvmft.adapters import process as process_module
from kvmft.adapters.process import Process
from kvmft.adapters.reactor import Reactor

LARGE = """
    import mmap, sys, threading, time
    memory = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(15)  # no huge pages: 262,144 pages to free
    for place in range(0, len(memory), 4096):
        memory[place] = 1
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    print("ready", flush=True)
    time.sleep(60)
"""
HELPER = """
    import sys, threading, time
    for _ in range(2):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    threading.Thread(target=sys.stdin.readline).start()
    print("ready", flush=True)
    time.sleep(60)
"""
LEAVES = """
    import sys
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A Python that runs `request.param`, once it says that it is ready."""
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(request.param)], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def watch(process: subprocess.Popen[str]) -> tuple[Reactor, Process, list[bool]]:
    """The process under watch; the list gets, when its end is told, whether it had ended by then."""
    reactor, told = Reactor(), list[bool]()
    watched = Process(process.pid, reactor, lambda: told.append(watched.ended()))
    return reactor, watched, told


@pytest.mark.parametrize("running", [LARGE], indirect=True)
def test_a_death_is_known_while_memory_is_still_being_freed(running: subprocess.Popen[str]) -> None:
    reactor, watched, told = watch(running)
    assert not watched.ends and not watched.killed()
    running.kill()
    assert reactor.run_until(lambda: bool(told), 10)
    assert told == [False], "told when it had ended: the kernel takes long to free a large VM's memory"
    assert watched.ends and watched.killed() and watched.ends_within(0)
    assert watched.ended(10)
    reactor.step(0)
    assert told == [False], "once"


@pytest.mark.parametrize("running", [LARGE], indirect=True)
def test_without_descriptors_of_threads_the_process_itself_tells(
    running: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux before 6.9."""
    monkeypatch.setattr(process_module, "PIDFD_THREAD", 1 << 20)
    reactor, __, told = watch(running)
    running.kill()
    assert reactor.run_until(lambda: bool(told), 10)
    assert told == [True]


@pytest.mark.parametrize("running", [HELPER], indirect=True)
def test_the_end_of_a_helper_thread_is_nobodys_death(running: subprocess.Popen[str]) -> None:
    reactor, watched, told = watch(running)
    assert len(process_module.oldest_threads(running.pid)) == 3
    assert running.stdin is not None
    running.stdin.write("\n")
    running.stdin.flush()
    until = time.monotonic() + 4 * process_module.DOUBT
    reactor.run_until(lambda: time.monotonic() > until, every=0.01)
    assert len(process_module.oldest_threads(running.pid)) == 2 and not told and not watched.ends
    running.kill()
    assert reactor.run_until(lambda: bool(told), 10), "its other threads are still watched"


@pytest.mark.parametrize("running", [LEAVES], indirect=True)
def test_what_leaves_by_itself_was_not_killed(running: subprocess.Popen[str]) -> None:
    reactor, watched, told = watch(running)
    assert running.stdin is not None
    running.stdin.write("\n")
    running.stdin.flush()
    assert reactor.run_until(lambda: bool(told), 10)
    assert not watched.killed()


@pytest.mark.parametrize("running", [HELPER], indirect=True)
def test_what_is_watched_no_more_is_not_told(running: subprocess.Popen[str]) -> None:
    reactor, watched, told = watch(running)
    watched.unwatch()
    watched.kill()
    assert watched.ends_within(5) and watched.ended(5)
    reactor.step(0.05)
    assert not told
