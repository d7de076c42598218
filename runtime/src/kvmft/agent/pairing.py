"""Finding a secondary for a VM: what the VM is, which host can take it, and asking that host for a standby."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvmft.agent.host import Found
from kvmft.agent.placement import ask_all, choose, permitted
from kvmft.agent.startlines import nics_of
from kvmft.agent.store import VmState
from kvmft.core.compliance import compliance
from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.service import Agent


@dataclass(frozen=True)
class Candidate:
    """A VM as another host must know it to say whether it can take its standby."""

    found: Found
    disks: list[dict[str, Any]]
    version: str
    facts: dict[str, Any]


class Pairing:
    """For one VM that runs on this host."""

    def __init__(self, agent: Agent, state: VmState) -> None:
        self._agent = agent
        self._state = state

    async def examine(self) -> Candidate:
        """The VM as it runs; KvmftError `not_compliant` with every reason against its protection."""
        state = self._state
        found = await asyncio.to_thread(self._agent.host.find, state.vm)
        reasons = compliance(found.live, found.snapshots)
        reasons += await asyncio.to_thread(self._agent.host.blockers, state.vm)
        if reasons:
            raise KvmftError("not_compliant", f"VM {state.vm} cannot be protected.",
                             "Mend every reason.", reasons)  # fmt: skip
        disks = await asyncio.to_thread(self._agent.host.disk_sizes, state.vm, found.domain)
        return await self._candidate(found, disks)

    async def _candidate(self, found: Found, disks: list[dict[str, Any]]) -> Candidate:
        version = await asyncio.to_thread(self._agent.host.qemu_of, found)
        facts = (await asyncio.to_thread(self._agent.host.request, found.domain)).to_dict()
        return Candidate(found, disks, version, facts)

    async def place(self, vm: Candidate) -> str:
        """The host for the secondary: where it was, while that host can take it."""
        state = self._state
        hosts = permitted(self._agent.config.peers, state.allowed)
        peer = await self._choose(vm, hosts, state.peer)
        if state.peer and state.peer != peer:
            self._agent.events.add(state.vm, "placed", f"{state.peer} cannot take it; {peer} can")
        return peer

    async def check(self, target: str) -> None:
        """Nothing, when `target` may and can take the secondary; else KvmftError says why not."""
        state = self._state
        found = await asyncio.to_thread(self._agent.host.find, state.vm)
        disks = await asyncio.to_thread(self._agent.host.disk_sizes, state.vm, found.domain)
        permitted([*self._agent.config.peers], [target])
        if state.allowed and target not in state.allowed:
            raise KvmftError("not_allowed", f"{target} is not among the allowed hosts of VM {state.vm}.",
                             f"Allowed: {', '.join(state.allowed)}.")  # fmt: skip
        await self._choose(await self._candidate(found, disks), [target], target)

    async def _choose(self, vm: Candidate, hosts: list[str], preferred: str) -> str:
        offers = await ask_all(
            self._agent.peers, hosts, vm=self._state.vm, xml=vm.found.xml, disks=vm.disks,
            qemu_version=vm.version, facts=vm.facts,
        )  # fmt: skip
        return choose(offers, preferred, self._state.vm)

    async def ask(self, vm: Candidate, peer: str, session: str) -> int:
        """Have `peer` start a standby for `session`; the port of its FT log."""
        state, found = self._state, vm.found
        answer = await self._agent.peers.call(
            peer, "standby_prepare", vm=state.vm, uuid=found.domain.uuid, xml=found.xml,
            disks=vm.disks, qemu_version=vm.version, machine=found.domain.machine,
            session=session, options=state.options, nics=nics_of(found), autostart=state.autostart,
            allowed=self.allowed_there(peer), facts=vm.facts,
        )  # fmt: skip
        return int(answer["port"])

    def allowed_there(self, peer: str) -> list[str]:
        """The permitted hosts as `peer` has to see them once it runs the VM: this host, not itself."""
        allowed = self._state.allowed
        return [*(each for each in allowed if each != peer), self._agent.config.host] if allowed else []
