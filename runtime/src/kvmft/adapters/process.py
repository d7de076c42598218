"""The end of another process, known before the kernel has taken its memory down.

A process that is killed counts as ended, and its sockets close, only when its memory is free: a quarter of a second per GiB
was measured of QEMU (docs/performance.md). Its threads end at once, all but the one that has to do that work, and so does the
view of its memory in /proc.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from functools import partial

from kvmft.adapters.linux import PIDFD_THREAD
from kvmft.adapters.reactor import READ, Reactor

THREADS = 8
"""So many are watched, the oldest: those that QEMU has as long as it runs, besides helpers that come and go. Two would do."""
EXIT_CODE = 49
"""Where /proc/PID/stat tells it, counted behind the name; of a process that ends since Linux 5.17."""
DOUBT, DOUBT_EVERY = 0.05, 0.001
"""A thread ended: for so long, and so often (seconds), it is looked whether the process goes with it."""


class Process:
    """Process `pid` under watch, held by a descriptor, so that no other one with its number is ever meant.

    `on_end` is called once, as soon as it ends or is about to and cannot come back. Raises ProcessLookupError when there is none.
    """

    def __init__(self, pid: int, reactor: Reactor, on_end: Callable[[], None]) -> None:
        self.pid = pid
        self._reactor = reactor
        self._on_end: Callable[[], None] | None = on_end
        """None once it was told, or shall not be."""
        self._pidfd = os.pidfd_open(pid)
        self._threads: list[int] = []
        """Their descriptors, which stay open: a number that is given anew might be in the reactor's hands still."""
        reactor.add(self._pidfd, READ, lambda _mask: self._tell())
        for thread in oldest_threads(pid):
            try:
                descriptor = os.pidfd_open(thread, PIDFD_THREAD)
            except OSError:  # that thread has ended, or Linux is older than 6.9: the process alone is watched
                continue
            self._threads.append(descriptor)
            reactor.add(descriptor, READ, partial(self._thread_ended, descriptor))

    def unwatch(self) -> None:
        """Its end is told no more."""
        self._on_end = None
        for descriptor in (self._pidfd, *self._threads):
            self._reactor.remove(descriptor)

    @property
    def ends(self) -> bool:
        """True when it is about to end, or has ended."""
        return memory_is_gone(self.pid) or self.ended()

    def ended(self, seconds: float = 0.0) -> bool:
        """True when it has ended, or does within `seconds`; nothing else goes on meanwhile."""
        waiting = select.poll()
        waiting.register(self._pidfd, select.POLLIN)
        return bool(waiting.poll(seconds * 1000))

    def ends_within(self, seconds: float) -> bool:
        """Like `ends`, and nothing else goes on meanwhile."""
        until = time.monotonic() + seconds
        while not self.ends:
            if time.monotonic() >= until:
                return False
            self.ended(DOUBT_EVERY)
        return True

    def killed(self) -> bool:
        """True when a signal ends it, or has: it did not leave by itself. Only with the right to trace it (proc(5): exit_code)."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return memory_is_gone(self.pid) and bool(int(fields[EXIT_CODE]) & 0x7F)

    def kill(self) -> None:
        """SIGKILL, to this very process."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _thread_ended(self, descriptor: int, _mask: int) -> None:
        self._reactor.remove(descriptor)
        self._look(time.monotonic() + DOUBT)

    def _look(self, until: float) -> None:
        """Helpers of QEMU end all the time. When a process is killed, a thread may end before the first one has."""
        if self._on_end is None:
            return
        if self.ends:
            self._tell()
        elif time.monotonic() < until:
            self._reactor.call_later(DOUBT_EVERY, partial(self._look, until))

    def _tell(self) -> None:
        told = self._on_end
        self.unwatch()
        if told is not None:
            told()


def oldest_threads(pid: int) -> list[int]:
    """Ids of at most THREADS threads of a process, without the first one, whose end is told last (proc(5): task)."""
    try:
        found = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []
    return [thread for thread in found if thread != pid][:THREADS]


def memory_is_gone(pid: int) -> bool:
    """True when the process has no memory any more, or is none (proc(5): statm)."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return file.read().startswith(b"0 ")
    except (FileNotFoundError, ProcessLookupError):
        return True
