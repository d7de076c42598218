"""Linearizability of an append-only log whose final content is known.

An append answers with the index of its record, and the log is read whole at the end, so the order of
the appends is known: that of their indices. What remains is whether each can be given an instant
within its call and return that keeps this order, which one walk with the earliest possible instants
decides exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf


@dataclass(frozen=True)
class Append:
    """One append. Times in seconds; `index` is None and `returned` inf while it stays open."""

    value: str
    called: float
    returned: float = inf
    index: int | None = None


@dataclass(frozen=True)
class Length:
    """One completed question for the log's length."""

    length: int
    called: float
    returned: float


@dataclass
class Findings:
    """What is wrong with a log; all empty: linearizable."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged, and not in the log."""
    duplicates: list[str] = field(default_factory=list)
    """More than once in the log."""
    phantoms: list[str] = field(default_factory=list)
    """In the log, and never asked for."""
    misplaced: list[str] = field(default_factory=list)
    """In the log at another index than was answered."""
    disorder: list[str] = field(default_factory=list)
    """Sentences: operations whose order in the log contradicts their order in time."""

    @property
    def linearizable(self) -> bool:
        """True when nothing was found."""
        return not (self.lost or self.duplicates or self.phantoms or self.misplaced or self.disorder)


def check(appends: Iterable[Append], log: Sequence[str], base: int = 0,
          lengths: Iterable[Length] = ()) -> Findings:  # fmt: skip
    """Compare a history with the log's records from index `base` on.

    `lengths` are answers to the question for the length, counted from index 0.
    """
    history = {op.value: op for op in appends}
    found = Findings()
    places = {value: base + at for at, value in reversed(list(enumerate(log)))}
    found.duplicates = [value for value, count in Counter(log).items() if count > 1]
    found.phantoms = [value for value in places if value not in history]
    for op in history.values():
        if op.index is None:
            continue
        if op.value not in places:
            found.lost.append(op.value)
        elif places[op.value] != op.index and op.value not in found.duplicates:
            found.misplaced.append(f"{op.value}: answered {op.index}, is at {places[op.value]}")
    steps: list[tuple[int, int, float, float, str]] = []
    for value, place in places.items():
        if value in history:
            op = history[value]
            steps.append((place, 1, op.called, op.returned, f"append {value} at {place}"))
    steps += [(each.length, 0, each.called, each.returned, f"length {each.length}") for each in lengths]
    found.disorder = _disorder(sorted(steps))
    return found


def _disorder(steps: list[tuple[int, int, float, float, str]]) -> list[str]:
    """Steps in the log's order that have no instant left after those before them."""
    sentences = []
    earliest, by = -inf, ""
    for __, __, called, returned, name in steps:
        if returned < earliest:
            sentences.append(f"{name} returned at {returned:.4f}, before {by} was called at "
                             f"{earliest:.4f}, which the log has before it")  # fmt: skip
        if called > earliest:
            earliest, by = called, name
    return sentences
