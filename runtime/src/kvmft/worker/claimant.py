"""The worker that only asks who may run: for a VM that is off and may have a secondary elsewhere.

After a power cut of both hosts, the host that the arbiter names may start the VM from its disk. This
worker claims with the records that this host holds durably; the agent starts the VM if it was won.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from kvmft.adapters.arbiter_client import ArbiterClient
from kvmft.adapters.reactor import Reactor
from kvmft.core.events import Outcome
from kvmft.worker.config import WorkerConfig
from kvmft.worker.link import AgentLink


class ClaimWorker:
    """One claim to run alone; its outcome is SOLO (won), FENCED (lost) or FAILED (halted)."""

    def __init__(self, reactor: Reactor, config: WorkerConfig, link: AgentLink) -> None:
        self._reactor = reactor
        self._link = link
        self._arbiter = ArbiterClient(
            reactor,
            config.identity(),
            on_decided=self._decided,
            on_note=lambda reason: link.event("arbiter", reason),
            on_sent=partial(link.event, "claim_sent"),
        )

    def start(self) -> None:
        """Ask."""
        self._link.event("claim", "asks the arbiter whether the VM may start here", purpose="start",
                         generation=self._arbiter.generation)  # fmt: skip
        # Where no record was ever written (turning on was cut short), there must be none: as then.
        self._arbiter.create()

    def command(self, line: dict[str, Any]) -> None:
        """A line from the agent: anything ends the asking. What was asked stays written down."""
        if line.get("cmd") in ("stop", "suspend"):
            self._reactor.stop()

    def _decided(self, won: bool, halted: bool, reason: str) -> None:
        generation = self._arbiter.generation
        receipt = self._arbiter.receipt
        self._link.event("verdict", reason, won=won, generation=generation, **receipt)
        outcome = Outcome.SOLO if won else Outcome.FAILED if halted else Outcome.FENCED
        self._link.send(msg="done", outcome=outcome.value, reason=reason)
        self._reactor.stop()
