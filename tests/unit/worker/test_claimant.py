"""What the worker that only asks, asks."""

from __future__ import annotations

from typing import Any

import pytest

from kvmft.worker import claimant, claims


class Arbiter:
    """Remembers which kind of claim was asked for."""

    generation = None

    def __init__(self, *_arguments: Any, **_named: Any) -> None:
        self.asked: list[str] = []

    def create(self) -> None:
        self.asked.append("create")

    def solo(self) -> None:
        self.asked.append("solo")


class Anything:
    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


def test_a_side_without_records_asks_for_a_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power lost while protection was being turned on: no record was written, so there must be none;
    `create` claims from what is held where something is."""
    monkeypatch.setattr(claims, "ArbiterClient", Arbiter)
    worker = claimant.ClaimWorker(Anything(), Anything(), Anything())  # type: ignore[arg-type]
    worker.start()
    assert worker._claims.arbiter.asked == ["create"]  # type: ignore[attr-defined]
