"""The worker's one event loop: epoll, timers, and a door for helper threads.

Single-threaded on purpose. A checkpoint must multiplex QEMU's monitor, the disk capture, the
captured packets and the FT log while the VM is paused; if any of them were read by a blocking call
QEMU could be blocked writing to another one, and both would wait for ever.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP


@dataclass(order=True)
class Timer:
    """A pending call at `due` (seconds, CLOCK_MONOTONIC). `cancel()` is idempotent."""

    due: float
    order: int
    callback: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        self.callback = None


class Reactor:
    """epoll with timers. Callbacks get the ready mask; exceptions propagate out of `run`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._running = True
        self.add(self._wake, READ, self._drain_inbox)

    @staticmethod
    def now() -> float:
        """Seconds of CLOCK_MONOTONIC."""
        return time.monotonic()

    def add(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Watch `fd` for `events` (READ, WRITE or both); `handler(mask)` is called when ready."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        """Change what `fd` is watched for. 0 watches for hang-up and error only."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Stop watching `fd`. Unknown descriptors are ignored, so closing twice is harmless."""
        if self._handlers.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass

    def call_at(self, due: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once at `due` (seconds, monotonic)."""
        timer = Timer(due, next(self._order), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once after `seconds`."""
        return self.call_at(self.now() + seconds, callback)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Have the loop's thread call `callback`; the only method other threads may use."""
        self._inbox.append(callback)
        os.eventfd_write(self._wake, 1)

    def _drain_inbox(self, _mask: int) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass
        while self._inbox:
            self._inbox.popleft()()

    def step(self, timeout: float | None = None) -> None:
        """Wait for one batch of events (at most `timeout` seconds) and handle it."""
        now = self.now()
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        wait = -1.0 if timeout is None else timeout
        if self._timers:
            until = max(0.0, self._timers[0].due - now)
            wait = until if wait < 0 else min(wait, until)
        for fd, mask in self._epoll.poll(wait):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(mask)
        now = self.now()
        while self._timers and self._timers[0].due <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()

    def run_until(
        self, done: Callable[[], bool], timeout: float | None = None, every: float | None = None
    ) -> bool:
        """Run until `done()` is true; False when `timeout` seconds went by first.

        With `every` it is asked again after at most so many seconds, for what no event tells.
        """
        limit = None if timeout is None else self.now() + timeout
        while not done():
            left = None if limit is None else limit - self.now()
            if left is not None and left <= 0:
                return False
            self.step(left if every is None else every if left is None else min(left, every))
        return True

    def run(self) -> None:
        """Run until `stop()`, which may have been called already."""
        while self._running:
            self.step()

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        self._epoll.close()
        os.close(self._wake)
