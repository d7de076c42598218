"""Epochs put together from a worker's answers: none twice, none of before, and what is missing is said."""

from __future__ import annotations

from typing import Any

from kvmft.report.epochs import KINDS, Epochs
from kvmft.worker.stats import EpochStats


def run(stats: EpochStats, begin: float, epochs: int, pause: float = 0.002) -> None:
    for number in range(epochs):
        stats.captured(begin + number * 0.1, pause, 100 + number)
        stats.committed(begin + number * 0.1 + 0.01)


def answer(found: Epochs, stats: EpochStats, at: float, held: int | None = 0) -> None:
    found.take({**stats.newer(at, found.since), "held_bytes": held})


def test_only_what_came_meanwhile_counts() -> None:
    found, stats = Epochs(), EpochStats(started=1.0)
    run(stats, 2.0, 30)
    stats.sample(9.5, 1000)
    answer(found, stats, 10.0, 100)
    run(stats, 10.0, 5)
    answer(found, stats, 11.0, 300)
    run(stats, 11.0, 5, pause=0.004)
    stats.sample(11.5, 5000)
    answer(found, stats, 12.0, None)
    result = found.to_dict()
    assert result["epochs"] == 10 and result["pause_ms"] == [2.0] * 5 + [4.0] * 5
    assert all(len(result[kind]) == 10 for kind in KINDS)
    assert result["seconds"] == 2.0 and result["stood_still_share"] == 0.015
    assert result["log_bytes_s"] == 2000 and result["held_bytes"] == [100, 300]
    assert result["missed"] == 0 and result["interruptions"] == []


def test_what_came_too_fast_is_said_to_be_missed() -> None:
    found, stats = Epochs(), EpochStats(started=1.0)
    answer(found, stats, 0.0)
    run(stats, 2.0, 2100)
    answer(found, stats, 300.0)
    assert found.to_dict()["epochs"] == 2000 and found.missed == 4 * 100 - 1  # of intervals one less came


def test_a_new_worker_is_counted_from_its_beginning() -> None:
    found, old, new = Epochs(), EpochStats(started=1.0), EpochStats(started=50.0)
    run(old, 2.0, 10)
    answer(found, old, 10.0)
    found.interrupted("The VM's worker ended.")
    found.interrupted("The VM's worker ended.")
    run(new, 51.0, 3)
    answer(found, new, 52.0)
    run(new, 52.0, 3)
    answer(found, new, 53.0)
    result = found.to_dict()
    assert result["epochs"] == 6 and result["interruptions"] == ["The VM's worker ended."]
    assert result["seconds"] == 1.0 and result["missed"] == 0


def test_nothing_measured_is_no_figure() -> None:
    result: dict[str, Any] = Epochs().to_dict()
    assert result["epochs"] == 0 and result["stood_still_share"] is None and result["log_bytes_s"] is None
