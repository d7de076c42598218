"""The lab's images: the keys of a Debian that is newer than this machine's keyring."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab import cli, images


class Apt:
    """Stands for apt-get; installing brings the key file `brings`."""

    def __init__(self, brings: Path | None) -> None:
        self.brings, self.commands = brings, []

    def run(self, command: list[str], **_: Any) -> None:
        self.commands.append(command)
        if "install" in command and self.brings is not None:
            self.brings.write_bytes(b"key")


@pytest.fixture
def keyrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(images, "KEYRINGS", tmp_path)
    (tmp_path / "debian-archive-bookworm-stable.gpg").write_bytes(b"key")
    return tmp_path


def use(monkeypatch: pytest.MonkeyPatch, apt: Apt) -> Apt:
    monkeypatch.setattr(images.subprocess, "run", apt.run)
    return apt


def test_keys_that_are_there_need_no_apt(keyrings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = use(monkeypatch, Apt(None))
    images.know_keys("bookworm")
    assert apt.commands == []


def test_an_older_keyring_is_renewed(keyrings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = use(monkeypatch, Apt(keyrings / "debian-archive-trixie-stable.gpg"))
    images.know_keys("trixie")
    assert apt.commands[-1][-1] == "debian-archive-keyring"


def test_keys_that_cannot_be_had_are_named(keyrings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Apt(None))
    with pytest.raises(RuntimeError, match="keys that sign Debian trixie .* newer debian-archive"):
        images.know_keys("trixie")


DEBIAN = {"yaml": "python3-yaml"}
"""Modules whose Debian package is not named after them."""


def imported(path: Path) -> set[str]:
    """The top-level modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def test_whatever_a_stage_imports_is_in_its_container() -> None:
    tests = Path(__file__).parents[2]
    files = [path for stage in ("unit", "sim", "pair", "lab") for path in (tests / stage).rglob("*.py")
             if path != tests.parent / cli.BROWSER_TESTS]  # fmt: skip
    wanted = set().union(*map(imported, files)) - set(sys.stdlib_module_names)
    wanted -= {"kvmft", "tests", "base", "ansible"}
    packages = {DEBIAN.get(name, f"python3-{name.replace('_', '-')}") for name in wanted}
    assert packages - set(images.TEST_PACKAGES) == set()
