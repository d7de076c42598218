"""True time for a guest on KVM's clock, from which QEMU hides every pause.

At `stop` QEMU notes the guest's clock and at `cont` it sets it to what it noted (hw/i386/kvm/clock.c). Some hundred
pauses a second of some milliseconds would have the clock run slow by a share that NTP cannot mend. So it is put forward
by the time that was lost, again and again while the VM runs; never back. A guest that reads the processor's time stamp
counter itself needs none of this: KVM lets that run on through a pause.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from kvmft.adapters.inject import Held
from kvmft.adapters.kvm_clock import find_machine, host_clock, read_clock, set_clock
from kvmft.adapters.priority import Priority
from kvmft.errors import KvmftError

DUE = 0.005
"""Seconds of pauses after which the clock is looked at."""
SOONEST, LATEST_LOOK = 0.05, 1.0
"""Seconds between two looks. A worker that is killed in the tenth of a millisecond in which QEMU's main thread works for it
takes that QEMU with it, and the secondary goes on: so no more often than is of use."""
LEAST = 200_000
"""Nanoseconds that are worth a correction."""
FOREIGN = 20_000_000
"""Nanoseconds beyond our own pauses: somebody else stopped the VM, and meant it."""
LATEST = 60_000_000_000
"""Nanoseconds that a clock is put forward at most when a VM goes on elsewhere."""


class ClockKeeper:
    """Keeps the clock of a VM at the host's pace, in a thread of its own: taking hold of QEMU's main thread may have to
    wait for it."""

    def __init__(self, pid: int, machine: int, realtime: bool, on_failed: Callable[[str], None]) -> None:
        """`machine` is as `find_machine` tells. `on_failed` is called once, from the thread, when the clock cannot be kept."""
        self._pid, self._machine = pid, machine
        self._realtime = realtime
        self._on_failed = on_failed
        self._pauses = 0.0
        self._stopped: float | None = None
        self._seen = 0.0
        self._ahead: int | None = None
        self._instruction: int | None = None
        self._due, self._end = threading.Event(), threading.Event()
        self.behind = 0.0
        """Seconds that the clock was behind when it was looked at last, and that were left so."""
        self._thread = threading.Thread(target=self._run, name="guest-clock", daemon=True)

    def start(self) -> None:
        """Begin; from now on the clock follows the host's."""
        self._thread.start()

    def pausing(self, now: float) -> None:
        """The VM is about to be stopped by us, at `now` (the reactor's time, as everywhere here)."""
        if self._stopped is None:
            self._stopped = now

    def running(self, now: float) -> None:
        """It runs again."""
        if self._stopped is not None:
            self._pauses += now - self._stopped
            self._stopped = None
        if self._pauses - self._seen >= DUE:
            self._due.set()

    def stop(self) -> None:
        """Correct no more; returns when QEMU's main thread is not held any longer."""
        self._end.set()
        self._due.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        # Held by a thread that waits for a processor, QEMU's main thread would lengthen a pause.
        priority = Priority() if self._realtime else None
        try:
            while not self._end.wait(SOONEST):
                self._due.clear()
                self.look()
                self._due.wait(LATEST_LOOK)
        except (KvmftError, OSError) as error:
            if os.path.exists(f"/proc/{self._pid}/exe"):
                self._on_failed(str(error))
        finally:
            if priority is not None:
                priority.give_back()

    def look(self) -> None:
        """Put the clock forward by what it lost since the last look."""
        with Held(self._pid, self._instruction) as thread:
            self._instruction = thread.instruction
            if self._stopped is not None:
                return  # what is set while the VM is stopped, QEMU undoes when it lets it run
            # In this order, so that a wait in between makes too little of what was lost and never too much.
            host, realtime = host_clock(), time.time_ns()
            clock = read_clock(thread, self._machine)
            lost = 0 if self._ahead is None else host - self._ahead - clock
            ours, self._seen = int((self._pauses - self._seen) * 1e9), self._pauses
            if self._ahead is None or lost > ours + FOREIGN:
                self._ahead, lost = host - clock, 0
            elif lost > LEAST:
                set_clock(thread, self._machine, clock + lost, realtime)
                lost = 0
            self.behind = lost / 1e9


def put_forward(pid: int, seconds: float) -> float:
    """Put the clock of process `pid`'s VM forward; by how many seconds: 0.0 where it has no clock of KVM's."""
    machine = find_machine(pid)
    forward = min(int(seconds * 1e9), LATEST)
    if machine is None or forward <= 0:
        return 0.0
    with Held(pid) as thread:
        realtime = time.time_ns()  # before the clock is read: it must not go back
        clock = read_clock(thread, machine)
        set_clock(thread, machine, clock + forward, realtime)
    return forward / 1e9


def keep_clock(pid: int, realtime: bool, on_failed: Callable[[str], None]) -> ClockKeeper | None:
    """A keeper for process `pid`'s VM, or None where it has no clock of KVM's."""
    with suppress(OSError):
        if (machine := find_machine(pid)) is not None:
            keeper = ClockKeeper(pid, machine, realtime, on_failed)
            keeper.start()
            return keeper
    return None
