"""What a running, unprotected VM writes and sends, tracked as under protection but without stopping it.

For a forecast nothing needs to be consistent, so memory is scanned while the VM runs. Whatever ends this process, tracking
ends with it: see `GuestMemory.attach`.
"""

from __future__ import annotations

import os
import select
import socket
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvmft.adapters import linux
from kvmft.adapters.memory import GuestMemory
from kvmft.adapters.priority import Priority
from kvmft.adapters.qmp import Monitor
from kvmft.adapters.ramblocks import discover
from kvmft.adapters.reactor import Reactor
from kvmft.adapters.taps import tap_of
from kvmft.core.forecast import Interval, Measured
from kvmft.core.pacing import Pace
from kvmft.errors import KvmftError
from kvmft.worker.config import delta_size_of, pace_of
from kvmft.worker.shadow import Shadow

LENGTHS = (0.004, 0.020, 0.100, 0.500)
"""Seconds between two scans, in turns of the same time each: the longest once in each turn."""
REST = 2.0
"""The VM is left alone for at least so many times the time that its scan takes, whatever the length."""
COPIES = 3
"""So many intervals of each length in a turn have their pages copied, as far as there are so many."""
COPIED_PAGES = 16384
"""At most so many pages are copied at once."""
TRIPS = 50
STOPS = 5
STOPS_APART = 0.1
DISCARD = "/dev/null"
"""Where the devices' state of a real stop goes."""


@dataclass(frozen=True)
class Task:
    """What the agent asks for. `own_monitor` None: by way of libvirt. `nics`: aliases of the interfaces."""

    vm: str
    uuid: str
    qemu_pid: int
    own_monitor: str | None
    nics: tuple[str, ...]
    seconds: float
    stops: bool
    log_rate: float | None
    pace: Pace
    realtime: bool
    delta_size: int

    @classmethod
    def parse(cls, line: dict[str, Any]) -> Task:
        """Read the start line."""
        return cls(line["vm"], line["uuid"], int(line["qemu_pid"]), line.get("own_monitor"), tuple(line["nics"]),
                   float(line["seconds"]), bool(line.get("stops")), line.get("log_rate"), pace_of(line["options"]),
                   bool(line["options"].get("realtime", True)), delta_size_of(line["options"]))  # fmt: skip


class Watch:
    """Waits, and raises as soon as the agent says a word or is gone, or QEMU ends."""

    def __init__(self, sock: socket.socket, task: Task) -> None:
        self._sock, self._task = sock, task
        self._pidfd = os.pidfd_open(task.qemu_pid)

    def until(self, due: float) -> None:
        """Sleep until `due` (seconds, CLOCK_MONOTONIC)."""
        while True:
            ready, __, __ = select.select([self._sock.fileno(), self._pidfd], [], [], max(0.0, due - Reactor.now()))
            if self._pidfd in ready:
                raise KvmftError("vm_gone", f"VM {self._task.vm} ended while it was measured.", "Start it and ask again.")
            if ready:
                raise KvmftError("forecast_ended", f"The forecast of VM {self._task.vm} was ended: protection goes first.",
                                 "See `kvmft status`; without protection, ask again.")  # fmt: skip
            if Reactor.now() >= due:
                return


