"""The standby of another host's VM: admitted, started and remembered here, and what it may have become."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from kvmft.adapters.arbiter_client import claims_path
from kvmft.adapters.durable import remove_durably, write_durably
from kvmft.agent.replicas import Replicas
from kvmft.agent.store import VmState
from kvmft.core.admission import Request
from kvmft.core.arbitration import holdings_from_bytes
from kvmft.core.domain import Domain
from kvmft.core.records import Mode
from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.service import Agent


class Standby:
    """The standby of one VM on this host."""

    def __init__(self, agent: Agent, state: VmState) -> None:
        self._agent = agent
        self._state = state

    async def start(self, domain: Domain, request: dict[str, Any], peer: str) -> int:
        """Start a QEMU for `peer`'s VM, which is `domain`, that waits for its memory; its process. KvmftError
        `not_admitted` names all that this host lacks; then what is remembered here stays as it is."""
        state, agent = self._state, self._agent
        replicas = Replicas(agent.store.directory(state.vm))
        lacking = await asyncio.to_thread(
            agent.host.admit, domain, request["disks"], agent.config.storage_pool,
            lambda path: replicas.owns(path) or path in {disk["path"] for disk in state.disks},
            Request.read(request.get("facts")),
        )  # fmt: skip
        if lacking:
            raise KvmftError("not_admitted", f"{agent.config.host} cannot take the secondary.",
                             "Mend every reason.", lacking)  # fmt: skip
        state.role, state.peer, state.session = "secondary", peer, request["session"]
        state.desired, state.may_start = "enabled", False
        state.autostart = bool(request.get("autostart"))
        state.allowed = list(request.get("allowed") or [])
        state.options, state.machine = request["options"], request["machine"]
        state.uuid, state.nics = request["uuid"], request["nics"]
        agent.store.save(state)
        remove_durably(claims_path(agent.store.directory(state.vm)))
        pid, state.own_monitor, state.disks = await asyncio.to_thread(
            agent.host.start_standby, request["xml"], domain, request["disks"],
            agent.config.storage_pool, state.session,
        )  # fmt: skip
        replicas.keep(disk["path"] for disk in state.disks)
        agent.events.add(state.vm, "standby_started", f"a standby for {peer}'s VM waits for memory")
        definition = await asyncio.to_thread(agent.host.definition, state.vm)
        write_durably(self._definition, definition.encode(), 0o600)
        agent.store.save(state)
        return pid

    @property
    def _definition(self) -> str:
        """Where the domain is kept that a standby becomes."""
        return os.path.join(self._agent.store.directory(self._state.vm), "domain.xml")

    async def define(self) -> None:
        """Make the standby's domain one that libvirt can start here."""
        with open(self._definition, encoding="utf-8") as file:
            await asyncio.to_thread(self._agent.host.define, file.read())

    def may_have_won(self) -> bool:
        """True when this side was claiming, or had won, when its host lost power: its disks were
        made durable before it asked, so they may start if the arbiter has our record."""
        path = claims_path(self._agent.store.directory(self._state.vm))
        try:
            with open(path, "rb") as file:
                held = holdings_from_bytes(file.read(), self._agent.config.cluster_id)
        except (OSError, KvmftError):
            return False
        return bool(held.written) or any(record.mode is Mode.SOLO for record in held.bases)
