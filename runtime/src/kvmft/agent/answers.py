"""Answers that a worker owes: the standby's port, audits, and that the VM was handed over."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from kvmft.agent.workers import WorkerProcess
from kvmft.core.events import Outcome
from kvmft.errors import KvmftError

LISTEN_TIMEOUT = 20.0
SWITCH_TIMEOUT = 30.0
AUDIT_TIMEOUT = 60.0


class Answers:
    """What is waited for of the workers of VM `vm`. Each wait ends with an answer, or with a KvmftError
    when the worker ends or takes too long."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._listening: asyncio.Future[int] | None = None
        self._audits: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._switch: asyncio.Future[None] | None = None

    # -- the standby's port -------------------------------------------------------------------------

    def expect_port(self) -> None:
        """A standby's worker is about to be started."""
        self._listening = asyncio.get_running_loop().create_future()

    async def port(self) -> int:
        """The port of its FT log."""
        assert self._listening is not None
        try:
            return await asyncio.wait_for(self._listening, LISTEN_TIMEOUT)
        except TimeoutError:
            raise KvmftError("standby_worker", "The standby's worker did not get ready.",
                             "See `journalctl -u kvmft-agent` on the secondary.") from None  # fmt: skip

    def forget_port(self) -> None:
        """Nobody waits for it any more."""
        self._listening = None

    def listening(self, port: int) -> None:
        """The worker says it."""
        if self._listening is not None and not self._listening.done():
            self._listening.set_result(port)

    # -- audits -------------------------------------------------------------------------------------

    async def audit(self, worker: WorkerProcess) -> dict[str, Any]:
        """Have `worker` compare both memories, and wait for the result."""
        identity = secrets.randbelow(1 << 30)
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._audits[identity] = waiting
        worker.send(cmd="audit", id=identity)
        return await asyncio.wait_for(waiting, AUDIT_TIMEOUT)

    def audited(self, message: dict[str, Any]) -> None:
        """The worker has a result."""
        waiting = self._audits.pop(int(message["id"]), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    # -- planned switchover -------------------------------------------------------------------------

    @property
    def handing_over(self) -> bool:
        """True from the order to switch until it is known how that ended."""
        return self._switch is not None and not self._switch.done()

    async def switch(self, worker: WorkerProcess) -> None:
        """Have `worker` hand the VM over, and wait until it did."""
        self._switch = asyncio.get_running_loop().create_future()
        try:
            worker.send(cmd="switch")
            await asyncio.wait_for(self._switch, SWITCH_TIMEOUT)
        except TimeoutError:
            raise KvmftError("switch_slow", f"VM {self._vm} was not switched over within "
                             f"{SWITCH_TIMEOUT:.0f} s.", "See `kvmft events`.") from None  # fmt: skip
        finally:
            self._switch = None

    def handed_over(self) -> None:
        """The VM runs on the peer."""
        if self._switch is not None and not self._switch.done():
            self._switch.set_result(None)

    def _not_switched(self, outcome: tuple[str, str] | None) -> KvmftError:
        ended, why = outcome if outcome is not None else ("failed", "the worker was killed")
        if ended == Outcome.FENCED.value:
            return KvmftError("switch_fenced", f"VM {self._vm} was taken over before it was handed over: {why}.",
                              "It runs on the other host, as after a failure, and nothing that it showed is lost; see "
                              "`kvmft explain`.")  # fmt: skip
        return KvmftError("switch_failed", f"VM {self._vm} was not switched over: {why}.",
                          "It goes on here; see `kvmft events`.")  # fmt: skip

    # -- the worker's end ---------------------------------------------------------------------------

    def worker_ended(self, outcome: tuple[str, str] | None) -> None:
        """There will be no answers any more; `outcome` is the worker's last word and its reason, if it had one."""
        reason = outcome[1] if outcome is not None else None
        if self._switch is not None and not self._switch.done():
            self._switch.set_exception(self._not_switched(outcome))
        for waiting in self._audits.values():
            if not waiting.done():
                waiting.set_exception(KvmftError("audit_lost", "The worker ended.", "Try again."))
        self._audits.clear()
        if self._listening is not None and not self._listening.done():
            reason = reason if reason is not None else "the worker ended"
            self._listening.set_exception(
                KvmftError("standby_worker", f"The standby's worker ended: {reason}.", "")
            )
