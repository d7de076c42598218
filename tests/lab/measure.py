"""What the client's log says: gaps, losses, resets, and a picture of a gap. Pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

BARS = " ▁▂▃▄▅▆▇█"


@dataclass
class ClientLog:
    """The client's answers, in the order in which they came; times in seconds, monotonic."""

    commits: dict[int, float] = field(default_factory=dict)
    """Acknowledged rows: number -> time of the acknowledgement."""
    latencies: list[float] = field(default_factory=list)
    """Of each commit, in seconds."""
    echoes: list[float] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> ClientLog:
        """Read the log of tests/lab/client.py; a line still being written is left out."""
        log = cls()
        for line in lines:
            if not line.endswith("\n"):
                continue
            entry = json.loads(line)
            match entry["kind"]:
                case "commit":
                    log.commits[entry["seq"]] = entry["answered"]
                    log.latencies.append(entry["answered"] - entry["sent"])
                case "echo":
                    log.echoes.append(entry["answered"])
                case "reset":
                    log.resets.append(f"{entry['of']}: {entry['reason']}")
        return log


def longest_gap(times: Iterable[float], start: float, end: float) -> float | None:
    """The longest time between two answers that touches the span from `start` to `end`, seconds."""
    ordered = sorted(times)
    gaps = [
        later - earlier
        for earlier, later in itertools.pairwise(ordered)
        if later >= start and earlier <= end
    ]
    return max(gaps, default=None)


def lost(acknowledged: Iterable[int], stored: Iterable[int]) -> list[int]:
    """Rows that were acknowledged and are not in the database."""
    return sorted(set(acknowledged) - set(stored))


def percentile(values: list[float], share: float) -> float | None:
    """The value below which `share` (0..1) of the values lie."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def picture(times: Iterable[float], when: float, before: float = 1.5, after: float = 2.5,
            step: float = 0.05) -> str:  # fmt: skip
    """Answers per `step` seconds as bars, with a mark under the moment `when`."""
    columns = round((before + after) / step)
    counts = [0] * columns
    for time in times:
        column = int((time - when + before) // step)
        if 0 <= column < columns:
            counts[column] += 1
    top = max(counts) or 1
    bars = "".join(BARS[0 if n == 0 else max(1, round(n * (len(BARS) - 1) / top))] for n in counts)
    mark = " " * round(before / step) + "^ the server loses power"
    scale = (f"{-before:+.1f} s".ljust(round(before / step)) + "0").ljust(columns - 6)
    return f"  |{bars}|\n   {scale}{after:+.1f} s\n   {mark}"
