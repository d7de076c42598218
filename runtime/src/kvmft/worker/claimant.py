"""The worker that only asks who may run: for a VM that is off and may have a secondary elsewhere.

After a power cut of both hosts, the host that the arbiter names may start the VM from its disk. This
worker claims with the records that this host holds durably; the agent starts the VM if it was won.
"""

from __future__ import annotations

from typing import Any

from kvmft.adapters.reactor import Reactor
from kvmft.core.events import Claimed, Outcome
from kvmft.worker.claims import Claims
from kvmft.worker.config import WorkerConfig
from kvmft.worker.link import AgentLink


class ClaimWorker:
    """One claim to run alone; its outcome is SOLO (won), FENCED (lost) or FAILED (halted)."""

    def __init__(self, reactor: Reactor, config: WorkerConfig, link: AgentLink) -> None:
        self._reactor = reactor
        self._link = link
        self._claims = Claims(reactor, config, link, self._decided)

    def start(self) -> None:
        """Ask."""
        self._link.event("claim", "asks the arbiter whether the VM may start here", purpose="start",
                         generation=self._claims.generation)  # fmt: skip
        # Where no record was ever written (turning on was cut short), there must be none: as then.
        self._claims.arbiter.create()

    def command(self, line: dict[str, Any]) -> None:
        """A line from the agent: anything ends the asking. What was asked stays written down."""
        if line.get("cmd") in ("stop", "suspend"):
            self._reactor.stop()

    def _decided(self, verdict: Claimed) -> None:
        outcome = Outcome.SOLO if verdict.won else Outcome.FAILED if verdict.halted else Outcome.FENCED
        self._link.send(msg="done", outcome=outcome.value, reason=verdict.reason)
        self._reactor.stop()
