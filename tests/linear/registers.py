"""Linearizability of registers with read, write and compare-and-swap.

Registers are independent, and linearizability is local: each key is checked alone. The search is
Wing & Gong's with memoisation of configurations, in the just-in-time form of Lowe ("Testing for
linearizability", 2017): the history is walked in time order, and after each return the set of all
configurations (value, operations under way that took effect already) that explain it so far is kept.
It stays small while few clients are concurrent, so that tens of thousands of operations take seconds.

An operation without a return may take effect at any later time or never. Values that are written are
unique, so one of these has either been seen by a completed operation, and took effect before that
one returned, or by nobody, and is left out without loss.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf

EMPTY = "-"
"""The value of a register that was never written."""


@dataclass(frozen=True)
class Op:
    """One operation on one register. Times in seconds; `returned` is inf while it stays open.

    kind `read`: `value` is what was read. `write`: `value` was written. `cas`: `expected` and `value`
    are what was given, `seen` what the register held (None while open); it took effect when `seen`
    equals `expected`.
    """

    key: str
    kind: str
    value: str
    called: float
    returned: float = inf
    expected: str = ""
    seen: str | None = None

    def apply(self, held: str) -> str | None:
        """The register's value afterwards, or None when it cannot have held `held`."""
        if self.kind == "read":
            return held if held == self.value else None
        if self.kind == "write":
            return self.value
        if self.seen is None:
            return self.value if held == self.expected else None
        if held != self.seen:
            return None
        return self.value if self.seen == self.expected else held

    @property
    def observed(self) -> str | None:
        """The value that this operation, once completed, proves that the register held."""
        if self.returned == inf:
            return None
        return self.value if self.kind == "read" else self.seen

    def __str__(self) -> str:
        end = "open" if self.returned == inf else f"{self.returned:.4f}"
        result = {"read": f"read {self.value}", "write": f"write {self.value}",
                  "cas": f"cas {self.expected} -> {self.value} (held {self.seen})"}[self.kind]  # fmt: skip
        return f"[{self.called:.4f} {end}] {self.key}: {result}"


@dataclass(frozen=True)
class Violation:
    """The first operation, in order of return, that no order explains, with what was possible."""

    op: Op
    possible: tuple[str, ...]
    """Values that the register can have held just before."""
    before: tuple[Op, ...]
    """The operations on this register that ended last before it, for the report."""

    def __str__(self) -> str:
        return (f"{self.op} is impossible: the register can have held only "
                f"{', '.join(self.possible)}; before it: {'; '.join(map(str, self.before))}")  # fmt: skip


def check(history: Iterable[Op], initial: dict[str, str] | None = None) -> list[Violation]:
    """The first violation of each register that has one; an empty list: linearizable.

    `initial` gives values from before the history (EMPTY where there is none).
    """
    keys: dict[str, list[Op]] = defaultdict(list)
    for op in history:
        keys[op.key].append(op)
    start = initial or {}
    found = (check_register(ops, start.get(key, EMPTY)) for key, ops in sorted(keys.items()))
    return [violation for violation in found if violation is not None]


def check_register(history: Iterable[Op], initial: str = EMPTY) -> Violation | None:
    """The violation of one register's history, if there is one."""
    ops = _close(list(history))
    moments = [(op.called, 0, index) for index, op in enumerate(ops)]
    # A return at the very time of a call counts as concurrent with it.
    moments += [(op.returned, 1, index) for index, op in enumerate(ops)]
    configurations = {(initial, frozenset[int]())}
    pending: set[int] = set()
    for __, is_return, index in sorted(moments):
        if not is_return:
            pending.add(index)
            continue
        after = _until_done(index, configurations, pending, ops)
        if not after:
            ended = sorted((op for op in ops if op.returned < ops[index].returned),
                           key=lambda op: op.returned)  # fmt: skip
            values = sorted({value for value, __ in _reachable(configurations, pending, ops)})
            return Violation(ops[index], tuple(values[:8]), tuple(ended[-6:]))
        configurations = after
        pending.discard(index)
    return None


def _close(ops: list[Op]) -> list[Op]:
    """Open operations get the latest time at which they can have taken effect, or are left out."""
    written = [op.value for op in ops if op.kind != "read"]
    if len(set(written)) != len(written):
        raise ValueError("The values written to a register must be unique.")
    seen_at: dict[str, float] = {}
    closed = [op for op in ops if op.returned < inf]
    for op in closed:
        value = op.observed
        if value is not None:
            seen_at[value] = min(op.returned, seen_at.get(value, inf))
    opened = [op for op in ops if op.returned == inf and op.kind != "read"]
    # A chain of open swaps: the one that was seen proves the one whose value it expected.
    changed = True
    while changed:
        changed = False
        for op in opened:
            until = seen_at.get(op.value, inf)
            if op.kind == "cas" and until < seen_at.get(op.expected, inf):
                seen_at[op.expected] = until
                changed = True
    for op in opened:
        if op.value in seen_at:
            seen = op.expected if op.kind == "cas" else op.seen
            closed.append(replace(op, returned=seen_at[op.value], seen=seen))
    return closed


def _until_done(index: int, configurations: set[tuple[str, frozenset[int]]], pending: set[int],
                ops: list[Op]) -> set[tuple[str, frozenset[int]]]:  # fmt: skip
    """Configurations in which operation `index` has taken effect; it is forgotten in them."""
    result = set()
    reached = set(configurations)
    work = list(configurations)
    while work:
        value, done = work.pop()
        if index in done:
            result.add((value, done - {index}))
            continue
        for each in pending:
            if each in done:
                continue
            after = ops[each].apply(value)
            if after is None:
                continue
            step = (after, done | {each})
            if step not in reached:
                reached.add(step)
                work.append(step)
    return result


def _reachable(configurations: set[tuple[str, frozenset[int]]], pending: set[int],
               ops: list[Op]) -> set[tuple[str, frozenset[int]]]:  # fmt: skip
    reached = set(configurations)
    work = list(configurations)
    while work:
        value, done = work.pop()
        for each in pending - done:
            after = ops[each].apply(value)
            if after is not None and (after, done | {each}) not in reached:
                reached.add((after, done | {each}))
                work.append((after, done | {each}))
    return reached
