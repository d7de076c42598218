"""A host in maintenance takes no new secondary, also after a restart; nothing else changes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvmft.agent.maintenance import Maintenance
from kvmft.agent.placement import ask_all, choose
from kvmft.errors import KvmftError
from tests.unit.agent.test_agent_safety import agent


def test_the_mark_is_kept_across_restarts_with_its_reason_and_its_beginning(tmp_path: Path) -> None:
    path = str(tmp_path / "maintenance.json")
    first = Maintenance(path, "b")
    assert not first.on and first.lacking() == []
    assert first.change(True, "new disks") and not first.change(True, None)
    again = Maintenance(path, "b")
    assert again.to_dict() == first.to_dict() and again.since is not None
    assert again.change(True, "new memory") and again.since == first.since
    assert again.change(False, None) and not again.change(False, "x")
    assert Maintenance(path, "b").to_dict() == {"on": False, "reason": "", "since": None}


def test_a_check_and_a_refused_reason_change_nothing(tmp_path: Path) -> None:
    mark = Maintenance(str(tmp_path / "maintenance.json"), "b")
    assert mark.change(True, "x", check=True)
    with pytest.raises(KvmftError, match="201 characters; 200 are kept"):
        mark.change(True, "x" * 201)
    assert not mark.on and list(tmp_path.iterdir()) == []


def test_a_mark_that_cannot_be_read_counts(tmp_path: Path) -> None:
    path = tmp_path / "maintenance.json"
    path.write_text("{")
    assert Maintenance(str(path), "b").on


def test_placement_passes_a_host_in_maintenance_by_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmft.agent.peer_requests.describe", lambda xml: None)
    b = agent(tmp_path)
    b.host.admit = lambda *_args: []
    b.host.versions = lambda: {"qemu": "7.2.22"}

    class Peers:
        async def call(self, peer: str, op: str, **args: Any) -> Any:
            return await b.peer_requests.answer("a", op, args) if peer == "b" else {"memory": 1, "lacking": []}

    def offers(*hosts: str) -> list[Any]:
        return asyncio.run(ask_all(Peers(), hosts, vm="v", xml="", disks=[], qemu_version="7.2.22"))

    assert choose(offers("b", "c"), "b", "v") == "b"
    asked = asyncio.run(b.requests.answer("host_maintenance", {"on": True, "reason": "new disks"}))
    assert asked["changed"] and asyncio.run(b.peer_requests.answer("a", "peer_ping", {}))["maintenance"]
    assert choose(offers("b", "c"), "b", "v") == "c"
    with pytest.raises(KvmftError, match="is in maintenance \\(new disks\\)"):
        choose(offers("b"), "b", "v")
    asyncio.run(b.requests.answer("host_maintenance", {"on": False}))
    assert choose(offers("b", "c"), "b", "v") == "b"


@pytest.mark.parametrize("args", [{}, {"on": "yes"}, {"on": True, "reason": 5}])
def test_a_wrong_request_changes_nothing(tmp_path: Path, args: dict[str, Any]) -> None:
    b = agent(tmp_path)
    with pytest.raises(KvmftError):
        asyncio.run(b.requests.answer("host_maintenance", args))
    assert not b.maintenance.on
