"""When the next checkpoint is due: at once for output that waits, seldom for a VM that has nothing to say.

Every checkpoint makes the VM stand still, so a VM without output is left to run for long epochs. Two
things end an epoch earlier: output that waits, and a dirty set that the next output would have to wait for
longer than `max_added_latency`. Whatever is asked, the VM runs at least the share of the time that
`max_pause_share` leaves it, so that no setting can bring the guest to a standstill.

All times in seconds, sizes in bytes, rates in bytes per second.
"""

from __future__ import annotations

from dataclasses import dataclass

UNUSUAL = 2.0
"""A pause that something else made long (a stopped QEMU) must not put off the next checkpoint: it counts as so
many usual ones."""
FIRST_PAUSE = 0.005
FIRST_THROUGHPUT = 100e6
"""Until one was measured: what a checkpoint gets done, stop to commit, a second."""
WORTH_MEASURING = 1 << 20
"""Smaller checkpoints are all fixed cost and tell nothing about throughput."""
SMOOTHING = 0.2
"""Weight of the newest checkpoint in what status shows and in the throughput."""


@dataclass(frozen=True)
class Pace:
    """What was asked; the defaults are those of a VM's options. `interval`: the longest time between two
    checkpoints; `min_interval`: the shortest."""

    interval: float = 0.5
    min_interval: float = 0.004
    max_added_latency: float = 0.1
    max_pause_share: float = 0.5


class Pacer:
    """Learns from each checkpoint what the next one will cost, and says when it is due."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._resumed = 0.0
        self._pause = self._counted = 0.0
        self._usual = FIRST_PAUSE
        self._size = 0
        self._ran = 0.0
        self.throughput = FIRST_THROUGHPUT
        self._shown: tuple[float, float] | None = None

    def captured(self, now: float, pause: float, size: int) -> None:
        """A checkpoint of `size` bytes was taken; the VM stood still for `pause` and runs since `now`."""
        self._ran = max(0.0, now - pause - self._resumed) if self._resumed else 0.0
        self._resumed, self._pause, self._size = now, pause, size
        self._counted = min(pause, UNUSUAL * self._usual)
        self._usual += SMOOTHING * (self._counted - self._usual)

    def committed(self, now: float) -> None:
        """The secondary holds the last checkpoint since `now`."""
        commit = max(0.0, now - self._resumed)
        took = self._pause + commit
        if self._size >= WORTH_MEASURING and took > 0:
            self.throughput += SMOOTHING * (self._size / took - self.throughput)
        pause, before = self._shown or (self._pause, commit)
        self._shown = (pause + SMOOTHING * (self._pause - pause), before + SMOOTHING * (commit - before))

    def due(self, output_waits: bool) -> float:
        """When the VM is to be stopped next."""
        gap = self.pace.min_interval if output_waits else self._longest()
        return self._resumed + max(gap, self._rest())

    def _rest(self) -> float:
        """How long the VM has to run after a pause for `max_pause_share`."""
        share = self.pace.max_pause_share
        return self._counted * (1.0 - share) / share

    def _longest(self) -> float:
        """How long the VM may run until what it dirtied takes `max_added_latency` to commit."""
        if self._ran <= 0.0 or self._size == 0:
            return self.pace.interval
        bound = self.pace.max_added_latency * self.throughput / (self._size / self._ran)
        return max(self.pace.min_interval, min(self.pace.interval, bound))

    def shortfall(self) -> str | None:
        """Why output waits longer than `max_added_latency`, in a sentence with the remedy; None when it does not."""
        if self._shown is None:
            return None
        pause, commit = self._shown
        asked = self.pace.max_added_latency
        if pause + commit <= asked:
            return None
        if commit > pause:
            cause, remedy = "the commit on the secondary", "look at the FT network and at the secondary's load"
        else:
            cause, remedy = "the VM's pause", "look at the pages per epoch and at this host's load"
        return (
            f"Output waits about {(pause + commit) * 1000:.0f} ms for its checkpoint, asked for are at most "
            f"{asked * 1000:.0f} ms (max_added_latency_ms). Most of it is {cause}: {remedy}."
        )
