"""A worker's claims: what is asked of the arbiter and what it answers, told to the machine and to the events log."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kvmft.adapters.arbiter_client import ArbiterClient
from kvmft.adapters.reactor import Reactor
from kvmft.core import events as ev
from kvmft.worker.config import WorkerConfig
from kvmft.worker.link import AgentLink

CLAIMS = {
    ev.Purpose.CREATE: "asks the arbiter for the VM's first record",
    ev.Purpose.PAIR: "asks the arbiter to record the pair",
    ev.Purpose.SOLO: "asks the arbiter for the right to run alone",
    ev.Purpose.REMOVE: "asks the arbiter to remove the record",
}


class Claims:
    """One side's dealings with the arbiter. `post` gets the verdict as an event."""

    def __init__(
        self,
        reactor: Reactor,
        config: WorkerConfig,
        link: AgentLink,
        post: Callable[[ev.Claimed], None],
    ) -> None:
        self._link = link
        self._post = post
        self.arbiter = ArbiterClient(
            reactor,
            config.identity(),
            on_decided=self._decided,
            on_note=lambda reason: link.event("arbiter", reason),
            on_sent=partial(link.event, "claim_sent"),
        )

    @property
    def generation(self) -> int | None:
        """The generation that this side holds."""
        return self.arbiter.generation

    def _decided(self, won: bool, halted: bool, reason: str) -> None:
        generation = self.arbiter.generation
        self._link.event("verdict", reason, won=won, generation=generation, **self.arbiter.receipt)
        self._post(ev.Claimed(won, halted, reason))

    # -- the primary's ------------------------------------------------------------------------------

    def start(self, purpose: ev.Purpose) -> None:
        """Ask, as the primary, for what `purpose` says."""
        generation = self.arbiter.generation
        again = purpose is ev.Purpose.CREATE and generation is not None
        reason = CLAIMS[ev.Purpose.SOLO if again else purpose]
        self._link.event("claim", reason, purpose=purpose.value, generation=generation)
        match purpose:
            case ev.Purpose.CREATE:
                self.arbiter.create()
            case ev.Purpose.PAIR:
                self.arbiter.pair()
            case _:
                self.arbiter.solo()

    def name_pair(self, epoch: int) -> bytes:
        """The pair's record as it is named after commit `epoch`, for the secondary."""
        record = self.arbiter.name_pair(epoch)
        self._link.event("offer", f"names the pair's record after commit {epoch}", epoch=epoch)
        return record

    def remove(self, seconds: float) -> None:
        """Have the record removed, within `seconds`."""
        self.arbiter.remove(seconds)

    # -- the secondary's ----------------------------------------------------------------------------

    def accept_offer(self, record: bytes) -> None:
        """Store the pair's record durably."""
        self.arbiter.accept_offer(record)
        self._link.event("offer_stored", "the pair's record is stored; this side may claim from it",
                         generation=self.arbiter.generation)  # fmt: skip

    def take_over(self, epoch: int) -> None:
        """Ask, as the secondary, whether it may go on from commit `epoch`."""
        self._link.event("claim", "asks the arbiter for the right to run alone", purpose="solo",
                         generation=self.arbiter.generation, epoch=epoch)  # fmt: skip
        self.arbiter.solo()

    def forget(self) -> None:
        """Forget what was stored: it is about a pair that is no more."""
        self.arbiter.forget()
