"""The secondary's replication machine: stage, commit, acknowledge, apply, and take over.

Safety in short. An acknowledgement is emitted only on `Committed`, that is, when the checkpoint
would survive a kill of this worker (I4). Nothing of a checkpoint reaches the standby's memory or
disks before it is committed, and activation waits until the last commit is applied whole (I3). A
claim is made only when the pair's record was stored durably after a commit (`OfferPersisted`); a
replica without it is discarded, never started (I5).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kvmft.core.events import (
    Activated,
    Applied,
    Apply,
    ClaimAsked,
    Claimed,
    Commit,
    Committed,
    Discard,
    DrawInput,
    DropPeer,
    Effect,
    Event,
    Failed,
    Finish,
    IllegalEvent,
    Load,
    Loaded,
    Loss,
    Offered,
    OfferPersisted,
    Outcome,
    PeerLost,
    PersistOffer,
    Purpose,
    Recovered,
    Report,
    Run,
    SendAck,
    SendOfferAck,
    SendRelief,
    Stage,
    Staged,
    StartClaim,
    StopAsked,
    Tick,
    VmDied,
    WakeAt,
)


class StandbyPhase(Enum):
    """Where the secondary is."""

    FILLING = "filling"  # no commit yet, or no record: cannot take over
    READY = "ready"  # commit and record are durable: may claim
    WAITING = "waiting"  # the primary's agent is gone but its host answered: give it time
    LOADING = "loading"  # device state goes into QEMU, before the claim: it may still fail
    CLAIMING = "claiming"
    ACTIVATING = "activating"
    DONE = "done"


@dataclass(frozen=True)
class Patience:
    """Seconds to wait after the primary's connection was closed by a living kernel."""

    agent_grace: float = 8.0


