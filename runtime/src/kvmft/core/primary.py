"""The primary's replication machine: epochs, output commit, pairing, loss of the secondary.

Safety in short. Output of epoch k is released in exactly three places: on `Acked(k)` (the secondary
can activate k), and by `ReleaseAll`, which is only emitted when this side runs by right: it won a
claim to SOLO, or it is SOLO already because no record of a pair was ever named in this session.
Once a record was named (`NameOffer`), the secondary may win the arbiter's next change at any time;
from then on every way out goes through a claim first, and a lost claim ends in `KillVm`.

A planned switchover takes one last checkpoint and leaves the VM stopped. The secondary then claims,
so the arbiter decides this too: whatever goes wrong, this side claims as well and runs on if it wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kvmft.core.events import (
    Acked,
    BulkDone,
    Captured,
    Claimed,
    Connect,
    DropPeer,
    Effect,
    Event,
    Failed,
    Farewell,
    Finish,
    HandOver,
    HoldInstalled,
    IllegalEvent,
    InstallHold,
    KeepMemory,
    KillVm,
    NameOffer,
    OfferStored,
    Outcome,
    OutputPending,
    PauseVm,
    PeerLost,
    Purpose,
    ReleaseAll,
    Released,
    ReleaseOutput,
    Relieved,
    Report,
    ResumeVm,
    RoundDone,
    StartBulk,
    StartClaim,
    Started,
    StopAsked,
    SwitchAsked,
    TakeCheckpoint,
    TakeRound,
    Tick,
    VmDied,
    WakeAt,
    Welcomed,
)
from kvmft.core.pacing import Pace, Pacer


class Phase(Enum):
    """Where the primary is."""

    NEW = "new"
    GAINING = "gaining"  # asking the arbiter for the right to run alone
    CONNECTING = "connecting"
    BULK = "bulk"
    ROUNDS = "rounds"
    HOLDING = "holding"  # the redirector is being installed
    EPOCHS = "epochs"
    HANDING = "handing"  # planned switchover: stopped after the last checkpoint
    CLAIMING = "claiming"  # the secondary is lost or being left
    RELEASING = "releasing"
    DONE = "done"


class Pairing(Enum):
    """How far the pair's record got; the order is that of the protocol."""

    NONE = 0
    NAMED = 1
    ASKED = 2
    PAIRED = 3


@dataclass(frozen=True)
class Tuning:
    """Times in seconds, sizes in bytes."""

    pace: Pace = Pace()
    hold_bound: float = 3.0
    switch_bound: float = 5.0
    max_rounds: int = 8
    round_target: int = 4 << 20