class Survey:
    """One VM under measurement."""

    def __init__(self, task: Task, watch: Watch, monitor: Monitor) -> None:
        self._task, self._watch, self._monitor = task, watch, monitor
        self._memory = GuestMemory()
        self._buffer = bytearray()
        self._shadow: Shadow | None = None
        info = self._hmp("info network")
        taps = [tap_of(info, task.qemu_pid, nic) for nic in task.nics]
        self._counters = [f"/sys/class/net/{tap}/statistics/rx_packets" for tap in taps if tap]
        self.sees_output = len(self._counters) == len(task.nics)

    def _hmp(self, line: str) -> str:
        return str(self._monitor.execute("human-monitor-command", command_line=line))

    def measure(self) -> Measured:
        """Track the VM for the time that was asked for, and leave QEMU as it was."""
        if self._task.realtime:
            Priority()  # as under protection; what is measured must not be how busy the host is
        blocks = discover(self._hmp, self._task.qemu_pid)
        trips = tuple(self._timed("query-name") for __ in range(TRIPS))
        try:
            self._memory.attach(self._task.qemu_pid, blocks, lasting=False)
            if self._task.delta_size:
                self._shadow = Shadow([block.size for block in blocks], self._task.delta_size)
            written, begun = self._disk_bytes(), Reactor.now()
            intervals = self._track(begun + self._task.seconds)
            disk_rate = (self._disk_bytes() - written) / (Reactor.now() - begun)
            # Stops as they are under protection: with tracking on.
            stops = self._stops() if self._task.stops else ()
        finally:
            self._memory.detach()
        if not self._monitor.execute("query-status")["running"]:
            raise KvmftError("vm_not_running", f"VM {self._task.vm} was paused while it was measured.",
                             "Let it run, and ask again.")  # fmt: skip
        return Measured(sum(block.size for block in blocks), tuple(intervals), trips, stops, max(0.0, disk_rate),
                        self._task.log_rate, self.sees_output)  # fmt: skip

    def _track(self, end: float) -> list[Interval]:
        """Intervals of all lengths in turns until `end`; the last turn is cut off."""
        found: list[Interval] = []
        ranges, scan = self._scan()  # what was written since tracking began tells nothing
        before, packets = Reactor.now(), self._packets()
        while Reactor.now() < end:
            for length in reversed(LENGTHS):
                for number in range(round(LENGTHS[-1] / length)):
                    due = before + max(length, REST * scan)
                    if found and due > end:
                        return found
                    self._watch.until(due)
                    now, count = Reactor.now(), self._packets()
                    ranges, scan = self._scan()
                    pages = int((ranges[:, 1] - ranges[:, 0]).sum()) // linux.PAGE
                    copied = self._copy(ranges) if number < COPIES else ()
                    found.append(Interval(length, now - before, pages, scan, count - packets, *copied))
                    before, packets = now, count
        return found

    def _scan(self) -> tuple[np.ndarray, float]:
        begun = Reactor.now()
        ranges = self._memory.collect()
        return ranges, Reactor.now() - begun

    def _copy(self, ranges: np.ndarray) -> tuple[int, float, int, float]:
        """Copy the first COPIED_PAGES of `ranges`: how many pages, and how long it took; how many bytes of them are new since
        they were copied before, and how long it took to find out."""
        sizes = np.cumsum(ranges[:, 1] - ranges[:, 0])
        most = COPIED_PAGES * linux.PAGE
        part = ranges[: int(np.searchsorted(sizes, most, side="right"))]
        if not len(part) and len(ranges):
            part = np.array([[ranges[0, 0], int(ranges[0, 0]) + most]], dtype=np.uint64)
        size = int((part[:, 1] - part[:, 0]).sum())
        if size > len(self._buffer):
            self._buffer = bytearray(size)
            self._memory.read(part, memoryview(self._buffer))  # the first time costs the buffer's own pages
        begun = Reactor.now()
        self._memory.read(part, memoryview(self._buffer))
        copied, sent = Reactor.now(), size
        if self._shadow is not None:
            sent -= self._shadow.encode((self._memory.to_table(part), memoryview(self._buffer)[:size])).saved
        return size // linux.PAGE, copied - begun, sent, Reactor.now() - copied

    def _packets(self) -> int:
        """What the VM has sent so far, on the interfaces that can be counted."""
        total = 0
        for path in self._counters:
            try:
                with open(path, "rb", buffering=0) as file:
                    total += int(file.read())
            except OSError:
                continue  # unplugged meanwhile
        return total

    def _disk_bytes(self) -> int:
        return sum(int(each["stats"]["wr_bytes"]) for each in self._monitor.execute("query-blockstats"))

    def _timed(self, name: str, **arguments: Any) -> float:
        begun = Reactor.now()
        self._monitor.execute(name, **arguments)
        return Reactor.now() - begun

    def _stops(self) -> tuple[float, ...]:
        """STOPS real ones. QEMU itself lets the VM run on after each, as it ran before, whatever becomes of us."""
        found = []
        priority = Priority(self._task.qemu_pid) if self._task.realtime else None
        try:
            for __ in range(STOPS):
                self._watch.until(Reactor.now() + STOPS_APART)
                found.append(self._timed("xen-save-devices-state", filename=DISCARD, live=False))
        finally:
            if priority is not None:
                priority.give_back()
        return tuple(found)
