"""The lab's images: the keys of a Debian that is newer than this machine's keyring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lab import images


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