class PrimaryMachine:
    """`handle(event, now)` returns the effects, in the order in which they must be carried out."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self.phase = Phase.NEW
        self.pairing = Pairing.NONE
        self.taken = 0
        self.acked = 0
        self._capturing = False
        self._output_waits = False
        self.pacer = Pacer(tuning.pace)
        self._rounds = 0
        self._has_peer = True
        self._after_claim: tuple[Outcome, str] | None = None
        self._lost_reason = ""
        self._claim_since = 0.0
        self._paused = False
        self._pair_after_solo = False
        self._gone = False
        self._switching = False
        self._switch_until = 0.0

    # The main path reads from here.
    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; IllegalEvent, with nothing changed, when it cannot happen here."""
        if self.phase is Phase.DONE:
            return []
        match event:
            case Started():
                return self._started(event)
            case Claimed():
                return self._claimed(event, now)
            case Welcomed():
                self._expect(event, Phase.CONNECTING)
                self.phase = Phase.BULK
                return [Report("starting", "first sync"), StartBulk()]
            case BulkDone():
                self._expect(event, Phase.BULK)
                self.phase = Phase.ROUNDS
                return [TakeRound()]
            case RoundDone():
                return self._round_done(event)
            case HoldInstalled():
                self._expect(event, Phase.HOLDING)
                self.phase = Phase.EPOCHS
                return self._take()
            case Captured():
                return self._captured(event, now)
            case Acked():
                return self._acked(event, now)
            case OfferStored():
                return self._offer_stored()
            case OutputPending():
                return self._output_pending(now)
            case Tick():
                return self._tick(now)
            case PeerLost():
                return self._peer_lost(event, now)
            case StopAsked():
                return self._stop_asked(event, now)
            case SwitchAsked():
                return self._switch_asked(event, now)
            case Relieved():
                return self._relieved(event)
            case VmDied():
                return self._vm_died(event, now)
            case Failed():
                return self._leave(Outcome.FAILED, event.reason, now)
            case Released():
                self._expect(event, Phase.RELEASING)
                return self._finish()
        raise IllegalEvent(f"{type(event).__name__} does not concern a primary")

    @property
    def protected(self) -> bool:
        """True when the secondary may take over: paired, and a commit exists."""
        return self.phase is Phase.EPOCHS and self.pairing is Pairing.PAIRED

    def _expect(self, event: Event, *phases: Phase) -> None:
        if self.phase not in phases:
            raise IllegalEvent(f"{type(event).__name__} in phase {self.phase.value}")

    # -- getting ready ----------------------------------------------------------------------------

    def _started(self, event: Started) -> list[Effect]:
        self._expect(event, Phase.NEW)
        self.phase = Phase.GAINING
        self._has_peer = event.has_peer
        purpose = Purpose.CREATE if event.create else Purpose.SOLO
        return [Report("starting", "asking the arbiter"), StartClaim(purpose)]

    def _round_done(self, event: RoundDone) -> list[Effect]:
        self._expect(event, Phase.ROUNDS)
        self._rounds += 1
        small = event.dirty_bytes <= self.tuning.round_target
        if not small and self._rounds < self.tuning.max_rounds:
            return [TakeRound()]
        self.phase = Phase.HOLDING
        return [InstallHold()]

    # -- epochs and output commit -------------------------------------------------------------------

    def _take(self) -> list[Effect]:
        self._capturing = True
        self._output_waits = False
        self.taken += 1
        return [TakeCheckpoint(self.taken)]

    def _captured(self, event: Captured, now: float) -> list[Effect]:
        if not self._capturing or event.epoch != self.taken:
            raise IllegalEvent(f"Captured({event.epoch}) while epoch {self.taken} is current")
        self._capturing = False
        self.pacer.captured(now if event.resumed is None else event.resumed, event.pause, event.size)
        if self.phase is not Phase.EPOCHS:
            return []
        return self._schedule(now)

    def _acked(self, event: Acked, now: float) -> list[Effect]:
        if self.phase not in (Phase.EPOCHS, Phase.HANDING):
            return []  # the claim decides now; an ack that comes late changes nothing
        if not self.acked < event.epoch <= self.taken:
            raise IllegalEvent(f"Acked({event.epoch}), but {self.taken} were taken")
        self.acked = event.epoch
        self.pacer.committed(now)
        effects: list[Effect] = [ReleaseOutput(event.epoch)]
        if self.phase is Phase.HANDING:
            return [*effects, HandOver()]
        if self.pairing is Pairing.NONE:
            self.pairing = Pairing.NAMED
            effects.append(NameOffer(event.epoch))
        return effects + self._schedule(now)

    def _output_pending(self, now: float) -> list[Effect]:
        self._output_waits = True
        return self._schedule(now) if self.phase is Phase.EPOCHS else []

    def _schedule(self, now: float) -> list[Effect]:
        if self._capturing or self.acked < self.taken:
            return []
        if self._switching:
            return self._take_last(now)
        due = self.pacer.due(self._output_waits)
        return self._take() if due <= now else [WakeAt(due)]

    def _tick(self, now: float) -> list[Effect]:
        if self.phase is Phase.EPOCHS:
            return self._schedule(now)
        if self.phase is Phase.HANDING:
            if now < self._switch_until:
                return [WakeAt(self._switch_until)]
            return self._leave(Outcome.SOLO, "the secondary did not take over in time", now)
        if self.phase is Phase.CLAIMING and not self._paused and not self._gone:
            bound = self._claim_since + self.tuning.hold_bound
            if now < bound:
                return [WakeAt(bound)]
            self._paused = True
            return [
                PauseVm(),
                Report(
                    "failing_over",
                    "neither the secondary nor the arbiter answers; the VM is paused until one "
                    "does, so that nothing it does can be lost",
                ),
            ]
        return []

    # -- pairing ------------------------------------------------------------------------------------

    def _offer_stored(self) -> list[Effect]:
        if self.phase is not Phase.EPOCHS:
            return []
        if self.pairing is not Pairing.NAMED:
            raise IllegalEvent("OfferStored without an offer")
        self.pairing = Pairing.ASKED
        return [StartClaim(Purpose.PAIR)]

    # -- planned switchover ---------------------------------------------------------------------------

    def _switch_asked(self, event: SwitchAsked, now: float) -> list[Effect]:
        if not self.protected:
            raise IllegalEvent("a switchover was asked for, but the VM is not protected")
        self._switching = True
        return [Report("failing_over", "planned switchover"), *self._schedule(now)]

    def _take_last(self, now: float) -> list[Effect]:
        self.phase = Phase.HANDING
        self._paused = True  # from here on only ResumeVm, after a won claim, lets the VM run
        self._switch_until = now + self.tuning.switch_bound
        self._capturing = True
        self.taken += 1
        return [TakeCheckpoint(self.taken, last=True), WakeAt(self._switch_until)]

    def _relieved(self, event: Relieved) -> list[Effect]:
        self._expect(event, Phase.HANDING)
        self.phase = Phase.DONE
        reason = "the secondary runs the VM now"
        return [KeepMemory(), DropPeer(), Finish(Outcome.HANDED_OVER, reason)]

    # -- verdicts -----------------------------------------------------------------------------------

    def _claimed(self, event: Claimed, now: float) -> list[Effect]:
        if not event.won:
            return self._claim_not_won(event)
        if self.phase is Phase.GAINING:
            if self._has_peer:
                self.phase = Phase.CONNECTING
                return [Connect()]
            outcome, reason = self._after_claim or (Outcome.SOLO, "holds the right to run alone")
            return self._release(outcome, reason)
        if self.phase is Phase.EPOCHS and self.pairing is Pairing.ASKED:
            self.pairing = Pairing.PAIRED
            return [Report("protected", "the secondary holds a commit and the arbiter knows")]
        if self.phase is Phase.CLAIMING:
            if self._pair_after_solo:
                # This verdict belongs to the pairing that was under way when we had to leave.
                self._pair_after_solo = False
                return [StartClaim(Purpose.SOLO)]
            outcome, reason = self._after_claim or (Outcome.SOLO, self._lost_reason)
            return self._release(outcome, reason)
        raise IllegalEvent(f"Claimed in phase {self.phase.value}")

    def _claim_not_won(self, event: Claimed) -> list[Effect]:
        if event.halted and self.phase is Phase.GAINING:
            self.phase = Phase.DONE
            return [Finish(Outcome.FAILED, event.reason)]
        if event.halted:
            self.phase = Phase.DONE
            pause: list[Effect] = [] if self._gone else [PauseVm()]
            return [
                *pause,
                Report("fenced", event.reason),
                Finish(Outcome.FAILED, event.reason),
            ]
        self.phase = Phase.DONE
        kill: list[Effect] = [] if self._gone else [KillVm()]
        return [
            *kill,
            DropPeer(),
            Report("fenced", event.reason),
            Finish(Outcome.FENCED, event.reason),
        ]

    # -- leaving ------------------------------------------------------------------------------------

    def _peer_lost(self, event: PeerLost, now: float) -> list[Effect]:
        outcome = Outcome.SOLO if self.pairing is not Pairing.NONE else Outcome.FAILED
        return self._leave(outcome, event.reason, now)

    def _stop_asked(self, event: StopAsked, now: float) -> list[Effect]:
        reason = "suspended on request" if event.suspend else "turned off on request"
        return [Farewell(reason), *self._leave(Outcome.DETACHED, reason, now)]

    def _leave(self, outcome: Outcome, reason: str, now: float) -> list[Effect]:
        """Give up the secondary: at once where no pair was named, else by winning a claim."""
        if self.phase in (Phase.CLAIMING, Phase.RELEASING):
            return []
        if self.phase is Phase.GAINING:
            self._has_peer = False
            if outcome is Outcome.DETACHED:
                self._after_claim = (outcome, reason)
            return [DropPeer()]
        if self.pairing is Pairing.NONE:
            return [DropPeer(), *self._release(outcome, reason)]
        self.phase = Phase.CLAIMING
        self._after_claim, self._lost_reason = (outcome, reason), reason
        self._claim_since = now
        effects: list[Effect] = [DropPeer(), Report("failing_over", reason)]
        if self.pairing is Pairing.ASKED:
            self._pair_after_solo = True
        else:
            effects.append(StartClaim(Purpose.SOLO))
        return [*effects, WakeAt(now + self.tuning.hold_bound)]

    def _vm_died(self, event: VmDied, now: float) -> list[Effect]:
        """Let the secondary take over; a guest that powered itself off ends the pair instead, and
        also that only by a won claim: the secondary may be taking over at this moment."""
        if not event.powered_off:
            self.phase = Phase.DONE
            return [
                Farewell(event.reason, claim=True),
                DropPeer(),
                Finish(Outcome.FAILED, event.reason),
            ]
        self._gone = True
        farewell: list[Effect] = [Farewell(event.reason)]
        if self.phase in (Phase.CLAIMING, Phase.RELEASING):
            self._after_claim = (Outcome.DETACHED, event.reason)
            return farewell if self.phase is Phase.CLAIMING else self._finish()
        if self.pairing is Pairing.NONE and self.phase is not Phase.GAINING:
            self.phase = Phase.DONE
            return [*farewell, DropPeer(), Finish(Outcome.DETACHED, event.reason)]
        if self.phase is Phase.GAINING:
            self.phase = Phase.DONE
            return [Finish(Outcome.FAILED, event.reason)]
        return [*farewell, *self._leave(Outcome.DETACHED, event.reason, now)]

    def _release(self, outcome: Outcome, reason: str) -> list[Effect]:
        self.phase = Phase.RELEASING
        self._after_claim = (outcome, reason)
        if self._gone:
            return self._finish()
        resume: list[Effect] = [ResumeVm()] if self._paused else []
        self._paused = False
        return [ReleaseAll(), *resume]

    def _finish(self) -> list[Effect]:
        assert self._after_claim is not None
        outcome, reason = self._after_claim
        self.phase = Phase.DONE
        state = "disabled" if outcome is Outcome.DETACHED else "need_secondary"
        return [Report(state, reason), Finish(outcome, reason)]
