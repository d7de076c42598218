"""This machine's boot mark is not touched; a test says which boot it is."""

from __future__ import annotations

import pytest


class Boot:
    """The current boot's name, as the agent is told it."""

    name = "boot-1"


@pytest.fixture(autouse=True)
def boot(monkeypatch: pytest.MonkeyPatch) -> Boot:
    """Set `boot.name` to restart the host."""
    made = Boot()
    monkeypatch.setattr("kvmft.agent.vm.boot_id", lambda: made.name)
    monkeypatch.setattr("kvmft.agent.exposure.boot_id", lambda: made.name)
    return made
