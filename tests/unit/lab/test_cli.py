"""The command line of ./dev."""

from __future__ import annotations

import pytest

from tests.lab import cli, container


def test_a_release_after_the_action_reaches_the_lab() -> None:
    options = cli.arguments().parse_args(["lab", "up", "--release", "13"])
    assert (options.action, options.release) == ("up", "13")


def test_what_follows_a_server_is_its_command() -> None:
    options = cli.arguments().parse_args(["lab", "ssh", "node-a", "ls", "--release", "-l"])
    assert (options.host, options.command) == ("node-a", ["ls", "--release", "-l"])


@pytest.mark.parametrize("own", ["12", "13"])
def test_stages_of_one_machine_run_in_a_container_of_another_release_only(
    own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(container, "own_release", lambda: own)
    monkeypatch.setattr(container, "run", lambda release, *_: ran.append(release) or 0)
    monkeypatch.setattr(cli, "pytest", lambda *_: ran.append("here") or 0)
    assert [cli.run_stage("pair", release) for release in (None, "12", "13")] == [0, 0, 0]
    assert ran == ["here", *("here" if each == own else each for each in ("12", "13"))]


def test_a_failure_in_the_container_is_a_failure_of_the_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(container, "own_release", lambda: "12")
    monkeypatch.setattr(container, "run", lambda *_: 1)
    assert cli.run_stage("sim", "13") == 1


def test_the_release_is_tested_here_whatever_the_servers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(container, "own_release", lambda: "12")
    monkeypatch.setattr(container, "run", lambda *_: 1)
    monkeypatch.setattr(cli, "pytest", lambda *paths: ran.extend(paths) or 0)
    assert cli.run_stage("release", "13") == 0
    assert ran == [*cli.SIDE_BY_SIDE, "tests/release"]


def test_molecules_arguments_go_to_it_as_they_are() -> None:
    options = cli.arguments().parse_args(["molecule", "test", "-s", "pair", "--destroy", "never"])
    assert options.arguments == ["test", "-s", "pair", "--destroy", "never"]
