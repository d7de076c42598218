"""The campaign's lines and its file build/faults.json. Pure but for `write`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.lab.faults.rows import Row
from tests.lab.measure import percentile

HEAD = (f"{'row':30s} {'n':>2s} {'lost':>4s} {'dup':>3s} {'2nd':>3s} {'lin':>3s} {'rst':>3s} "
        f"{'gap p50/max ms':>15s} {'bound':>6s} {'re-prot. s p50/max':>18s} {'moved':>5s}  verdict")  # fmt: skip


def summarise(runs: Sequence[dict[str, Any]], row: Row) -> dict[str, Any]:
    """All runs of one row as one: sums of what must be zero, p50 and max of what is measured."""
    gaps = [each["gap_ms"] for each in runs if each["gap_ms"] is not None]
    backs = [each["reprotected_s"] for each in runs if each["reprotected_s"] is not None]
    problems = [f"run {each['run']}: {text}" for each in runs for text in each["problems"]]
    bound = None if row.bound is None else row.bound * 1000
    slow = sum(bound is not None and gap > bound for gap in gaps)
    return {
        "row": row.name, "fault": row.fault, "n": len(runs),
        **{name: sum(each[name] for each in runs)
           for name in ("lost", "duplicates", "second_active", "resets", "operations")},
        "linearizable": all(each["linearizable"] for each in runs),
        "gap_ms": {"p50": percentile(gaps, 0.5), "max": max(gaps, default=None), "bound": bound},
        "reprotected_s": {"p50": percentile(backs, 0.5), "max": max(backs, default=None),
                          "never": len(runs) - len(backs)},
        "moved": sum(bool(each["moved"]) for each in runs),
        "resets_allowed": row.resets, "slow": slow, "problems": problems,
        "verdict": "FAILED" if problems else f"slow in {slow}" if slow else "ok",
    }  # fmt: skip


def row_line(summary: dict[str, Any]) -> str:
    """One line of the table."""
    gap, back = summary["gap_ms"], summary["reprotected_s"]

    def pair(value: dict[str, Any], form: str) -> str:
        return " / ".join("-" if value[name] is None else f"{value[name]:{form}}" for name in ("p50", "max"))

    bound = "-" if gap["bound"] is None else f"{gap['bound']:.0f}"
    return (
        f"{summary['row']:30s} {summary['n']:2d} {summary['lost']:4d} {summary['duplicates']:3d} "
        f"{summary['second_active']:3d} {'yes' if summary['linearizable'] else 'NO':>3s} "
        f"{summary['resets']:3d} {pair(gap, '.0f'):>15s} {bound:>6s} "
        f"{pair(back, '.1f'):>18s} {summary['moved']:5d}  {summary['verdict']}"
    )


def run_line(result: dict[str, Any], slow: bool) -> str:
    """One line as a run ends."""
    gap = "-" if result["gap_ms"] is None else f"{result['gap_ms']:.0f} ms"
    back = "-" if result["reprotected_s"] is None else f"{result['reprotected_s']} s"
    line = (f"{result['row']} #{result['run']}: lost {result['lost']}, duplicates {result['duplicates']}, "
            f"second-active {result['second_active']}, linearizable "
            f"{'yes' if result['linearizable'] else 'NO'} ({result['operations']} operations), resets "
            f"{result['resets']}, gap {gap}{' (slow)' if slow else ''}, protected again after {back}, "
            f"{result['seconds']:.0f} s in all")  # fmt: skip
    return "\n    ".join([line, *(f"FAILED: {text}" for text in result["problems"]),
                          *(f"note: {text}" for text in result["notes"])])  # fmt: skip


def summaries(results: Sequence[dict[str, Any]], rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One summary per row that ran, in the table's order."""
    found = []
    for row in rows:
        runs = [each for each in results if each["row"] == row.name]
        if runs:
            found.append(summarise(runs, row))
    return found


def table(results: Sequence[dict[str, Any]], rows: Iterable[Row]) -> str:
    """The whole table, with every problem under its row."""
    lines = [HEAD]
    for summary in summaries(results, rows):
        lines.append(row_line(summary))
        lines += [f"    {text}" for text in summary["problems"]]
    return "\n".join(lines)


def write(path: Path, results: Sequence[dict[str, Any]], rows: Iterable[Row]) -> None:
    """Write build/faults.json anew: after each run, so that an interrupted campaign is not lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {"rows": summaries(results, rows), "runs": list(results)}
    path.write_text(json.dumps(value, indent=1) + "\n")
