"""Histograms with fixed buckets, cheap enough for the hot path: one bisection, two additions."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

PAUSE_BOUNDS = (
    0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0,
)  # fmt: skip
"""Upper bounds in seconds of the VM's pauses."""
COMMIT_BOUNDS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0,
)  # fmt: skip
"""Upper bounds in seconds from a checkpoint's capture to its acknowledgement."""


class Histogram:
    """Counts of values up to each bound; the last count is of those above all bounds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self._sum += value

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(self._counts)

    def to_dict(self) -> dict[str, Any]:
        """For the status message: bounds, counts per bucket (not cumulative) and the sum."""
        return {"bounds": list(self.bounds), "counts": list(self._counts),
                "sum": round(self._sum, 6)}  # fmt: skip
