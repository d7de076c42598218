"""Options of a VM on the command line reach the agent as the values that they are."""

from __future__ import annotations

from typing import Any

import pytest

from kvmft.cli import main as cli

STATUS = {"vm": "db1", "state": "protected", "reason": "", "arbiter": {"type": "none", "ok": False},
          "objective_missed": "Output waits about 44 ms for its checkpoint.", "beacons_missed": "No beacons come."}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def ask(_socket: str, op: str, **args: Any) -> dict[str, Any]:
        found.append({"op": op, **args})
        return {"changed": True, "status": STATUS}

    monkeypatch.setattr(cli, "ask", ask)
    return found


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["kvmft", *words])
    return cli.main()


def test_every_kind_of_option(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "enable", "db1", "--max-added-latency-ms", "20", "--set", "replay_input=false", "--set",
               "detection_ms=500") == 0  # fmt: skip
    assert asked[0]["options"] == {"max_added_latency_ms": 20.0, "replay_input": False, "detection_ms": 500}
    said = capsys.readouterr().out
    assert "Output waits about 44 ms" in said and "  No beacons come." in said


@pytest.mark.parametrize(("text", "why"), [("replay_input", "has no ="), ("interval_ms=soon", "has no value that is a number")])
def test_what_is_no_option_is_one_clear_error(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, why: str
) -> None:
    assert run(monkeypatch, "enable", "db1", "--set", text) != 0
    said = capsys.readouterr()
    assert why in said.err + said.out and asked == []
