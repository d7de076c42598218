"""The single epochs of a VM that is protected from here, as its worker has them, for those who measure."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.workers import WorkerProcess

ANSWER = 5.0
"""Seconds that a worker has to answer; a commit or a sync may keep it busy."""


class Epochs:
    """Questions under way to the worker of one VM."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def ask(self, worker: WorkerProcess, since: Any) -> dict[str, Any]:
        """`EpochStats.newer` of the worker; KvmftError when it gives none. `since` has a count for each kind,
        or is None: then there are only counts in the answer."""
        if since is not None and not (
            isinstance(since, dict) and all(isinstance(each, int) and each >= 0 for each in since.values())
        ):
            raise KvmftError("bad_request", f"since is {since!r}.", "Give the counts of the answer before.")
        identity = secrets.randbelow(1 << 30)
        waiting = self._waiting[identity] = asyncio.get_running_loop().create_future()
        worker.send(cmd="epochs", id=identity, since=since)
        try:
            return await asyncio.wait_for(waiting, ANSWER)
        except TimeoutError:
            raise KvmftError("worker_silent", f"The VM's worker did not answer within {ANSWER:.0f} s.",
                             "Measure again; if it stays so, see `journalctl -u kvmft-agent`.") from None  # fmt: skip
        finally:
            del self._waiting[identity]

    def take(self, message: dict[str, Any]) -> None:
        """The worker's answer; one that nobody waits for any more is dropped."""
        waiting = self._waiting.get(int(message["id"]))
        if waiting is not None and not waiting.done():
            waiting.set_result({name: value for name, value in message.items() if name not in ("msg", "id")})

    def lost(self) -> None:
        """The worker ended."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(KvmftError("worker_ended", "The VM's worker ended.",
                                                 "See `kvmft events`, and measure again."))  # fmt: skip
