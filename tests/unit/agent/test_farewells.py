"""A standby whose host could not be told that it is of no use any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvmft.agent.farewells import Farewell
from kvmft.agent.service import Agent
from kvmft.errors import KvmftError
from tests.unit.agent.test_agent_safety import FakeWorker, agent, managed

OLD, NEW = "1" * 32, "2" * 32


class Silent:
    """Peers that do not answer until `answers`."""

    def __init__(self) -> None:
        self.answers = False
        self.told: list[tuple[str, str, Any]] = []

    async def call(self, peer: str, op: str, **args: Any) -> Any:
        if not self.answers:
            raise KvmftError("peer_silent", f"{peer} does not answer.", "")
        self.told.append((peer, op, args.get("session")))
        return {}


def turned_off_alone(tmp_path: Path) -> Agent:
    """FT is turned off while the secondary's host does not answer."""
    a = agent(tmp_path)
    a.peers = Silent()
    m = managed(a, may_start=False, session=OLD)
    m._regain = False
    m.worker = FakeWorker(m, "detached")
    asyncio.run(m.orders.stop_protection("disabled"))
    return a


def test_it_is_told_once_it_answers_also_by_an_agent_that_was_restarted(tmp_path: Path) -> None:
    a = turned_off_alone(tmp_path)
    assert a.store.load("v") is None and a.peers.told == []
    restarted = agent(tmp_path)
    restarted.peers = Silent()
    asyncio.run(restarted.farewells.again())
    restarted.peers.answers = True
    asyncio.run(restarted.farewells.again())
    asyncio.run(restarted.farewells.again())
    assert restarted.peers.told == [("b", "standby_discard", OLD)]
    assert agent(tmp_path).farewells.waiting == []


def test_who_answers_is_told_at_once_and_nothing_waits(tmp_path: Path) -> None:
    a = agent(tmp_path)
    asyncio.run(a.farewells.say(Farewell("v", "b", OLD)))
    assert a.peers.calls == [("b", "standby_discard")] and a.farewells.waiting == []
    assert not (tmp_path / "farewells.json").exists()


@pytest.mark.parametrize(("session", "kept"), [(OLD, False), (None, False), (NEW, True)])
def test_a_standby_that_was_made_anew_is_not_meant(
    tmp_path: Path, session: str | None, kept: bool
) -> None:
    a = agent(tmp_path)
    a.host.is_defined = lambda vm: False
    m = managed(a, role="secondary", may_start=False, session=OLD)
    m._recover = False
    asyncio.run(a.peer_requests.answer("b", "standby_discard", {"vm": "v", "session": session}))
    assert (a.managed("v") is m) == kept and (a.host.destroyed == []) == kept


def test_a_damaged_file_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "farewells.json").write_text("[{]")
    a = agent(tmp_path)
    a.peers = Silent()
    asyncio.run(a.farewells.say(Farewell("v", "b", OLD)))
    assert agent(tmp_path).farewells.waiting == [Farewell("v", "b", OLD)]
    assert (tmp_path / "farewells.json.damaged").exists()
