"""What protection would cost a VM that is not protected yet: asked for, measured by a process of its own, answered."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from kvmft.agent import doctor
from kvmft.agent.config import check_options
from kvmft.agent.lines import error_of
from kvmft.agent.workers import WorkerProcess
from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.service import Agent

SECONDS, LEAST, MOST = 10.0, 2.0, 60.0
PATIENCE = 20.0
"""Seconds beyond those asked for until a measuring process that does not answer is ended."""
PROBE = 2 << 20
"""Bytes that are sent to a peer to see what the FT network carries."""
PROBES = 3
MODULE = "kvmft.worker.forecast"


class Forecasts:
    """The forecasts that are under way on this host, one a VM at most."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._under_way: dict[str, WorkerProcess | None] = {}

    async def answer(self, vm: str, args: dict[str, Any]) -> dict[str, Any]:
        """Measure `vm` and tell what protection would cost; KvmftError says why not, and nothing was changed then."""
        seconds = _number(args, "seconds", SECONDS, LEAST, MOST)
        stops = args.get("stops", False)
        if not isinstance(stops, bool):
            raise KvmftError("bad_request", f"stops is {stops!r}.", "Give true or false.")
        asked = check_options(args.get("options") or {}, "options")
        log_rate = None if args.get("log_mb_s") is None else _number(args, "log_mb_s", 0.0, 0.1, 100_000.0) * 1e6
        self._refuse_protected(vm)
        if vm in self._under_way:
            raise KvmftError("forecast_under_way", f"A forecast of VM {vm} is under way already.", "Wait for its end.")
        self._under_way[vm] = None
        try:
            task = await self._task(vm, asked)
            rate = log_rate or await self._network(vm)
            self._refuse_protected(vm)  # it may have been turned on meanwhile
            found = await self._measure(vm, {**task, "seconds": seconds, "stops": stops, "log_rate": rate})
            return {"vm": vm, "accelerator": task["accelerator"], **found}
        finally:
            self._under_way.pop(vm, None)

    async def end(self, vm: str) -> None:
        """End a forecast of `vm`, if one is under way: its memory is about to be tracked for protection."""
        worker = self._under_way.get(vm)
        if worker is not None:
            worker.send(cmd="stop")
            await worker.end()

    def _refuse_protected(self, vm: str) -> None:
        known = self._agent.managed(vm)
        if known is not None and known.state.role == "secondary":
            raise KvmftError("runs_elsewhere", f"VM {vm} runs on {known.state.peer}; its secondary is here.",
                             f"It is protected: see `kvmft status {vm}`.")  # fmt: skip
        if known is not None and (known.wants_protection or known.worker is not None):
            raise KvmftError("protected_already", f"Fault tolerance of VM {vm} is on, so that nothing is to be foretold.",
                             f"See its figures: kvmft status {vm}.")  # fmt: skip

    async def _task(self, vm: str, asked: dict[str, float]) -> dict[str, Any]:
        agent = self._agent
        found = await asyncio.to_thread(agent.host.find, vm)
        state = await asyncio.to_thread(agent.host.execution, vm)
        if state != "running":
            raise KvmftError("vm_not_running", f"VM {vm} is {state}; only of one that runs can be measured what it writes.",
                             "Start it, with its usual load, and ask again.")  # fmt: skip
        for reason in await asyncio.to_thread(doctor.kernel_findings):
            raise reason
        known = agent.managed(vm)
        options = {**agent.config.options, **(known.state.options if known else {}), **asked}
        domain = found.domain
        return {
            "cmd": "start", "vm": vm, "uuid": domain.uuid, "qemu_pid": found.pid, "own_monitor": domain.own_monitor,
            "nics": [nic.alias for nic in domain.nics], "accelerator": domain.accelerator, "options": options,
        }  # fmt: skip

    async def _network(self, vm: str) -> float | None:
        """What the FT network carries to the likely secondary's host, bytes a second, as two agents see it; None
        when no peer answers."""
        known = self._agent.managed(vm)
        likely = known.state.peer if known else ""
        for peer in sorted(self._agent.config.peers, key=lambda name: (name != likely, name)):
            try:
                empty, full = [], []
                for __ in range(PROBES):
                    empty.append(await self._ping(peer, 0))
                    full.append(await self._ping(peer, PROBE))
            except KvmftError:
                continue
            # The connection's own cost is in both.
            return PROBE / max(min(full) - min(empty), 1e-4)
        return None

    async def _ping(self, peer: str, size: int) -> float:
        begun = time.monotonic()
        await self._agent.peers.call(peer, "peer_ping", padding="x" * size)
        return time.monotonic() - begun

    async def _measure(self, vm: str, task: dict[str, Any]) -> dict[str, Any]:
        done: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

        def told(message: dict[str, Any]) -> None:
            if done.done():
                return
            if message["msg"] == "forecast":
                done.set_result(message["result"])
            else:
                done.set_exception(error_of(message["error"]))

        def ended() -> None:
            if not done.done():
                done.set_exception(KvmftError("forecast_lost", f"The process that measured VM {vm} was killed.",
                                              "The VM is as it was; ask again."))  # fmt: skip

        worker = self._under_way[vm] = WorkerProcess(told, ended, MODULE)
        await worker.start(task)
        try:
            return await asyncio.wait_for(done, task["seconds"] + PATIENCE)
        except TimeoutError:
            raise KvmftError("forecast_slow", f"The forecast of VM {vm} did not end in time.",
                             "See `journalctl -u kvmft-agent`; ask again.") from None  # fmt: skip
        finally:
            worker.send(cmd="stop")
            await worker.end()


def _number(args: dict[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = args.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise KvmftError("bad_request", f"{name} is {value!r}.", f"Give a number from {least:g} to {most:g}.")
    return float(value)
