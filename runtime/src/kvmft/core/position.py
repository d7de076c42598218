"""Where an arbiter was in its history when it answered: shows that one was wiped or rolled back.

A compare-and-swap is safe only while the arbiter's history goes forward. An arbiter that was wiped,
or restored from a backup, has values of the past, and a side that fell behind could win from them
what the other side has won already. Each answer therefore carries the arbiter's own identity and a
number that only rises with its changes. A request that goes out after revision 9 was seen must be
answered from revision 9 or later; anything else proves that the history went back.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Position:
    """`arbiter` names the one that answered; `revision` rises with each change, never falls."""

    arbiter: str
    revision: int


def newest(one: Position | None, other: Position | None) -> Position | None:
    """The later of two positions of one arbiter; of two arbiters, the first one named."""
    if one is None or other is None:
        return one or other
    if one.arbiter != other.arbiter:
        return one
    return max(one, other)


def broken_history(
    before: Position | None, now: Position | None, changed: bool = False
) -> str | None:
    """Why an answer from `now` cannot be trusted by one who had seen `before` when it asked.

    With `changed` the answer says that it made a change: that has a revision of its own, after all
    that was seen before.
    """
    if before is None or now is None:
        return None
    if now.arbiter != before.arbiter:
        return (
            f"this is another arbiter than before ({now.arbiter}, and not {before.arbiter}): "
            "it was replaced or set up anew"
        )
    if now.revision < before.revision + changed:
        return (
            f"the arbiter's history went back, from revision {before.revision} to "
            f"{now.revision - changed}: "
            "it was wiped or restored from a backup"
        )
    return None
