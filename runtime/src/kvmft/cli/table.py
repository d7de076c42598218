"""The table of `kvmft top`; pure."""

from __future__ import annotations

from typing import Any

HEAD = ("VM", "STATE", "ROLE", "GEN", "EPOCHS/S", "PAUSE P50/P99", "COMMIT P50/P99", "PAGES",
        "LOG MB/S", "HELD", "SYNC %")  # fmt: skip
LEFT = 3
"""Columns that are text; the others are figures and stand on the right."""


def table(before: list[dict[str, Any]], now: list[dict[str, Any]], seconds: float) -> str:
    """All VMs of `now`; rates come from the difference to `before`, `seconds` earlier."""
    earlier = {each["vm"]: each for each in before}
    rows = [HEAD, *(_row(each, earlier.get(each["vm"], {}), seconds) for each in now)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines if now else [*lines, "No VM is protected here."])


def _row(now: dict[str, Any], before: dict[str, Any], seconds: float) -> tuple[str, ...]:
    primary = now.get("role") == "primary"
    return (
        now["vm"], now["state"], now.get("role") or "-", _text(now.get("generation")),
        _rate(now.get("epochs"), before.get("epochs"), seconds),
        _pair(now.get("pause_ms")), _pair(now.get("commit_ms")),
        _text((now.get("pages_per_epoch") or {}).get("p50"), 0),
        _text(_scaled(now.get("log_bandwidth_bytes_s"), 1e6), 2),
        _text(now.get("held_bytes")) if primary else "-", _text(now.get("sync_percent"), 1),
    )  # fmt: skip


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value / by


def _text(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return "-"
    return str(value) if digits is None else f"{value:.{digits}f}"


def _pair(figures: dict[str, float | None] | None) -> str:
    figures = figures or {}
    return f"{_text(figures.get('p50'), 1)}/{_text(figures.get('p99'), 1)}"


def _rate(now: int | None, before: int | None, seconds: float) -> str:
    if now is None or before is None or now < before:
        return "-"  # no figure, or a worker that counts anew
    return f"{(now - before) / seconds:.1f}"
