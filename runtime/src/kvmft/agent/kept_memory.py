"""What a VM that was handed over left in this host's memory: its last worker holds it for the new standby."""

from __future__ import annotations

import time
from typing import Any

from kvmft.agent.workers import WorkerProcess

KEEP_MEMORY = 300.0
"""Seconds that the memory of a VM that was handed over waits for its new standby."""


class KeptMemory:
    """At most one worker that holds memory. `base` tells a new standby's worker where it finds it."""

    def __init__(self) -> None:
        self.keeper: WorkerProcess | None = None
        self.base: dict[str, Any] | None = None
        self.until = 0.0

    def hold(self, keeper: WorkerProcess | None, base: dict[str, Any]) -> None:
        """`keeper` stays as the process that has it."""
        self.keeper, self.base = keeper, base
        self.until = time.monotonic() + KEEP_MEMORY

    @property
    def expired(self) -> bool:
        """True when nobody came for it in time."""
        return self.keeper is not None and time.monotonic() > self.until

    async def let_go(self) -> None:
        """The new standby has taken the memory that the VM left here, or nobody came for it."""
        keeper, self.keeper, self.base = self.keeper, None, None
        if keeper is not None:
            keeper.send(cmd="release")
            await keeper.end()
