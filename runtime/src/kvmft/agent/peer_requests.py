"""What the agents of other hosts ask of this one."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from kvmft import __version__
from kvmft.agent.host import available_memory
from kvmft.agent.replicas import Replicas
from kvmft.agent.requests import name_of
from kvmft.agent.store import VmState
from kvmft.core.admission import Request
from kvmft.core.domain import describe
from kvmft.core.qemu_version import other_version
from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.service import Agent


class PeerRequests:
    """Answers them."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def answer(self, caller: str, op: str, args: dict[str, Any]) -> Any:
        """The answer to request `op` of host `caller`; KvmftError when it is refused or unknown."""
        match op:
            case "peer_ping":
                return {"host": self._agent.config.host, "version": __version__,
                        "maintenance": self._agent.maintenance.on}  # fmt: skip
            case "peer_events" | "peer_events_verify":
                return await self._agent.history.answer(op, args)
            case "peer_vm_status":
                return await self._agent.requests.status(name_of(args))
            case "peer_claim":
                self._agent.known(name_of(args)).orders.claim()
                return {}
            case "peer_switch":
                await self._agent.primary_of(name_of(args)).orders.switch()
                return {}
            case "peer_log_speed":
                return {"port": await self._agent.log_speed.receive(caller, args)}
            case "standby_admit":
                return await self.admit(args)
            case "standby_prepare":
                return {"port": await self._prepare(caller, args)}
            case "standby_kill":
                self._agent.known(name_of(args)).orders.kill_standby()
                return {}
            case "standby_discard":
                known = self._agent.managed(name_of(args))
                # One that was told late may mean a standby that was made anew since.
                if known is not None and known.state.role != "primary" and (
                    args.get("session") in (None, known.state.session)
                ):
                    await known.discard(caller)
                return {}
        raise KvmftError("unknown_op", f"The agent does not know the request {op!r}.",
                         "Both hosts need the same kvmft version.")  # fmt: skip

    async def admit(self, args: dict[str, Any]) -> dict[str, Any]:
        """What this host lacks for the standby of a VM; nothing is changed."""
        vm = name_of(args)
        known = self._agent.managed(vm)
        replicas = Replicas(os.path.join(self._agent.store.root, vm))
        disks = {disk["path"] for disk in known.state.disks} if known else set()
        lacking = await asyncio.to_thread(
            self._agent.host.admit, describe(args["xml"]), args["disks"], self._agent.config.storage_pool,
            lambda path: replicas.owns(path) or path in disks, Request.read(args.get("facts")),
        )  # fmt: skip
        here = (await asyncio.to_thread(self._agent.host.versions))["qemu"]
        lacking += other_version(args.get("qemu_version", here), here, self._agent.config.host)
        lacking += await self._arbiter_lacking() + self._agent.maintenance.lacking()
        return {"memory": available_memory(), "lacking": [error.to_dict() for error in lacking]}

    async def _arbiter_lacking(self) -> list[KvmftError]:
        """A secondary that cannot ask the arbiter protects nothing: it could never take over."""
        if not self._agent.arbiter_ok:
            await self._agent.probe_arbiter()
        if self._agent.arbiter_ok:
            return []
        host = self._agent.config.host
        return [KvmftError("no_arbiter", f"{host} cannot ask the arbiter: {self._agent.arbiter_reason}",
                           f"See `kvmft doctor` on {host}.")]  # fmt: skip

    async def _prepare(self, caller: str, args: dict[str, Any]) -> int:
        vm = name_of(args)
        here = (await asyncio.to_thread(self._agent.host.versions))["qemu"]
        for reason in other_version(args["qemu_version"], here, self._agent.config.host):
            raise reason
        known = self._agent.managed(vm)
        if known is None:
            if await asyncio.to_thread(self._agent.host.is_running, vm):
                raise KvmftError("runs_here", f"A VM {vm} runs on {self._agent.config.host} already.",
                                 "Rename or stop one of the two.")  # fmt: skip
            known = self._agent.adopt(VmState(vm, args["uuid"], role="stale"))
        return await known.prepare(args, caller)
