# SPDX-License-Identifier: GPL-3.0-or-later
"""What a prober saw, summed up while it comes: silences between answers, and markers. Pure."""

from __future__ import annotations

import math
import typing as t

MOST = 500
"""As many of the longest silences are kept; a drill of an hour has far fewer worth telling."""


class Watch:
    """The answers of one VM. Times are Unix seconds of the prober's clock, in rising order."""

    def __init__(self, floor_s: float) -> None:
        """`floor_s`: silences up to this are the rhythm of asking and are only counted."""
        self._floor = floor_s
        self.attempts = 0
        self.answers = 0
        self.first: float | None = None
        self.last: float | None = None
        self.failure = ""
        self._failing = False
        self._silences: list[tuple[float, float]] = []
        self._waits: dict[int, int] = {}

    def feed(self, begun: float, ended: float, ok: bool, detail: str = "") -> None:
        """One attempt, from `begun` to `ended`."""
        self.attempts += 1
        self._failing = not ok
        if not ok:
            self.failure = detail
            return
        self.answers += 1
        if self.first is None:
            self.first = ended
        elif self.last is not None and ended - self.last > self._floor:
            self._silences.append((self.last, ended))
            if len(self._silences) > 2 * MOST:
                self._trim()
        self.last = ended
        # Logarithmic classes, 20 to the decade, hold any number of answers in little memory.
        wait = max(ended - begun, 1e-6)
        kind = round(20 * math.log10(wait * 1e6))
        self._waits[kind] = self._waits.get(kind, 0) + 1

    def _trim(self) -> None:
        longest = sorted(self._silences, key=lambda each: each[0] - each[1])[:MOST]
        self._silences = sorted(longest)

    def _percentile(self, share: float) -> float | None:
        left = share * self.answers
        for kind in sorted(self._waits):
            left -= self._waits[kind]
            if left <= 0:
                return round(10 ** (kind / 20) / 1000, 2)
        return None

    def result(self, until: float) -> dict[str, t.Any]:
        """Everything, as plain data. A silence that still lasts at `until` has no end (None); after an answer
        none has begun, however long nobody asked."""
        self._trim()
        silences: list[list[float | None]] = [[round(a, 4), round(b, 4)] for a, b in self._silences]
        if self.last is not None and self._failing and until - self.last > self._floor:
            silences.append([round(self.last, 4), None])
        return {
            "attempts": self.attempts,
            "answers": self.answers,
            "first": self.first,
            "last": self.last,
            "until": until,
            "failure": self.failure if self.answers < self.attempts else "",
            "silences": silences,
            "answer_ms": {"p50": self._percentile(0.5), "p99": self._percentile(0.99)},
        }


def markers(
    acknowledged: list[tuple[int, float]], there: dict[int, bool | None]
) -> dict[str, t.Any]:
    """What became of acknowledged markers (number, Unix time), from which of them are `there`.

    `lost_ms` is the time from the newest marker before the first lost one to the newest lost one: as
    much acknowledged work is gone at most. `unknown` could not be read back.
    """
    lost = [number for number, __ in acknowledged if there.get(number) is False]
    unknown = [number for number, __ in acknowledged if there.get(number) is None]
    made: dict[str, t.Any] = {
        "acknowledged": len(acknowledged),
        "read_back": len(acknowledged) - len(unknown),
        "lost": len(lost),
        "unknown": len(unknown),
        "lost_ms": 0.0,
    }
    if lost:
        times = dict(acknowledged)
        first = min(times[number] for number in lost)
        kept = [at for number, at in acknowledged if there.get(number) and at < first]
        begin = max(kept) if kept else first
        made["lost_ms"] = round((max(times[number] for number in lost) - begin) * 1000, 1)
    return made
