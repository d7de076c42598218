"""Every planted bug is found, and the list of them follows the source."""

from __future__ import annotations

import pytest

from kvmft.sim.mutants import MUTANTS, hunt_all
from kvmft.sim.planted import Drifted, Mutant, changed_source

BOUND = 10000


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_the_text_is_in_the_source_once(mutant: Mutant) -> None:
    assert mutant.new in changed_source(mutant)


def test_every_planted_bug_is_found() -> None:
    assert len(MUTANTS) >= 20
    missed = [name for name, found in hunt_all(BOUND) if found is None]
    assert missed == []


def test_a_text_that_is_not_there_turns_red() -> None:
    with pytest.raises(Drifted, match="0 times"):
        changed_source(Mutant("drifted", "primary", "no such line", ""))
    with pytest.raises(Drifted, match="times"):
        changed_source(Mutant("twice", "primary", "return", ""))
