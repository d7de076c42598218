"""The production core under random faults, and the same seed giving the same schedule."""

from __future__ import annotations

import pytest

from kvmft.sim import runner
from kvmft.sim.__main__ import main
from kvmft.sim.faults import BEACON_KINDS, KINDS
from kvmft.sim.schedule import run

SCHEDULES = 12000


def test_no_schedule_violates_an_invariant_and_all_come_to_life_again() -> None:
    tally = runner.campaign(0, SCHEDULES)
    assert tally.violated == [], "replay: ./dev sim --seed N --trace"
    assert tally.schedules == SCHEDULES
    unseen = [name for name in (*KINDS, *BEACON_KINDS) if not tally.seen[f"fault {name}"]]
    assert unseen == []
    assert tally.seen["failover"] > SCHEDULES // 10
    assert tally.seen["switchover"] > SCHEDULES // 50
    for what in (
        "verdict won", "verdict lost", "verdict halt", "verdict undecided or unknown", "cold boot",
        "fenced", "paused at the bound", "recovered waiting", "recovered loaded", "persist fails",
        "journal full", "lost answer", "lost request", "doubled request", "late request",
        "silence of both", "silence of the FT log alone", "lost beacon",
    ):  # fmt: skip
        assert tally.seen[what], f"no schedule came to {what!r}"


@pytest.mark.parametrize("seed", [0, 1, 17, 4711])
def test_a_seed_is_one_schedule(seed: int) -> None:
    first, second = run(seed, trace=True), run(seed, trace=True)
    assert first.log and first.log == second.log
    assert run(seed).counts == first.counts, "the trace changes what happens"


# Each of these once broke something: in the core, in the agent, or in how a claim is stored.
@pytest.mark.parametrize(
    ("seed", "what"),
    [
        (92, "a claims file that could not be written ended the claim for ever"),
        (433, "the same, when the right to run was to be gained again"),
        (5281, "the secondary's worker was killed while its claim was on the way, and won"),
        (5829, "power was lost while fault tolerance was being turned on"),
        (10839, "the standby's QEMU died after its claim was sent, and the claim won"),
        (14293, "a step of the standby failed after its claim was sent, and the claim won"),
    ],
)
def test_what_once_broke(seed: int, what: str) -> None:
    assert run(seed).violations == [], what


def test_the_command_prints_figures_and_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--schedules", "50", "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "seeds                 0 to 49" in printed
    assert "violations            0" in printed
    assert main(["--seed", "3", "--trace"]) == 0
    assert "PAIRED a gen 2" in capsys.readouterr().out


def test_a_violation_is_named_with_its_replay() -> None:
    tally = runner.Tally(schedules=1, violated=[(7, "I1: both run")])
    lines = runner.report(7, tally, 1.0)
    assert "violations            1" in lines
    assert "VIOLATED I1: both run" in lines
    assert "  replay: ./dev sim --seed 7 --trace" in lines
