"""What a VM that runs elsewhere now left in this host's memory: kept here, for the standby that is to come."""

from __future__ import annotations

import os

from kvmft.adapters.memory import GuestMemory, RamBlock
from kvmft.errors import KvmftError
from kvmft.worker.link import AgentLink


class LeftMemory:
    """Memory that this process holds after its QEMU ended."""

    def __init__(self, link: AgentLink) -> None:
        self._link = link
        self._kept: list[tuple[RamBlock, int]] = []

    def keep(self, memory: GuestMemory) -> None:
        """Hold `memory`; when it cannot be held, the next sync sends all of it."""
        try:
            self._kept = memory.keep()
        except (KvmftError, OSError) as error:
            self._link.event("memory_not_kept", f"the next sync sends all memory: {error}")

    def tell(self, reason: str) -> None:
        """This process holds the memory until the agent says `release`, or is gone."""
        blocks = [
            {"name": block.name, "size": block.size, "fd": descriptor}
            for block, descriptor in self._kept
        ]
        self._link.send(msg="handed_over", reason=reason, pid=os.getpid(), blocks=blocks)
