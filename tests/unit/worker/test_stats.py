"""The epochs that one is given who asks a worker again and again: each of them once."""

from __future__ import annotations

import pytest

from kvmft.worker import stats


def test_each_epoch_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "WINDOW", 10)
    kept = stats.EpochStats(started=1.0)
    for number in range(5):
        kept.captured(10.0 + number, 0.002, number)
        kept.committed(10.5 + number)
    first = kept.newer(20.0, None)
    assert first["values"] == {} and first["started"] == 1.0
    assert first["counts"] == {"pause_ms": 5, "commit_ms": 5, "interval_ms": 4, "pages": 5}
    kept.captured(15.0, 0.0034, 77)
    kept.sample(15.5, 4096)
    after = kept.newer(21.0, first["counts"])
    assert after["values"] == {"pause_ms": [3.4], "commit_ms": [], "interval_ms": [1000.0], "pages": [77.0]}
    assert (after["at"], after["log"]) == (21.0, [15.5, 4096])
    assert after["paused_seconds"] == pytest.approx(5 * 0.002 + 0.0034)
    assert kept.newer(22.0, after["counts"])["values"] == dict.fromkeys(after["values"], [])


def test_of_more_than_are_kept_the_newest_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "WINDOW", 10)
    kept = stats.EpochStats(started=1.0)
    before = kept.newer(0.0, None)["counts"]
    for number in range(25):
        kept.captured(float(number), 0.001, number)
    found = kept.newer(30.0, before)
    assert found["values"]["pages"] == [float(each) for each in range(15, 25)] and found["counts"]["pages"] == 25
