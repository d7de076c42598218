"""A few rows of the failure table, as a sample of `./dev faults`, with everything that it checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import guests
from tests.lab.faults import campaign
from tests.lab.faults.ground import Ground
from tests.lab.lab import Lab

SAMPLE = ("qemu-primary", "freeze-primary-1s", "ft-cut-in", "both-cut-arbiter-back", "host-secondary")


@pytest.fixture(scope="module")
def ground(lab: Lab, quick: guests.Guest) -> Iterator[Ground]:
    """The quick guest, protected; afterwards as it was before: unprotected on node-a."""
    made = Ground(lab, quick)
    made.protect()
    yield made
    made.forget()
    guests.start(lab, "node-a", quick)
    guests.wait_up(lab, quick)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_row_of_the_failure_table(ground: Ground, name: str, tmp_path: Path) -> None:
    (row,) = campaign.choose(name, long=False)
    result = campaign.run_row(ground, row, 1, tmp_path)
    assert result.problems == []
    assert result.operations > 100
    assert result.audit_different == 0
