"""`kvmft forecast`: what is asked of the agent, and what people read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvmft.cli import forecast
from kvmft.cli import main as cli
from kvmft.core.forecast import Interval, Measured
from kvmft.core.pacing import Pace
from kvmft.worker.forecast import report

INTERVALS = tuple(
    Interval(length, length, round(2000 * length) + 10, 0.0002, copied=10, copy=20e-6)
    for length in (0.004, 0.020, 0.100, 0.500) for __ in range(10)
)  # fmt: skip


def found(**more: Any) -> dict[str, Any]:
    """An answer of the agent, made by what makes it in earnest."""
    measured = Measured(512 << 20, INTERVALS, (0.0002,) * 10, **more)
    return {"vm": "db1", "accelerator": "kvm", "seconds": 10.0, **report(measured, Pace(max_added_latency=0.001))}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def ask(_socket: str, op: str, **args: Any) -> dict[str, Any]:
        calls.append({"op": op, **args})
        return found()

    monkeypatch.setattr(forecast, "ask", ask)
    return calls


def test_the_agent_is_asked_for_what_was_asked_for(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["forecast", "db1", "--seconds", "4", "--max-added-latency-ms", "20", "--log-mb-s", "110", "--json"]) == 0
    assert asked == [{"op": "vm_forecast", "vm": "db1", "seconds": 4.0, "stops": False, "log_mb_s": 110.0,
                      "options": {"max_added_latency_ms": 20.0}}]  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert told["pause_ms"]["p99"] >= told["pause_ms"]["p50"] > 0 and told["objective_missed"]
    assert cli.main(["forecast", "db1", "--stop"]) == 0
    assert asked[1]["stops"] is True and asked[1]["seconds"] == 10 and asked[1]["options"] == {}


def test_people_read_figures_the_missed_objective_and_what_was_assumed() -> None:
    text = forecast.render(found())
    for each in ("db1: what protection would cost, from 10 s", "pause          ms   p50 ", "added latency  ms", "512 MiB",
                 "1,010 in 500 ms", "output: none seen", "(max_added_latency_ms)", "--stop measures it",
                 "was not measured and counts as 100 MB/s"):  # fmt: skip
        assert each in text, each
    measured = forecast.render(found(stops=(0.003,) * 5, log_rate=110e6))
    assert "--stop" not in measured and "not measured" not in measured and "carries 110 MB/s" in measured


def test_packets_that_cannot_be_counted_are_told() -> None:
    assert any("cannot all be counted" in each for each in found(sees_output=False)["assumed"])
