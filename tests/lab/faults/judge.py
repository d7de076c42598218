"""What a run's history says: losses, duplicates, linearizability, resets, gap. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from tests.lab.measure import ClientLog, longest_gap
from tests.linear import appends, registers


@dataclass
class Verdict:
    """What the clients' history proves. `gap` in seconds, None when the echo was never answered."""

    operations: int = 0
    open: int = 0
    lost: int = 0
    duplicates: int = 0
    linearizable: bool = True
    sentences: list[str] = field(default_factory=list)
    resets: int = 0
    gap: float | None = None
    finished: bool = True
    """False when the guest could not be read at the end, so that nothing is proven."""


def judge_quick(lines: Iterable[str], injected: float) -> Verdict:
    """The verdict on a log of tests/lab/faults/client.py; `injected`: CLOCK_MONOTONIC seconds."""
    base: dict[str, Any] = {"registers": {}, "length": 0}
    content: list[str] | None = None
    ops, log, lengths, echoes = list[registers.Op](), list[appends.Append](), list[appends.Length](), []
    verdict = Verdict()
    for line in lines:
        if not line.endswith("\n"):
            continue
        entry = json.loads(line)
        match entry["kind"]:
            case "base":
                base = entry
            case "echo":
                echoes.append(entry["at"])
            case "reset":
                verdict.resets += 1
                verdict.sentences.append(f"reset of {entry['of']}: {entry['reason']}")
            case "log":
                content = entry["records"]
            case "op":
                verdict.operations += 1
                verdict.open += entry["returned"] is None
                _sort_in(entry, ops, log, lengths)
    verdict.gap = longest_gap(echoes, injected, inf)
    wrong = registers.check(ops, base["registers"])
    verdict.linearizable = not wrong
    verdict.sentences += [str(violation) for violation in wrong]
    if content is None:
        verdict.finished = False
        return verdict
    found = appends.check(log, content, base["length"], lengths)
    verdict.lost, verdict.duplicates = len(found.lost), len(found.duplicates)
    verdict.linearizable = verdict.linearizable and found.linearizable
    for name in ("lost", "duplicates", "phantoms", "misplaced", "disorder"):
        values = getattr(found, name)
        if values:
            verdict.sentences.append(f"{name} ({len(values)}): {'; '.join(values[:3])}")
    return verdict


def _sort_in(entry: dict[str, Any], ops: list[registers.Op], log: list[appends.Append],
             lengths: list[appends.Length]) -> None:  # fmt: skip
    called = entry["called"]
    returned = inf if entry["returned"] is None else entry["returned"]
    if entry["op"] == "append":
        log.append(appends.Append(entry["value"], called, returned, entry.get("index")))
    elif entry["op"] == "length":
        if returned < inf:
            lengths.append(appends.Length(entry["index"], called, returned))
    elif entry["op"] != "read" or returned < inf:
        ops.append(registers.Op(entry["key"], entry["op"], entry["value"], called, returned,
                                entry.get("expected", ""), entry.get("seen")))  # fmt: skip


def judge_postgres(lines: Iterable[str], injected: float, stored: list[int] | None) -> Verdict:
    """The verdict on a log of tests/lab/client.py and the rows found in the database at the end.

    One client inserts rising numbers, so the table is an append-only log in the order of its numbers.
    """
    client = ClientLog.parse(lines)
    verdict = Verdict(operations=len(client.commits), resets=len(client.resets))
    verdict.gap = longest_gap(client.echoes, injected, inf)
    verdict.sentences = [f"reset: {text}" for text in client.resets]
    if stored is None:
        verdict.finished = False
        return verdict
    missing = set(client.commits) - set(stored)
    verdict.lost, verdict.duplicates = len(missing), len(stored) - len(set(stored))
    verdict.linearizable = not missing and verdict.duplicates == 0
    return verdict


def problems_of(verdict: Verdict, resets_allowed: bool) -> list[str]:
    """Sentences for what must be zero and is not."""
    found = []
    if not verdict.finished:
        found.append("the guest could not be read at the end")
    if verdict.lost:
        found.append(f"{verdict.lost} acknowledged records are missing")
    if verdict.duplicates:
        found.append(f"{verdict.duplicates} records are there more than once")
    if not verdict.linearizable:
        found.append("the history is not linearizable")
    if verdict.resets and not resets_allowed:
        found.append(f"{verdict.resets} connections broke")
    return found
