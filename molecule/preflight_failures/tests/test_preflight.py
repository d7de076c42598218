"""What site.yml says of a host with three planted faults, and that it changed nothing anywhere."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab import molecule

testinfra_hosts = molecule.hosts("node-b")
EXPECTED = (r"10\.91\.0\.12 is", r"interface mig0 .*does not exist", r"memory is 512 MiB")
"""What is found on node-b."""


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return dict(json.loads((molecule.place().folder / "preflight.json").read_text()))


@pytest.fixture(scope="module")
def errors() -> list[dict[str, Any]]:
    report = json.loads((molecule.place().folder / "preflight-report.json").read_text())
    return [each for each in report["findings"] if each["severity"] == "error"]


def test_exactly_the_three_faults_are_found_on_the_host_that_has_them(errors: list[dict[str, Any]]) -> None:
    assert len(errors) == len({each["id"] for each in errors}) == len(EXPECTED), errors
    assert {each["host"] for each in errors} == {"node-b"}
    for fault in EXPECTED:
        assert [each for each in errors if re.search(fault, each["what"])], (fault, errors)


def test_the_run_prints_each_with_what_there_is_what_is_needed_and_the_remedy(
    seen: dict[str, Any], errors: list[dict[str, Any]]
) -> None:
    output = seen["output"].replace('\\"', '"')
    for each in errors:
        for part in ("what", "have", "need", "remedy"):
            assert str(each[part]) in output, each
        assert each["remedy"]


def test_nothing_was_changed_on_any_server(seen: dict[str, Any]) -> None:
    for before, after in zip(seen["before"], seen["after"], strict=True):
        assert len(before) > 100
        assert sorted(set(before) ^ set(after)) == []


def test_no_task_of_the_run_says_that_it_changed_something(seen: dict[str, Any]) -> None:
    assert set(re.findall(r"changed=(\d+)", seen["output"])) == {"0"}


def test_the_server_is_mended_for_the_next_scenario(host: Host) -> None:
    assert "10.91.0.12" in host.interface("ft0").addresses
    assert host.interface("mig0").exists
