"""One system call made by another process: nothing of that process may change by it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from kvmft.adapters import inject
from kvmft.errors import KvmftError

SYS_GETPID, SYS_GETTID = 39, 186  # asm/unistd_64.h

SLEEPER = """
import ctypes, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
hits = []
signal.signal(signal.SIGUSR1, lambda *_: hits.append(1))
for _ in range(3):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
class Time(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
print("ready", flush=True)
begin = time.monotonic()
if sys.argv[1] == "poll":          # restarted with a restart block
    result = libc.poll(None, 0, 1500)
elif sys.argv[1] == "nanosleep":
    result = libc.nanosleep(ctypes.byref(Time(1, 500_000_000)), None)
elif sys.argv[1] == "ppoll":       # QEMU's main loop
    result = libc.ppoll(None, 0, ctypes.byref(Time(1, 500_000_000)), None)
else:                              # user code, never in the kernel
    result, total, n = 0, 0, 0
    while time.monotonic() - begin < 1.5:
        n += 1
        total += n
    result = 0 if total == n * (n + 1) // 2 else -1
error = ctypes.get_errno()
print(result, error, time.monotonic() - begin, len(hits), flush=True)
"""


class Target:
    """A process that waits in one way; `outcome` is what its own code saw of it."""

    def __init__(self, way: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLEEPER, way], stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        time.sleep(0.1)

    def outcome(self) -> tuple[int, int, float, int]:
        """(result, errno, seconds, SIGUSR1 handled)."""
        assert self.process.stdout is not None
        result, error, seconds, hits = self.process.stdout.readline().split()
        return int(result), int(error), float(seconds), int(hits)

    def state(self) -> str:
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            fields = dict(line.split(":", 1) for line in status)
        return fields["State"].strip()[0] + fields["TracerPid"].strip()


@pytest.fixture(params=["poll", "nanosleep", "ppoll", "busy"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    made = Target(request.param)
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture
def waiting() -> Iterator[Target]:
    made = Target("ppoll")
    yield made
    made.process.kill()
    made.process.wait()


def test_the_call_is_made_and_what_it_interrupted_goes_on_as_if_nothing_was(
    target: Target,
) -> None:
    for __ in range(50):
        assert inject.inject_syscall(target.pid, SYS_GETPID) == target.pid
        assert inject.inject_syscall(target.pid, SYS_GETTID) == target.pid, "the main thread"
    result, error, seconds, __ = target.outcome()
    assert (result, error) == (0, 0)
    assert seconds > 1.49


def test_a_signal_that_comes_meanwhile_is_not_lost(target: Target) -> None:
    """It ends a wait with EINTR, as it always does; the handler runs."""
    sender = subprocess.Popen(
        [sys.executable, "-c",
         f"import os, time\nfor _ in range(20): os.kill({target.pid}, 10); time.sleep(0.005)"],
    )  # fmt: skip
    calls = 0
    while sender.poll() is None and target.process.poll() is None:
        try:
            assert inject.inject_syscall(target.pid, SYS_GETPID) == target.pid
        except KvmftError:  # its wait was over, and it ended
            break
        calls += 1
    assert calls > 3
    __, error, __, hits = target.outcome()
    assert error in (0, 4) and hits >= 1


def test_an_error_of_the_call_is_its_result(waiting: Target) -> None:
    assert inject.inject_syscall(waiting.pid, 3, 9999) == -9  # close: EBADF
    inject.close_remote_fd(waiting.pid, 9999)


def test_an_ioctl_has_its_data_and_leaves_the_thread_as_it_was(waiting: Target) -> None:
    """FIONREAD on the pipe that is the process's standard output says how much nobody has read."""
    reader = os.open(f"/proc/{waiting.pid}/fd/1", os.O_WRONLY)
    os.write(reader, b"twelve bytes")
    with inject.Held(waiting.pid) as thread:
        for __ in range(3):
            assert thread.ioctl(1, termios.FIONREAD, bytes(8)) == (12).to_bytes(8, "little")
        with pytest.raises(OSError, match="Bad file descriptor"):
            thread.ioctl(9999, termios.FIONREAD, bytes(8))
        assert thread.call(SYS_GETPID) == waiting.pid
    with inject.Held(waiting.pid, thread.instruction) as again:
        assert again.call(SYS_GETTID) == waiting.pid
    assert waiting.process.stdout is not None and waiting.process.stdout.read(12) == "twelve bytes"
    os.close(reader)
    assert waiting.outcome()[:2] == (0, 0)


def test_a_stopped_process_stays_stopped(waiting: Target) -> None:
    os.kill(waiting.pid, signal.SIGSTOP)
    time.sleep(0.05)
    assert inject.inject_syscall(waiting.pid, SYS_GETPID) == waiting.pid
    time.sleep(0.05)
    assert waiting.state() == "T0"
    os.kill(waiting.pid, signal.SIGCONT)
    assert waiting.outcome()[:2] == (0, 0)


def test_a_userfaultfd_is_made_found_fetched_and_closed(waiting: Target) -> None:
    assert inject.find_userfaultfd(waiting.pid) is None
    number = inject.make_userfaultfd(waiting.pid)
    assert inject.find_userfaultfd(waiting.pid) == number
    ours = inject.fetch_fd(waiting.pid, number)
    assert os.readlink(f"/proc/self/fd/{ours}") == "anon_inode:[userfaultfd]"
    os.close(ours)
    inject.close_remote_fd(waiting.pid, number)
    assert inject.find_userfaultfd(waiting.pid) is None
    with pytest.raises(KvmftError, match="cannot be fetched"):
        inject.fetch_fd(waiting.pid, number)


def test_a_process_under_a_debugger_is_refused_and_left_alone(waiting: Target) -> None:
    """A second tracer is refused by the kernel; the first one is played by a child of ours."""
    tracer = subprocess.Popen(
        [sys.executable, "-c",
         "import sys, time\nfrom kvmft.adapters import inject, linux\n"
         f"inject._ptrace(linux.PTRACE_SEIZE, {waiting.pid})\nprint('on', flush=True)\n"
         "time.sleep(60)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert tracer.stdout is not None and tracer.stdout.readline() == "on\n"
    with pytest.raises(KvmftError, match="is refused") as caught:
        inject.inject_syscall(waiting.pid, SYS_GETPID)
    assert "debugger" in caught.value.remedy
    tracer.kill()
    tracer.wait()
    assert waiting.outcome()[:2] == (0, 0)


def test_whatever_fails_half_way_the_process_is_let_go(
    waiting: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise KvmftError("planted", "planted", "none")

    monkeypatch.setattr(inject, "_find_syscall", fail)
    with pytest.raises(KvmftError, match="planted"):
        inject.inject_syscall(waiting.pid, SYS_GETPID)
    assert waiting.state()[1:] == "0", "still traced"
    assert waiting.outcome()[:2] == (0, 0)


def test_a_process_that_is_gone_is_one_clear_error() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(KvmftError, match="No such process"):
        inject.inject_syscall(gone.pid, SYS_GETPID)


def test_a_process_that_ends_while_it_is_held_is_told_as_gone(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    find = inject._find_syscall

    def find_late(pid: int, rip: int) -> int:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return find(pid, rip)

    monkeypatch.setattr(inject, "_find_syscall", find_late)
    with pytest.raises(KvmftError) as caught:
        inject.inject_syscall(target.pid, SYS_GETPID)
    assert caught.value.code == "vm_gone"
