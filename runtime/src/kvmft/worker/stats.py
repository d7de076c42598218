"""Figures of the last epochs, for status and the demo's report."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvmft.worker.histogram import COMMIT_BOUNDS, PAUSE_BOUNDS, Histogram

WINDOW = 2000


def quantiles(values: deque[float]) -> dict[str, float | None]:
    """p50, p99 and max of `values`, or nulls when there are none."""
    if not values:
        return {"p50": None, "p99": None, "max": None}
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "p50": round(ordered[last // 2], 4),
        "p99": round(ordered[min(last, int(len(ordered) * 0.99))], 4),
        "max": round(ordered[-1], 4),
    }


@dataclass
class EpochStats:
    """Pauses (seconds), pages per epoch, and the time that the guest's clock lost."""

    started: float
    pauses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    pages: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    paused_total: float = 0.0
    epochs: int = 0
    last_commit: float = 0.0
    _previous: float = 0.0
    _sample: tuple[float, int] = (0.0, 0)
    bandwidth: float = 0.0
    pause_histogram: Histogram = field(default_factory=lambda: Histogram(PAUSE_BOUNDS))
    commit_histogram: Histogram = field(default_factory=lambda: Histogram(COMMIT_BOUNDS))
    commits: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    pages_total: int = 0
    saved_total: int = 0

    def captured(self, now: float, pause: float, pages: int, saved: int = 0) -> None:
        """One checkpoint was taken: `pause` seconds, `pages` 4-KiB pages, of whose bytes `saved` need not be sent."""
        self.pauses.append(pause * 1000)
        self.pages.append(float(pages))
        self.paused_total += pause
        self.pages_total += pages
        self.saved_total += max(0, saved)
        self.pause_histogram.add(pause)
        if self._previous:
            self.gaps.append((now - self._previous) * 1000)
        self._previous = now

    def committed(self, now: float) -> None:
        """The secondary acknowledged."""
        self.epochs += 1
        self.last_commit = now
        if self._previous:
            # One checkpoint at a time is under way: the last capture is the one acknowledged.
            self.commits.append((now - self._previous) * 1000)
            self.commit_histogram.add(now - self._previous)

    def clock_loss_ppm(self, now: float, behind: float | None) -> float:
        """Share of the time that the guest's clock lost, in parts per million: the seconds that it is `behind` where it is
        kept, and otherwise all that the VM stood still."""
        elapsed = now - self.started
        return (self.paused_total if behind is None else behind) / elapsed * 1e6 if elapsed > 0 else 0.0

    def totals(self, log_bytes: int) -> dict[str, Any]:
        """Counts since the worker began, which never go back while it lives; `log_bytes` is what
        the FT log has sent."""
        return {
            "epochs": self.epochs, "pages": self.pages_total, "log_bytes": log_bytes,
            "log_saved_bytes": self.saved_total,
            "paused_seconds": round(self.paused_total, 6),
            "pause": self.pause_histogram.to_dict(), "commit": self.commit_histogram.to_dict(),
        }  # fmt: skip

    def newer(self, now: float, since: Mapping[str, int] | None) -> dict[str, Any]:
        """What came after the first `since[kind]` values of each kind, for one who asks again and again: times in
        milliseconds, and 4-KiB pages.

        `counts`: how many values of each kind there were since the worker began. `values`: those after `since`,
        as far as they are kept; none where `since` is None. `paused_seconds` is the count at the time `at`, and
        `log` has the time and the count of bytes of the last look at the FT log. `started` names the worker.
        """
        captured, committed = self.pause_histogram.total, self.commit_histogram.total
        counts = {"pause_ms": captured, "commit_ms": committed, "interval_ms": max(0, captured - 1), "pages": captured}
        values: dict[str, list[float]] = {}
        kept = {"pause_ms": self.pauses, "commit_ms": self.commits, "interval_ms": self.gaps, "pages": self.pages}
        for kind, window in kept.items() if since is not None else ():
            new = counts[kind] - (since or {}).get(kind, 0)
            values[kind] = [round(each, 4) for each in list(window)[-new:]] if new > 0 else []
        return {"started": self.started, "at": now, "paused_seconds": self.paused_total, "log": list(self._sample),
                "counts": counts, "values": values}  # fmt: skip

    def sample(self, now: float, sent_bytes: int) -> None:
        """Update `bandwidth` (bytes per second) from the count of all bytes sent so far."""
        before, count = self._sample
        if before and now > before:
            self.bandwidth = (sent_bytes - count) / (now - before)
        self._sample = (now, sent_bytes)
