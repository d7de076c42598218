"""Whether a protected VM still has the devices that its standby was made with."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.service import Agent

HARDWARE_EVERY = 2.0
"""Seconds between two looks at the devices of a protected VM."""


class HardwareWatch:
    """The devices of one VM, as `core.domain.hardware` names them; empty while they do not matter."""

    def __init__(self, agent: Agent, vm: str) -> None:
        self._agent = agent
        self._vm = vm
        self.known: frozenset[str] = frozenset()
        self.due = 0.0

    async def changes(self) -> str:
        """What was plugged in or out since, in words; nothing between two looks."""
        if not self.known or time.monotonic() < self.due:
            return ""
        self.due = time.monotonic() + HARDWARE_EVERY
        try:
            now = await asyncio.to_thread(self._agent.host.hardware, self._vm)
        except KvmftError:
            return ""  # libvirt does not answer now; that is no change
        if not now or now == self.known:
            return ""  # the same, or the VM is off, of which the worker will tell
        return "; ".join(sorted(now ^ self.known))

    def forget(self) -> None:
        """The standby is given up: what it was made with does not matter any more."""
        self.known = frozenset()
