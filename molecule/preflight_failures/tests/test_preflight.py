"""What site.yml says of a host with three planted faults, and that it changed nothing anywhere."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab import molecule

testinfra_hosts = molecule.hosts("node-b")
EXPECTED = {
    r"the FT address 10\.91\.0\.12 is on none": r"[Cc]onfigure|networks role",
    r"the interface mig0 does not exist": r"kvmft_migration_interface",
    r"memory is 512 MiB": r"[Mm]emory",
}
"""What is found, and what its remedy names."""


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return dict(json.loads((molecule.place().folder / "preflight.json").read_text()))


def test_exactly_the_three_faults_are_listed_each_with_its_remedy(seen: dict[str, Any]) -> None:
    rows = re.findall(r'"((?:inventory|node-a|node-b|witness): [^"]+)"', seen["output"])
    assert len(rows) == len(set(rows)) == len(EXPECTED), rows
    for fault, remedy in EXPECTED.items():
        found = [row for row in rows if re.search(rf"^node-b: .*{fault}", row)]
        assert len(found) == 1, (fault, rows)
        assert re.search(remedy, re.sub(fault, "", found[0])), found[0]


def test_nothing_was_changed_on_any_server(seen: dict[str, Any]) -> None:
    for before, after in zip(seen["before"], seen["after"], strict=True):
        assert len(before) > 100
        assert sorted(set(before) ^ set(after)) == []


def test_no_task_of_the_run_says_that_it_changed_something(seen: dict[str, Any]) -> None:
    assert set(re.findall(r"changed=(\d+)", seen["output"])) == {"0"}


def test_the_server_is_mended_for_the_next_scenario(host: Host) -> None:
    assert "10.91.0.12" in host.interface("ft0").addresses
    assert host.interface("mig0").exists
