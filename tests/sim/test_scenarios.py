"""Scripted faults: each side does exactly what the golden log says, in that order."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmft.sim.scenario import ScriptError, play

FOLDER = Path(__file__).parent.parent / "scenarios"
SCRIPTS = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_a_scenario_is_as_its_golden_log(script: Path) -> None:
    log = play(script.read_text(encoding="utf-8"))
    assert [line for line in log if "VIOLATED" in line] == []
    expected = script.with_suffix(".log").read_text(encoding="utf-8")
    assert "\n".join(log) + "\n" == expected, "./dev sim --write-golden, if the change is wanted"


def test_there_is_a_scenario_for_every_row_of_the_failure_table() -> None:
    assert len(SCRIPTS) >= 14
    assert {path.stem for path in FOLDER.glob("*.log")} == {path.stem for path in SCRIPTS}


@pytest.mark.parametrize(
    "line", ["nonsense", "host c power_off", "host a no_such", "set a no_such 1", "claim a 1", "wait x"]
)
def test_a_line_that_cannot_be_carried_out_is_named(line: str) -> None:
    with pytest.raises(ScriptError):
        play(f"seed 1\n{line}\n")


def test_a_wrong_expectation_is_a_violation() -> None:
    assert "VIOLATED scenario: a is primary and not stale" in play("seed 1\nstate a stale\n")[-1]
