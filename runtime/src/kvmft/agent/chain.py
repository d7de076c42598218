"""The receipt chain of an events log: each line names the SHA-256 of the line before it.

Whoever alters, removes or inserts a line breaks the chain at that place. The chain has no key, so
it is evidence only together with a head (number and hash of a line) that was kept elsewhere: cutting
lines off the end, or writing all of the log anew, shows only against such a head.

Functions here take raw lines (bytes without the newline) and do no I/O.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

RECEIPTS = ("claim", "verdict")
"""Events that say who asked the arbiter for what, and what it answered."""
FIRST = "0" * 64
"""What the first line of a log names as the hash of the line before it."""


def digest(line: bytes) -> str:
    """The hash by which the next line names `line` (64 hex digits)."""
    return hashlib.sha256(line).hexdigest()


def parse(line: bytes) -> dict[str, Any] | None:
    """The event in `line`; None for one that a power cut tore."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("seq"), int):
        return None
    return event


@dataclass
class Finding:
    """What `verify` saw. `problems` break the chain; `remarks` are no alterations.

    `first` and `last` are the numbers of the oldest and the newest event, `head` the hash of the
    newest event's line and `tail` that of the newest line of any kind, `events` their count, and
    `receipts` how many of them are claims and verdicts.
    """

    events: int = 0
    receipts: int = 0
    first: int = 0
    last: int = 0
    head: str = FIRST
    tail: str = FIRST
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """True when no line was altered, removed or inserted."""
        return not self.problems


def verify(lines: Iterable[bytes], anchor: tuple[int, str] | None = None) -> Finding:
    """Check a log from its oldest line on.

    `anchor` is a head that was kept elsewhere, (number, hash): that very line must be there still.
    A line that cannot be read is no problem by itself: a power cut or a full disk may tear one, and
    the line after it names the hash of what was left.
    """
    found = Finding()
    before: str | None = None
    chained = False
    anchored = anchor is None
    for number, line in enumerate(lines, 1):
        event = parse(line)
        this = found.tail = digest(line)
        if event is None:
            found.remarks.append(f"line {number} is torn, as a power cut or a full disk leaves it")
            before = this
            continue
        chained = _link(found, event, before, chained, number)
        if anchor is not None and event["seq"] == anchor[0]:
            anchored = this == anchor[1]
        found.events += 1
        found.receipts += event.get("event") in RECEIPTS
        found.first = found.first or event["seq"]
        found.last = event["seq"]
        before = found.head = this
    if anchor is not None and not anchored:
        found.problems.append(
            f"event {anchor[0]} is not the one with hash {anchor[1][:16]}, or it is gone"
        )
    return found


def _link(
    found: Finding, event: dict[str, Any], before: str | None, chained: bool, number: int
) -> bool:
    """Compare one event with what came before it; whether the chain has begun."""
    seq, named = event["seq"], event.get("prev")
    if found.events and seq != found.last + 1:
        found.problems.append(f"line {number}: event {seq} comes after event {found.last}")
    if named is None:
        if chained:
            found.problems.append(f"line {number}: event {seq} names no line before it")
        elif not found.events:
            found.remarks.append("the log begins with lines of a version that kept no chain")
        return chained
    if before is None:
        if named != FIRST:
            found.remarks.append(f"older lines than event {seq} were rotated away")
    elif named != before:
        found.problems.append(
            f"line {number}: event {seq} does not follow the line before it; that line was altered, "
            "or lines were removed or inserted there"
        )
    return True
