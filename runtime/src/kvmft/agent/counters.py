"""What is counted of one VM on this host, over all workers that looked after it."""

from __future__ import annotations

import time
from typing import Any

PLAIN = ("epochs", "pages", "log_bytes", "log_saved_bytes", "paused_seconds")
HISTOGRAMS = ("pause", "commit")


class Counters:
    """Sums of what workers report. A worker counts from zero; these never go back.

    `begin` is called when a worker starts, `take` with the `totals` of each of its messages.
    """

    def __init__(self) -> None:
        self.plain: dict[str, float] = dict.fromkeys(PLAIN, 0)
        self.histograms: dict[str, dict[str, Any]] = {}
        self.figures_at = 0.0
        self._last: dict[str, Any] = {}

    def begin(self) -> None:
        """A new worker: what it reports first is all new."""
        self._last = {}

    def take(self, totals: dict[str, Any] | None) -> None:
        """Add what `totals` has more than the last ones of this worker."""
        self.figures_at = time.monotonic()
        if not totals:
            return
        for name in PLAIN:
            self.plain[name] += _more(self._last.get(name, 0), totals.get(name, 0))
        for name in HISTOGRAMS:
            if name in totals:
                self._add(name, totals[name], self._last.get(name))
        self._last = totals

    def _add(self, name: str, new: dict[str, Any], last: dict[str, Any] | None) -> None:
        size = len(new["counts"])
        before = last or {"counts": [0] * size, "sum": 0.0}
        kept = self.histograms.setdefault(
            name, {"bounds": new["bounds"], "counts": [0] * size, "sum": 0.0}
        )
        for index, (was, now) in enumerate(zip(before["counts"], new["counts"], strict=True)):
            kept["counts"][index] += _more(was, now)
        kept["sum"] += _more(before["sum"], new["sum"])


def _more(last: float, now: float) -> float:
    """The growth since `last`; a count that went back began anew."""
    return now - last if now >= last else now
