"""Planted bugs in the core, each of which takes away or turns round a line that upholds an invariant.

`./dev sim --mutants` runs schedules over each of them until one is violated. A bug that is not found
would mean that the simulator looks the wrong way.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from kvmft.sim.planted import Mutant, schedule_with

MUTANTS = (
    Mutant(
        "output leaves before its commit", "primary",
        "            return []\n        return self._schedule(now)\n\n    def _acked",
        "            return []\n        return [ReleaseOutput(event.epoch), *self._schedule(now)]\n\n"
        "    def _acked",
    ),
    Mutant(
        "a pair is left without a claim", "primary",
        "        if self.pairing is Pairing.NONE:\n            return [DropPeer(), *self._release",
        "        if self.pairing is not Pairing.ASKED:\n            return [DropPeer(), *self._release",
    ),
    Mutant(
        "a lost primary opens its output", "primary",
        "[] if self._gone else [KillVm()]", "[] if self._gone else [ReleaseAll()]",
    ),
    Mutant(
        "a primary takes lost for won", "primary",
        "        if not event.won:\n            return self._claim_not_won(event)",
        "        if event.halted:\n            return self._claim_not_won(event)",
    ),
    Mutant(
        "a pairing's verdict counts as the right to run alone", "primary",
        "                self._pair_after_solo = False\n"
        "                return [StartClaim(Purpose.SOLO)]",
        "                self._pair_after_solo = False",
    ),
    Mutant(
        "a VM that was paused at the bound stays so", "primary",
        "[ResumeVm()] if self._paused else []", "[]",
    ),
    Mutant(
        "a switchover that is late ends without a claim", "primary",
        'self._leave(Outcome.SOLO, "the secondary did not take over in time", now)',
        'self._release(Outcome.SOLO, "the secondary did not take over in time")',
    ),
    Mutant(
        "a switchover lets the VM run on", "primary",
        "TakeCheckpoint(self.taken, last=True)", "TakeCheckpoint(self.taken)",
    ),
    Mutant(
        "naming a pair is not remembered", "primary",
        "self.pairing = Pairing.NAMED", "self.pairing = Pairing.NONE",
    ),
    Mutant(
        "the pairing is not asked for", "primary",
        "self.pairing = Pairing.ASKED\n        return [StartClaim(Purpose.PAIR)]",
        "self.pairing = Pairing.PAIRED\n        return []",
    ),
    Mutant(
        "an ack is sent before the commit", "secondary",
        "        self._staged_epoch = event.epoch\n        return [Commit(event.epoch)]",
        "        self._staged_epoch = event.epoch\n"
        "        return [SendAck(event.epoch), Commit(event.epoch)]",
    ),
    Mutant(
        "an offer is acknowledged before it is stored", "secondary",
        "return [PersistOffer(event.record)]", "return [SendOfferAck(), PersistOffer(event.record)]",
    ),
    Mutant(
        "a commit is loaded before it is applied", "secondary",
        "if self.applied != self._staged_epoch:", "if self.applied > self._staged_epoch:",
    ),
    Mutant(
        "a commit is not applied", "secondary",
        "return [SendAck(event.epoch), Apply(event.epoch)]",
        "self.applied = event.epoch; return [SendAck(event.epoch)]",
    ),
    Mutant(
        "recovery trusts the memory that it finds", "secondary",
        "        return [Apply(event.epoch), WakeAt(self._wait_until)]",
        "        self.applied = event.epoch\n        return [WakeAt(self._wait_until)]",
    ),
    Mutant(
        "a secondary takes lost for won", "secondary",
        "        if not event.won:\n            return [DropPeer(), *self._give_up(event.reason)]",
        "",
    ),
    Mutant(
        "a secondary does not ask before it runs", "secondary",
        "        self.phase = StandbyPhase.CLAIMING\n        return [StartClaim(Purpose.SOLO)]\n\n"
        "    def _claimed",
        "        self.phase = StandbyPhase.ACTIVATING\n        return [Run()]\n\n    def _claimed",
    ),
    Mutant(
        "a standby runs without its device state", "secondary",
        "        return [Load(self.committed)]",
        "        self.phase = StandbyPhase.CLAIMING\n        return [StartClaim(Purpose.SOLO)]",
    ),
    Mutant(
        "packets are drawn away from a VM that may still run", "secondary",
        "[DrawInput()] if event.how is Loss.FAREWELL else []", "[DrawInput()]",
    ),
    Mutant(
        "a time-out of the arbiter is a win", "arbitration",
        "            return []\n        return [Note(f\"no clear answer",
        "            return []\n        return self._won(self._new, why)\n"
        "        return [Note(f\"no clear answer",
    ),
    Mutant(
        "any record of the expected generation is mine", "arbitration",
        "if current == self._new:", "if current.gen == self._new.gen:",
    ),
    Mutant(
        "a swap whose answer was lost is not recognised", "arbitration",
        "if current == self._new:", "if current is self._new:",
    ),
    Mutant(
        "what was written before is not recognised", "arbitration",
        "if current in self.holdings.written and current.mode is Mode.SOLO:",
        "if current in () and current.mode is Mode.SOLO:",
    ),
    Mutant(
        "a claim is not written ahead", "arbitration",
        "        return [Persist(self.holdings)]\n", "        return []\n",
    ),
    Mutant(
        "a claim starts from whatever is there", "arbitration",
        "if current in self.holdings.bases and current not in (self._base, self._new):",
        "if current not in (self._base, self._new):",
    ),
    Mutant(
        "a pair that was never written is not burnt", "arbitration",
        "records.solo(older, me, peer, nonces(), generation)",
        "records.solo(older, me, peer, nonces())",
    ),
    Mutant(
        "a lost record is a win", "arbitration",
        'return self._halt(None, "the arbiter has no record of this VM any more")',
        'return self._won(self._new, "planted")',
    ),
    Mutant(
        "a solo record does not raise the generation", "records",
        "number = base.gen + 1 if gen is None else gen", "number = base.gen",
    ),
    Mutant(
        "silence is never noticed", "detector",
        "return self.silent_for(now) > limit", "return self.silent_for(now) > 1e9",
    ),
    Mutant(
        "beacons excuse a silent FT log for ever", "detector",
        "limit = max(self.timeout, self.log_timeout) if lives", "limit = 1e9 if lives",
    ),
    Mutant(
        "beacons are not listened to", "detector",
        "limit = max(self.timeout, self.log_timeout) if lives", "limit = self.timeout if lives",
    ),
    Mutant(
        "one beacon counts for ever", "detector",
        "return self._beacon is not None and now - self._beacon <= self.timeout",
        "return self._beacon is not None",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The first schedule that violated something: which invariant, and how many it took."""

    invariant: str
    schedules: int
    text: str


def hunt(mutant: Mutant, bound: int) -> Found | None:
    """Run schedules over a core with the bug; None when `bound` of them show nothing. The process
    holds the changed core afterwards, so it must be one of its own. Raises Drifted."""
    schedule = schedule_with(mutant)
    for seed in range(bound):
        violations = schedule.run(seed).violations
        if violations:
            return Found(violations[0].split(":")[0], seed + 1, violations[0])
    return None


def hunt_all(bound: int, jobs: int | None = None) -> Iterator[tuple[str, Found | None]]:
    """Hunt every mutant in a process of its own; yields name and what was found, in order."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs or os.cpu_count(), spawn, max_tasks_per_child=1) as pool:
        results = [pool.submit(hunt, mutant, bound) for mutant in MUTANTS]
        for mutant, result in zip(MUTANTS, results, strict=True):
            yield mutant.name, result.result()
