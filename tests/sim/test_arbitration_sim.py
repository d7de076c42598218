"""A seeded simulation of two sides and an arbiter: the production claims under delayed, lost and
duplicated messages, crashes and restarts. Checked after every step: at most one side has the right
to run alone at a time (I1). Planted bugs show that the check can fail."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from kvmft.core import records
from kvmft.core.arbitration import (
    Claim,
    ClaimEffect,
    Decided,
    Holdings,
    Persist,
    Reply,
    SendTxn,
    Verdict,
)
from kvmft.core.records import Record

CLUSTER = "c" * 32
SCHEDULES = 4000
STEPS = 120


@dataclass
class Side:
    """One side: what is durable, its running claim, and whether it runs visibly."""

    name: str
    peer: str
    disk: Holdings
    runs_alone: bool = False
    gone: bool = False
    claim: Claim | None = None
    seen: Record | None = None


@dataclass
class World:
    """Two sides whose pairing may or may not have reached the arbiter, and messages under way."""

    rng: random.Random
    make_claim: Callable[[World, Side], Claim]
    value: Record = field(init=False)
    sides: dict[str, Side] = field(init=False)
    requests: list[tuple[str, Claim, SendTxn]] = field(default_factory=list)
    replies: list[tuple[str, Claim, int, Reply]] = field(default_factory=list)

    def __post_init__(self) -> None:
        numbers = itertools.count(1)
        self.nonce = lambda: f"{next(numbers):032x}"
        first = records.first(CLUSTER, "a", "b", self.nonce())
        pair = records.paired(first, "a", "b", self.nonce(), 1)
        self.sides = {
            "a": Side("a", "b", Holdings((first, pair))),
            "b": Side("b", "a", Holdings((pair,))),
        }
        self.value = first
        if self.rng.random() < 0.7:
            self.value = pair
        else:
            # The pairing's swap is still on its way and may apply at any time.
            stray = Claim.pair(CLUSTER, "a", self.sides["a"].disk, first, pair)
            self.requests.append(("a", stray, SendTxn(0, first, pair, 0)))

    def carry_out(self, side: Side, effects: list[ClaimEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Persist):
                side.disk = effect.holdings
            elif isinstance(effect, SendTxn) and side.claim is not None:
                self.requests.append((side.name, side.claim, effect))
            elif isinstance(effect, Decided):
                side.claim = None
                if effect.verdict is Verdict.WON:
                    side.runs_alone = True
                else:
                    side.gone = True

    def step(self) -> None:
        rng = self.rng
        side = self.sides[rng.choice("ab")]
        action = rng.random()
        if action < 0.2 and side.claim is None and not side.runs_alone and not side.gone:
            side.claim = self.make_claim(self, side)
            self.carry_out(side, side.claim.start())
        elif action < 0.55 and self.requests:
            self.arbiter_handles(self.requests.pop(rng.randrange(len(self.requests))))
        elif action < 0.8 and self.replies:
            self.deliver(self.replies.pop(rng.randrange(len(self.replies))))
        elif action < 0.86 and self.replies:
            self.replies.pop(rng.randrange(len(self.replies)))
        elif action < 0.93 and side.claim is not None:
            self.carry_out(side, side.claim.on_unknown(side.claim._txn, "time-out"))
        elif side.claim is not None:
            side.claim = None  # a crash: only what is durable is left

    def arbiter_handles(self, message: tuple[str, Claim, SendTxn]) -> None:
        name, claim, txn = message
        if self.rng.random() < 0.15:
            self.requests.append(message)  # duplicated: it applies again later
        if txn.base == self.value:
            self.value = txn.new
            reply = Reply(True, None)
        else:
            reply = Reply(False, self.value.to_bytes())
        self.sides[name].seen = self.value
        self.replies.append((name, claim, txn.txn, reply))

    def deliver(self, message: tuple[str, Claim, int, Reply]) -> None:
        name, claim, txn, reply = message
        side = self.sides[name]
        if side.claim is claim:
            self.carry_out(side, claim.on_reply(txn, reply))


def honest(world: World, side: Side) -> Claim:
    return Claim.solo(CLUSTER, side.name, side.peer, side.disk, world.nonce)


def from_whatever_is_there(world: World, side: Side) -> Claim:
    """Planted: re-read the arbiter and swap from what is found."""
    base = world.value
    return Claim.solo(CLUSTER, side.name, side.peer, Holdings((base,), side.disk.written),
                      world.nonce)  # fmt: skip


class WinsWithoutAnAnswer(Claim):
    """Planted: a time-out counts as a win."""

    def on_unknown(self, txn: int, why: str) -> list[ClaimEffect]:
        return self._won(self._new, why)


class TakesAnyRecordForItsOwn(Claim):
    """Planted: a swap that was refused counts as won when the generation is the expected one."""

    def on_reply(self, txn: int, reply: Reply) -> list[ClaimEffect]:
        if reply.current is not None:
            current = records.from_bytes(reply.current, CLUSTER)
            if current.gen == self._new.gen:
                return self._won(current, "planted")
        return super().on_reply(txn, reply)


def planted(kind: type[Claim]) -> Callable[[World, Side], Claim]:
    return lambda world, side: kind.solo(CLUSTER, side.name, side.peer, side.disk, world.nonce)


def violations(make: Callable[[World, Side], Claim], schedules: int) -> tuple[int, int]:
    """Schedules in which both sides ran alone, and schedules in which one took over."""
    bad = taken = 0
    for seed in range(schedules):
        world = World(random.Random(seed), make)
        for __ in range(STEPS):
            world.step()
            if all(side.runs_alone for side in world.sides.values()):
                bad += 1
                break
        taken += any(side.runs_alone for side in world.sides.values())
    return bad, taken


def test_no_schedule_lets_both_sides_run_alone() -> None:
    bad, taken = violations(honest, SCHEDULES)
    assert bad == 0
    assert taken > SCHEDULES // 2, "the schedules hardly ever decided anything"


@pytest.mark.parametrize(
    "make",
    [from_whatever_is_there, planted(WinsWithoutAnAnswer), planted(TakesAnyRecordForItsOwn)],
    ids=["claims from whatever is there", "a time-out is a win", "any record is its own"],
)
def test_a_planted_bug_is_found(make: Callable[[World, Side], Claim]) -> None:
    bad, __ = violations(make, 500)
    assert bad > 0
