"""Planted bugs: one-line changes of the core that the simulator must find.

Each removes or turns round a line that upholds an invariant. The old text must be in the file exactly
once, so that a mutant that no longer fits its file is an error and not a silent pass.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in `module` of `kvmft.core`; `why` says what the line upholds."""

    name: str
    module: str
    old: str
    new: str
    why: str


MUTANTS = (
    Mutant("release-without-ack", "primary",
           "        self._capturing = False\n        self._resumed_at",
           "        self._capturing = False\n        self.acked = event.epoch\n"
           "        if self.phase is Phase.EPOCHS:\n"
           "            return [ReleaseOutput(event.epoch), *self._schedule(now)]\n"
           "        self._resumed_at",
           "I2: output leaves only after the commit"),
    Mutant("leave-asked-pair-without-claim", "primary",
           "        if self.pairing is Pairing.NONE:\n            return [DropPeer(), *self._release",
           "        if self.pairing in (Pairing.NONE, Pairing.ASKED):\n"
           "            return [DropPeer(), *self._release",
           "I1: the same, while the pair's record is being written"),
    Mutant("leave-pair-without-claim", "primary",
           "        if self.pairing is Pairing.NONE:\n            return [DropPeer(), *self._release",
           "        if self.pairing in (Pairing.NONE, Pairing.PAIRED):\n"
           "            return [DropPeer(), *self._release",
           "I1: the same, of a pair that stands"),
    Mutant("lost-claim-goes-on", "primary",
           "        if not event.won:\n            return self._claim_not_won(event)",
           "        if event.halted:\n            return self._claim_not_won(event)",
           "I1: a lost claim ends in KillVm"),
    Mutant("pair-verdict-taken-for-solo", "primary",
           "                return [StartClaim(Purpose.SOLO)]\n            outcome, reason",
           "                pass\n            outcome, reason",
           "I1: winning the pair's record is no right to run alone"),
    Mutant("pair-without-stored-offer", "primary",
           "            effects.append(NameOffer(event.epoch))",
           "            effects += [NameOffer(event.epoch), StartClaim(Purpose.PAIR)]\n"
           "            self.pairing = Pairing.ASKED",
           "I4: PAIRED is written only after the secondary stored its record"),
    Mutant("handover-before-ack", "primary",
           "        return [TakeCheckpoint(self.taken, last=True), WakeAt(self._switch_until)]",
           "        return [TakeCheckpoint(self.taken, last=True), HandOver(),"
           " WakeAt(self._switch_until)]",
           "I2: the secondary is told to take over only when it holds everything"),
    Mutant("switchover-does-not-stop", "primary",
           "        return [TakeCheckpoint(self.taken, last=True), WakeAt(self._switch_until)]",
           "        return [TakeCheckpoint(self.taken, last=False), WakeAt(self._switch_until)]",
           "I1: after the last checkpoint the VM stays stopped"),
    Mutant("switchover-gives-up-without-claim", "primary",
           '            return self._leave(Outcome.SOLO, "the secondary did not take over in time", now)',
           '            return self._release(Outcome.SOLO, "the secondary did not take over in time")',
           "I1: a failed switchover goes on only after a won claim"),
    Mutant("stay-paused-after-won-claim", "primary",
           "        resume: list[Effect] = [ResumeVm()] if self._paused else []",
           "        resume: list[Effect] = []",
           "I6: a VM that was paused at the bound runs on"),
    Mutant("power-off-without-claim", "primary",
           "        return [*farewell, *self._leave(Outcome.DETACHED, event.reason, now)]",
           "        self.phase = Phase.DONE\n"
           "        return [*farewell, DropPeer(), Finish(Outcome.DETACHED, event.reason)]",
           "I1: a guest's power-off ends the pair only by a won claim"),
    Mutant("ack-before-commit", "secondary",
           "        self._staged_epoch = event.epoch\n        return [Commit(event.epoch)]",
           "        self._staged_epoch = event.epoch\n"
           "        return [SendAck(event.epoch), Commit(event.epoch)]",
           "I4: acknowledged means committed"),
    Mutant("apply-before-commit", "secondary",
           "        self._staged_epoch = event.epoch\n        return [Commit(event.epoch)]",
           "        self._staged_epoch = event.epoch\n"
           "        return [Apply(event.epoch), Commit(event.epoch)]",
           "I3: nothing of a checkpoint is applied before it is committed"),
    Mutant("load-before-applied", "secondary",
           "        if self.applied != self._staged_epoch:\n            return []",
           "        if False:\n            return []",
           "I3: the last commit is applied whole before it is loaded"),
    Mutant("run-while-claiming", "secondary",
           "        self.phase = StandbyPhase.CLAIMING\n        return [StartClaim(Purpose.SOLO)]",
           "        self.phase = StandbyPhase.CLAIMING\n        return [Run(), StartClaim(Purpose.SOLO)]",
           "I1: a standby runs only after a won claim"),
    Mutant("lost-claim-runs", "secondary",
           "        if not event.won:\n            self.phase",
           "        if not event.won and False:\n            self.phase",
           "I1: a standby that lost never runs"),
    Mutant("recovered-commit-is-not-applied", "secondary",
           "        return [Apply(event.epoch), WakeAt(self._wait_until)]",
           "        self.applied = event.epoch\n        return [WakeAt(self._wait_until)]",
           "I4: after a restart the journal is applied again"),
    Mutant("recovered-winner-is-given-up", "secondary",
           "        if event.stage is Stage.RUNNING:",
           "        if False:",
           "I6: a VM that ran when its worker was killed goes on"),
    Mutant("claim-forgotten-when-qemu-dies", "secondary",
           "        if claimed:\n",
           "        if False:\n",
           "I6: a claim that may be won is not thrown away"),
    Mutant("closed-link-waits-for-ever", "secondary",
           "                if self.phase is StandbyPhase.WAITING and now >= self._wait_until:",
           "                if False:",
           "liveness: a secondary takes over when the primary's agent does not come back"),
    Mutant("claim-from-what-stands", "arbitration",
           "        if current in self.holdings.bases and current not in (self._base, self._new):",
           "        if current not in (self._base, self._new):",
           "I1: a side claims only from records that it holds"),
    Mutant("lost-taken-for-won", "arbitration",
           "            return self._decide(Verdict.LOST, current, reason, self.holdings)",
           "            return self._won(current, reason)",
           "I1: a newer generation of somebody else is a loss"),
    Mutant("any-solo-is-mine", "arbitration",
           "        if current in self.holdings.written and current.mode is Mode.SOLO:",
           "        if current.mode is Mode.SOLO:",
           "I1: a record is ours only if we wrote it ahead"),
    Mutant("unknown-taken-for-won", "arbitration",
           "        if self.decided or txn != self._txn:\n            return []\n"
           "        return [Note(",
           "        if self.decided or txn != self._txn:\n            return []\n"
           "        return self._won(self._new, why) + [Note(",
           "I1: no answer decides nothing"),
    Mutant("no-write-ahead", "arbitration",
           "        self.holdings = self.holdings.with_written(self._new)",
           "        pass",
           "liveness: a claim whose answer was lost is recognised later"),
    Mutant("named-pair-not-burnt", "arbitration",
           "        generation = base.gen + 1\n",
           "        generation = None\n",
           "liveness: a secondary of a pair that never came about learns that it lost"),
    Mutant("old-bases-kept-after-win", "arbitration",
           "return self._decide(Verdict.WON, record, reason, Holdings((record,), ()))",
           "return self._decide(Verdict.WON, record, reason, self.holdings)",
           "liveness: after a won claim there is one record to go on from"),
)  # fmt: skip


def source_of(mutant: Mutant) -> str:
    """The mutated source; ValueError when the mutant does not fit its file any more."""
    spec = importlib.util.find_spec(f"kvmft.core.{mutant.module}")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    found = source.count(mutant.old)
    if found != 1:
        raise ValueError(f"{mutant.name}: its old text is {found} times in {mutant.module}.py")
    return source.replace(mutant.old, mutant.new)


def plant(mutant: Mutant) -> None:
    """Make `kvmft.core.<module>` the mutated one; call it before the simulator is imported."""
    name = f"kvmft.core.{mutant.module}"
    spec = importlib.util.find_spec(name)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(source_of(mutant), f"<{mutant.name}>", "exec"), module.__dict__)
    setattr(sys.modules["kvmft.core"], mutant.module, module)
