"""The events of all hosts in one order, and the check of each host's receipt chain.

Clocks of hosts differ. Each host's own order (its numbers) is kept whatever its clock did; between
hosts the clock of each, corrected by what it was off when it answered, decides.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.service import Agent

DEFAULT_LIMIT = 1000
PEER_TIMEOUT = 10.0
IN_STEP = 0.005
"""Seconds of difference between clocks below which nothing is corrected."""


def merge(
    logs: Mapping[str, Iterable[dict[str, Any]]], offsets: Mapping[str, float]
) -> list[dict[str, Any]]:
    """All events in one order; `offsets` is by how many seconds a host's clock is ahead.

    Each event gets `at`: its time on the asking host's clock, never before that of an earlier event
    of the same host.
    """

    def timed(host: str, events: Iterable[dict[str, Any]]) -> Iterator[tuple[float, str, int, Any]]:
        latest = 0.0
        for event in sorted(events, key=lambda event: int(event["seq"])):
            latest = max(latest, float(event["time"]) - offsets.get(host, 0.0))
            yield latest, host, int(event["seq"]), event

    streams = [timed(host, events) for host, events in logs.items()]
    return [{**event, "at": round(at, 4)} for at, _host, _seq, event in heapq.merge(*streams)]


def offset(sent: float, received: float, theirs: float) -> float:
    """By how many seconds a clock is ahead that showed `theirs` between `sent` and `received`; 0
    when the difference is within what the way there and back can explain."""
    ahead = theirs - (sent + received) / 2
    return ahead if abs(ahead) > max(IN_STEP, (received - sent) / 2) else 0.0


class History:
    """Answers what people and other agents ask about events."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def answer(self, op: str, args: dict[str, Any]) -> Any:
        """Requests of this host: `events`, `events_cluster`, `events_verify`; of other agents:
        `peer_events`, `peer_events_verify`."""
        match op:
            case "events":
                return await self._read(args, args.get("since"))
            case "events_cluster":
                return await self._cluster(args)
            case "events_verify":
                return await self._verify_all(args)
            case "peer_events":
                events = await self._read(args, args.get("since"))
                return {"events": events, "now": time.time()}
            case "peer_events_verify":
                return await self._verify(args)
        raise KvmftError("unknown_op", f"The agent does not know the request {op!r}.", "")

    async def _read(self, args: dict[str, Any], since: Any) -> list[dict[str, Any]]:
        vm, limit = args.get("vm"), int(args.get("limit") or DEFAULT_LIMIT)
        return await asyncio.to_thread(self._agent.events.read, vm, int(since or 0), max(0, limit))

    async def _cluster(self, args: dict[str, Any]) -> dict[str, Any]:
        """`since` is a mapping of hosts to numbers here. Hosts that do not answer are named."""
        here, since = self._agent.config.host, args.get("since") or {}
        logs = {here: await self._read(args, since.get(here))}
        hosts: dict[str, Any] = {here: {"ok": True, "reason": "", "clock_ahead_s": 0.0}}
        asked = {key: args.get(key) for key in ("vm", "limit")}

        async def one(peer: str) -> None:
            sent = time.time()
            try:
                found = await self._ask(peer, "peer_events", **asked, since=since.get(peer))
            except KvmftError as error:
                hosts[peer] = {"ok": False, "reason": str(error), "clock_ahead_s": None}
                return
            ahead = offset(sent, time.time(), float(found["now"]))
            logs[peer] = found["events"]
            hosts[peer] = {"ok": True, "reason": "", "clock_ahead_s": round(ahead, 3)}

        await asyncio.gather(*(one(peer) for peer in self._agent.config.peers))
        ahead = {host: each["clock_ahead_s"] or 0.0 for host, each in hosts.items()}
        limit = int(args.get("limit") or DEFAULT_LIMIT)
        return {"events": merge(logs, ahead)[-limit:], "hosts": dict(sorted(hosts.items()))}

    async def _verify(self, args: dict[str, Any]) -> dict[str, Any]:
        anchor = args.get("anchor")
        kept = (int(anchor[0]), str(anchor[1])) if anchor else None
        found = await asyncio.to_thread(self._agent.events.verify, kept)
        return {"host": self._agent.config.host, "intact": found.intact, **asdict(found)}

    async def _verify_all(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """This host's chain, and with `cluster` also the others'; `anchor` concerns this host."""
        found = [await self._verify(args)]
        for peer in sorted(self._agent.config.peers) if args.get("cluster") else ():
            try:
                found.append(await self._ask(peer, "peer_events_verify"))
            except KvmftError as error:
                found.append({"host": peer, "intact": None, "reason": str(error)})
        return found

    async def _ask(self, peer: str, op: str, **args: Any) -> Any:
        try:
            return await asyncio.wait_for(
                self._agent.peers.call(peer, op, **args), PEER_TIMEOUT
            )
        except TimeoutError:
            raise KvmftError("peer_silent", f"{peer} did not answer {op}.",
                             "See the agent's log there.") from None  # fmt: skip
