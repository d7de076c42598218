"""Adaptive epochs of a real pair: long while nothing waits, and an objective that is not kept is told."""

from __future__ import annotations

from tests.pair.harness import Pair, wait_for

OPTIONS = {"interval_ms": 400, "detection_ms": 1000, "agent_grace_ms": 1500}


def test_a_vm_without_output_runs_long_epochs_and_a_missed_objective_is_told(pair: Pair) -> None:
    __, port = pair.start_secondary()
    primary = pair.start_primary(port, options={**OPTIONS, "max_added_latency_ms": 1})
    primary.wait(msg="state", state="protected")
    told = wait_for("the objective told of", lambda: (primary.find(msg="status") or {}).get("objective_missed"))
    assert "asked for are at most 1 ms (max_added_latency_ms)" in told

    primary.stop()
    pair.renew_standby()
    __, port = pair.start_secondary()
    primary = pair.start_primary(port, options=OPTIONS, arbitration="resume")
    primary.wait(msg="state", state="protected")

    def long_epochs() -> bool:
        status = primary.find(msg="status") or {}
        return (status.get("interval_ms") or 0) > 300 and status["epochs"] >= 4

    wait_for("epochs of 400 ms", long_epochs)
    status = primary.find(msg="status") or {}
    assert status["pause_ms"]["p50"] < 0.15 * status["interval_ms"] and status["objective_missed"] is None
