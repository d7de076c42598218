"""The wall clock of a guest after a failover: set by its guest agent, where it has one that answers.

The VM goes on from its last commit, so its wall clock shows the time of that. `worker.guest_clock` mends it for guests on
KVM's clock; others, on the time stamp counter or under emulation, have to be told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

NOTICEABLE = 0.1
"""Seconds behind the host's clock that are worth setting a clock for."""
GAP = 120.0
"""Seconds behind beyond which it was no failover: that guest has a time of its own."""
PATIENCE, EVERY = 15.0, 0.5
"""Seconds for which an agent that does not answer is asked again, and between two times."""
_ASKING = ThreadPoolExecutor(1, "guest-time")
"""One guest after the other, apart from the agent's other work: a guest may take seconds to answer."""


async def put_right(domain: Callable[[], Any], patience: float = PATIENCE) -> float | None:
    """Set the wall clock of a guest to the host's if it is behind as after a failover. `domain` gives libvirt's domain.

    The seconds that it was behind, or None when nothing was set: it was not behind, or no guest agent answered within
    `patience` seconds. libvirt refuses an agent's commands while a checkpoint has the VM stopped; they are made again.
    """
    import libvirt

    loop, until = asyncio.get_running_loop(), time.monotonic() + patience
    tried: float | None = None
    while True:
        try:
            behind = await loop.run_in_executor(_ASKING, lambda: _behind(domain()))
            if not NOTICEABLE <= behind <= GAP:
                return tried  # an agent that could not set the hardware's clock has set the guest's all the same
            tried = behind
            await loop.run_in_executor(_ASKING, lambda: _set(domain()))
            return behind
        except libvirt.libvirtError as error:
            code = error.get_error_code()
            lasting = code in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, libvirt.VIR_ERR_NO_SUPPORT)
            if lasting or time.monotonic() >= until:
                return None
        await asyncio.sleep(EVERY)


def _behind(domain: Any) -> float:
    before = time.time()
    shown = domain.getTime()
    return (before + time.time()) / 2 - (shown["seconds"] + shown["nseconds"] / 1e9)


def _set(domain: Any) -> None:
    now = time.time_ns()
    domain.setTime({"seconds": now // 1_000_000_000, "nseconds": now % 1_000_000_000})