class SecondaryMachine:
    """`handle(event, now)` returns the effects, in the order in which they must be carried out."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.phase = StandbyPhase.FILLING
        self.committed = 0
        self.applied = 0
        self._staged_epoch = 0
        self._offer_pending = False
        self._wait_until = 0.0
        self._load_when_applied = False
        self._planned = False
        self._reason = ""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; IllegalEvent, with nothing changed, when it cannot happen here."""
        if self.phase is StandbyPhase.DONE:
            return []
        match event:
            case Staged():
                return self._staged(event)
            case Committed():
                self.committed = event.epoch
                return [SendAck(event.epoch), Apply(event.epoch)]
            case Applied():
                self.applied = event.epoch
                return self._load() if self._load_when_applied else []
            case Offered():
                return self._offered(event)
            case OfferPersisted():
                self._offer_pending = False
                self.phase = StandbyPhase.READY
                return [SendOfferAck(), Report("protected", "holds a commit and the pair's record")]
            case Recovered():
                return self._recovered(event, now)
            case PeerLost():
                return self._peer_lost(event, now)
            case Tick():
                if self.phase is StandbyPhase.WAITING and now >= self._wait_until:
                    return self._claim("the primary's agent did not come back")
                return []
            case ClaimAsked():
                return self._claim_asked(event)
            case Loaded():
                return self._loaded(event)
            case Claimed():
                return self._claimed(event)
            case Activated():
                return self._activated()
            case StopAsked():
                return self._stop_asked()
            case VmDied() | Failed():
                return self._broke(event)
        raise IllegalEvent(f"{type(event).__name__} does not concern a secondary")

    def _staged(self, event: Staged) -> list[Effect]:
        if self.phase not in (StandbyPhase.FILLING, StandbyPhase.READY):
            return []  # a claim is under way: what arrives now was never acknowledged
        if event.epoch != self.committed + 1:
            raise IllegalEvent(f"Staged({event.epoch}) after commit {self.committed}")
        if self.applied != self.committed:
            raise IllegalEvent(f"Staged({event.epoch}) before commit {self.committed} is applied")
        self._staged_epoch = event.epoch
        return [Commit(event.epoch)]

    def _offered(self, event: Offered) -> list[Effect]:
        if self.phase is not StandbyPhase.FILLING or self.committed == 0:
            raise IllegalEvent("Offered before a commit, or twice")
        self._offer_pending = True
        return [PersistOffer(event.record)]

    def _recovered(self, event: Recovered, now: float) -> list[Effect]:
        self.committed = self._staged_epoch = event.epoch
        if event.stage is Stage.RUNNING:
            self.applied = event.epoch
            self._reason = "its worker was killed after it took over"
            return self._activated()
        if event.stage is Stage.LOADED:
            self.applied = event.epoch
            self.phase = StandbyPhase.CLAIMING
            reason = "its worker was killed while it claimed"
            return [Report("failing_over", reason), StartClaim(Purpose.SOLO)]
        self.phase = StandbyPhase.WAITING
        self._wait_until = now + self.patience.agent_grace
        return [Apply(event.epoch), WakeAt(self._wait_until)]

    def _peer_lost(self, event: PeerLost, now: float) -> list[Effect]:
        if self.phase is StandbyPhase.FILLING:
            return [DropPeer(), *self._give_up(f"the replica is incomplete: {event.reason}")]
        if self.phase is not StandbyPhase.READY:
            return []
        if event.how is Loss.REFUSED:
            return [DropPeer(), *self._give_up(event.reason)]
        if event.how is Loss.CLOSED:
            # A kernel answered for the dead process, so the host lives: its agent may come back.
            self.phase = StandbyPhase.WAITING
            self._wait_until = now + self.patience.agent_grace
            return [
                DropPeer(),
                Report("protected", f"waits for the primary's agent: {event.reason}"),
                WakeAt(self._wait_until),
            ]
        # The network is told before the claim only if nobody can answer it elsewhere: the primary itself says so.
        draw: list[Effect] = [DrawInput()] if event.how is Loss.FAREWELL else []
        return [DropPeer(), *draw, *self._claim(event.reason)]

    def _claim_asked(self, event: ClaimAsked) -> list[Effect]:
        if self.phase in (StandbyPhase.READY, StandbyPhase.WAITING):
            # The link stays up meanwhile: were it closed first, the primary would claim as well
            # and might win. It only gets no more acknowledgements, so it shows no more output.
            self._planned = event.planned
            return self._claim(
                "planned switchover" if event.planned else "a person ordered the failover"
            )
        if self.phase is StandbyPhase.FILLING:
            raise IllegalEvent("a failover was ordered before the first sync was complete")
        return []

    def _claim(self, reason: str) -> list[Effect]:
        """Load first, claim then: a commit that does not load must not win against a primary
        that could run on."""
        self.phase = StandbyPhase.LOADING
        self._reason = reason
        self._load_when_applied = True
        report = Report("failing_over", reason)
        return [report, *self._load()]

    def _load(self) -> list[Effect]:
        if self.applied != self._staged_epoch:
            return []  # a commit is under way: it is the last one, or nothing was acknowledged
        self._load_when_applied = False
        return [Load(self.committed)]

    def _loaded(self, event: Loaded) -> list[Effect]:
        if self.phase is not StandbyPhase.LOADING:
            raise IllegalEvent(f"Loaded in phase {self.phase.value}")
        self.phase = StandbyPhase.CLAIMING
        return [StartClaim(Purpose.SOLO)]

    def _claimed(self, event: Claimed) -> list[Effect]:
        if self.phase is not StandbyPhase.CLAIMING:
            raise IllegalEvent(f"Claimed in phase {self.phase.value}")
        if event.halted:
            return self._halt(event.reason)
        if not event.won:
            return [DropPeer(), *self._give_up(event.reason)]
        self.phase = StandbyPhase.ACTIVATING
        # A primary that stopped for us waits to hear that it is relieved; another one is left.
        return [Run()] if self._planned else [DropPeer(), Run()]

    def _activated(self) -> list[Effect]:
        self.phase = StandbyPhase.DONE
        relief: list[Effect] = [SendRelief()] if self._planned else []
        return [
            *relief,
            Report("need_secondary", f"took over: {self._reason}"),
            Finish(Outcome.ACTIVATED, "runs here now"),
        ]

    def _stop_asked(self) -> list[Effect]:
        """The agent wants this standby gone. Once a claim may be made it is too late: the claim
        may win, and then what is here is the only instance."""
        if self.phase in (StandbyPhase.FILLING, StandbyPhase.READY, StandbyPhase.WAITING):
            return [DropPeer(), *self._give_up("the agent discards this standby")]
        return []

    def _broke(self, event: VmDied | Failed) -> list[Effect]:
        """Something of this standby failed. Once its claim may have been sent, that may win, and then
        nobody else runs the VM: records and disks, which are durable, are kept, and the agent asks on."""
        if self.phase not in (StandbyPhase.CLAIMING, StandbyPhase.ACTIVATING):
            return self._give_up(event.reason)
        if self.phase is StandbyPhase.CLAIMING and isinstance(event, Failed):
            return []  # the verdict is what counts now
        self.phase = StandbyPhase.DONE
        return [
            DropPeer(),
            Report("failing_over", event.reason),
            Finish(Outcome.UNSETTLED, event.reason),
        ]

    def _halt(self, reason: str) -> list[Effect]:
        """A person must look; commit and record are kept for them."""
        self.phase = StandbyPhase.DONE
        return [DropPeer(), Report("fenced", reason), Finish(Outcome.FAILED, reason)]

    def _give_up(self, reason: str) -> list[Effect]:
        self.phase = StandbyPhase.DONE
        return [Discard(), Report("disabled", reason), Finish(Outcome.FAILED, reason)]
