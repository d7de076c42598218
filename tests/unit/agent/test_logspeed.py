"""The FT log's speed between two agents, over real TLS, by real processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvmft.adapters.ftlog import TlsFiles
from kvmft.agent.config import parse
from kvmft.agent.logspeed import LogSpeed
from kvmft.errors import KvmftError
from tests.pair.harness import RUNTIME, make_pki
from tests.unit.agent.test_agent_safety import BASE


class Other:
    """Calls of agent a land at agent b."""

    def __init__(self) -> None:
        self.speed: LogSpeed
        self.caller = "a"

    async def call(self, peer: str, op: str, **args: Any) -> Any:
        assert (peer, op) == ("b", "peer_log_speed")
        return {"port": await self.speed.receive(self.caller, args)}


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LogSpeed, Other]:
    """Agent a's LogSpeed, and the way to b's; both hosts are this one."""
    monkeypatch.setenv("PYTHONPATH", str(RUNTIME) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    make_pki(tmp_path, ("a", "b"))
    base = parse(BASE)
    here, way = {"ft": "127.0.0.1", "management": "127.0.0.1", "migration": "127.0.0.1"}, Other()

    def speed(host: str, other: str) -> LogSpeed:
        tls = TlsFiles(str(tmp_path / "ca.pem"), str(tmp_path / f"{host}.pem"), str(tmp_path / f"{host}.key"))
        config = replace(base, host=host, addresses=here, peers={other: here}, tls=tls, ft_log_ports=(27400, 27999))
        return LogSpeed(config, way)  # type: ignore[arg-type]

    way.speed = speed("b", "a")
    return speed("a", "b"), way


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Its result, once asyncio has closed what belonged to the processes that ended."""

    async def whole() -> Any:
        try:
            return await coroutine
        finally:
            await asyncio.sleep(0.1)

    return asyncio.run(whole())


def test_a_figure_is_what_arrived_and_both_sides_are_free_again(pair: tuple[LogSpeed, Other]) -> None:
    async def twice() -> list[dict[str, Any]]:
        found = []
        for __ in range(2):
            found.append(await pair[0].measure({"peer": "b", "seconds": 0.3}))
            await pair[1].speed._ending
        return found

    for found in run(twice()):
        assert found["bytes_s"] > 100_000 and found["peer"] == "b" and found["seconds"] == 0.3


def test_one_measurement_at_a_time(pair: tuple[LogSpeed, Other]) -> None:
    async def both() -> list[Any]:
        return await asyncio.gather(*(pair[0].measure({"peer": "b", "seconds": 0.2}) for __ in range(2)),
                                    return_exceptions=True)  # fmt: skip

    found = run(both())
    assert isinstance(found[0], dict) and isinstance(found[1], KvmftError) and found[1].code == "busy"


def test_a_host_that_is_another_gets_nothing(pair: tuple[LogSpeed, Other]) -> None:
    pair[1].caller = "c"  # b awaits c; what connects proves itself as a

    async def refused() -> None:
        try:
            await pair[0].measure({"peer": "b", "seconds": 0.2})
        finally:
            await pair[1].speed._ending

    with pytest.raises(KvmftError, match="broke off|failed"):
        run(refused())
    assert not pair[0]._busy and not pair[1].speed._busy


@pytest.mark.parametrize("seconds", [None, 0, -1, 31, True, "5"])
def test_a_time_that_is_none_is_refused(pair: tuple[LogSpeed, Other], seconds: Any) -> None:
    with pytest.raises(KvmftError, match="cannot be measured for"):
        run(pair[0].measure({"peer": "b", "seconds": seconds}))
    with pytest.raises(KvmftError, match="cannot be measured for"):
        run(pair[1].speed.receive("a", {"seconds": seconds}))
