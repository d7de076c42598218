"""Parts of the bench: each is kept once it is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab import bench


def test_a_part_that_fails_leaves_what_was_measured_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(release: str, seconds: float) -> dict[str, Any]:
        raise RuntimeError("the lab is down")

    kept = tmp_path / "build" / "bench.json"
    monkeypatch.setattr(bench, "JSON", kept)
    monkeypatch.setattr(bench, "measure_engine", lambda seconds: {"pages": [seconds]})
    monkeypatch.setattr(bench.lab, "measure", fail)
    with pytest.raises(RuntimeError, match="the lab is down"):
        bench.main("engine,lab", 3.0, 1, False, "12")
    found = json.loads(kept.read_text())
    assert list(found) == ["engine"] and found["engine"]["pages"] == [3.0]
