"""Claiming the right to run: the rules around the arbiter's compare-and-swap, without any I/O.

Why it is safe. The arbiter holds one value; every change replaces exactly the value that the
claimant named, so of two sides that claim from the same record one fails. A side claims only from
records it holds (`Holdings.bases`), never from what it happens to read: a stale side has no base
that still stands, so it can only lose. What it sends is durable first (`Persist`), so an answer that
was lost is recognised later by its nonce. An answer that never came decides nothing: the same
transaction is sent again, for ever, because a request that was held back may still apply.

=====================================  ==================================================
the arbiter's value                    verdict
=====================================  ==================================================
swapped                                WON
what I sent, or a SOLO I sent before   WON (the first answer was lost)
another base that I hold               claim again, from that base
generation above all my bases          LOST, for good
generation not above, not mine         UNDECIDED: somebody's swap is still on its way; again
missing, unreadable, other cluster     HALT: a person must look
from the past, or of another arbiter   HALT: it was wiped, restored or replaced (position.py)
no answer                              UNKNOWN: the same transaction again
=====================================  ==================================================

The row about the past comes first: an answer of an arbiter whose history went back proves nothing,
also when it says that it swapped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from kvmft.core import records
from kvmft.core.position import Position, broken_history, newest
from kvmft.core.records import Mode, Record
from kvmft.errors import KvmftError

FIRST_DELAY_MS = 50
LAST_DELAY_MS = 1000


class Verdict(Enum):
    """How a claim ended."""

    WON = "won"
    LOST = "lost"
    HALT = "halt"


@dataclass(frozen=True)
class Holdings:
    """What one side holds durably: records it may claim from, records it may have written, and
    how far it saw the arbiter's history."""

    bases: tuple[Record, ...] = ()
    written: tuple[Record, ...] = ()
    seen: Position | None = None

    def to_bytes(self) -> bytes:
        """For the claims file."""
        value: dict[str, object] = {
            "bases": [record.to_bytes().decode() for record in self.bases],
            "written": [record.to_bytes().decode() for record in self.written],
        }
        if self.seen is not None:
            value["seen"] = {"arbiter": self.seen.arbiter, "revision": self.seen.revision}
        return json.dumps(value, indent=1).encode()

    def with_written(self, record: Record) -> Holdings:
        """The same, with one more record that may have been written."""
        return replace(self, written=(*self.written, record))

    def with_base(self, record: Record) -> Holdings:
        """The same, with one more record that may be claimed from."""
        return replace(self, bases=(*self.bases, record))

    def with_seen(self, position: Position | None) -> Holdings:
        """The same, with the arbiter's history seen at least up to `position`."""
        return replace(self, seen=newest(self.seen, position))


def holdings_from_bytes(data: bytes, cluster: str) -> Holdings:
    """Read the claims file; KvmftError when it is damaged (then this side claims nothing)."""
    try:
        value = json.loads(data)
        bases = tuple(records.from_bytes(text.encode(), cluster) for text in value["bases"])
        written = tuple(records.from_bytes(text.encode(), cluster) for text in value["written"])
        seen = value.get("seen")
        position = None if seen is None else Position(str(seen["arbiter"]), int(seen["revision"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KvmftError(
            "claims_damaged",
            f"The claims file is damaged: {error!r}.",
            "This side will not claim; turn FT off and on again on the side that runs.",
        ) from error
    return Holdings(bases, written, position)


@dataclass(frozen=True)
class Persist:
    """Store `holdings` durably before the effects that follow are carried out."""

    holdings: Holdings


@dataclass(frozen=True)
class SendTxn:
    """Ask the arbiter to replace `base` (None: no value) by `new`, after `delay_ms`."""

    txn: int
    base: Record | None
    new: Record
    delay_ms: int


@dataclass(frozen=True)
class Note:
    """Something for the events log."""

    text: str


@dataclass(frozen=True)
class Decided:
    """The claim is over; `record` is the arbiter's value as far as it is known."""

    verdict: Verdict
    record: Record | None
    reason: str


ClaimEffect = Persist | SendTxn | Note | Decided


@dataclass(frozen=True)
class Reply:
    """The arbiter's answer: whether it swapped, and otherwise the value it has (None: none).

    `position` is where it was in its history; `before` the latest position that this side had seen
    when the request went out, so that answers may come in any order.
    """

    succeeded: bool
    current: bytes | None
    position: Position | None = None
    before: Position | None = None


class Claim:
    """One attempt to change the record. Make it with `create`, `pair` or `solo`."""

    def __init__(
        self,
        cluster: str,
        me: str,
        holdings: Holdings,
        base: Record | None,
        make: Callable[[Record], Record],
        new: Record,
        write_ahead: bool,
    ) -> None:
        self._cluster = cluster
        self._me = me
        self._make = make
        self._base = base
        self._new = new
        self._write_ahead = write_ahead
        self._txn = 1
        self._delay = FIRST_DELAY_MS
        self.holdings = holdings
        self.decided: Decided | None = None

    @classmethod
    def create(cls, cluster: str, me: str, peer: str, nonces: Callable[[], str]) -> Claim:
        """Turning FT on: there must be no record yet."""
        new = records.first(cluster, me, peer, nonces())

        def never(_base: Record) -> Record:
            raise AssertionError("a creation has no base")

        return cls(cluster, me, Holdings(), None, never, new, write_ahead=True)

    @classmethod
    def solo(
        cls, cluster: str, me: str, peer: str, holdings: Holdings, nonces: Callable[[], str]
    ) -> Claim:
        """The right to run alone, from the newest record held."""
        if not holdings.bases:
            raise KvmftError(
                "nothing_to_claim_from",
                "This side holds no record to claim from.",
                "Its replica needs a new sync; `kvmft enable` on the side that runs.",
            )

        base = max(holdings.bases, key=lambda record: record.gen)
        # Above every base, also where an older one turns out to stand: a pair's record that was named
        # and never written is burnt by this, so that the secondary that holds it learns that it lost.
        generation = base.gen + 1

        def make(older: Record) -> Record:
            return records.solo(older, me, peer, nonces(), generation)

        return cls(cluster, me, holdings, base, make, make(base), write_ahead=True)

    @classmethod
    def pair(cls, cluster: str, me: str, holdings: Holdings, base: Record, named: Record) -> Claim:
        """Make the pair's record, which was named (and stored as a base) before, the arbiter's."""

        def again(_base: Record) -> Record:
            return named

        return cls(cluster, me, holdings, base, again, named, write_ahead=False)

    def start(self) -> list[ClaimEffect]:
        """The first effects."""
        return [*self._write(), self._send(0)]

    def on_unknown(self, txn: int, why: str) -> list[ClaimEffect]:
        """No answer, or an unclear one, to transaction `txn`."""
        if self.decided or txn != self._txn:
            return []
        return [Note(f"no clear answer from the arbiter ({why}); asks the same again"),
                self._again()]  # fmt: skip

    def on_reply(self, txn: int, reply: Reply) -> list[ClaimEffect]:
        """The arbiter's answer to transaction `txn`."""
        if self.decided or txn != self._txn:
            return []
        broken = broken_history(reply.before, reply.position, reply.succeeded)
        if broken is not None:
            return self._halt(None, broken)
        self.holdings = self.holdings.with_seen(reply.position)
        if reply.succeeded:
            return self._won(self._new, "the arbiter swapped the record")
        if reply.current is None:
            return self._halt(None, "the arbiter has no record of this VM any more")
        try:
            current = records.from_bytes(reply.current, self._cluster)
        except KvmftError as error:
            return self._halt(None, str(error))
        if current == self._new:
            return self._won(current, "the arbiter has our record; its first answer was lost")
        if current in self.holdings.written and current.mode is Mode.SOLO:
            return self._won(current, "the arbiter has a record we wrote before")
        return self._other(current)

    def _other(self, current: Record) -> list[ClaimEffect]:
        if self._base is None:
            return self._halt(
                current,
                f"a record of this VM exists already: {current.mode.value} by {current.holder}, "
                f"generation {current.gen}",
            )
        if current in self.holdings.bases and current not in (self._base, self._new):
            self._base, self._new = current, self._make(current)
            self._txn += 1
            return [Note(f"claims from generation {current.gen}"), *self._write(), self._send(0)]
        if current.gen > max(record.gen for record in (*self.holdings.bases, self._base)):
            reason = (
                f"{current.holder} holds generation {current.gen} ({current.mode.value}); "
                f"ours was {self._base.gen}"
            )
            return self._decide(Verdict.LOST, current, reason, self.holdings)
        return [Note(f"undecided: the arbiter is at generation {current.gen}"), self._again()]

    def _write(self) -> list[ClaimEffect]:
        if not self._write_ahead:
            return []
        self.holdings = self.holdings.with_written(self._new)
        return [Persist(self.holdings)]

    def _send(self, delay_ms: int) -> SendTxn:
        return SendTxn(self._txn, self._base, self._new, delay_ms)

    def _again(self) -> SendTxn:
        delay, self._delay = self._delay, min(2 * self._delay, LAST_DELAY_MS)
        return self._send(delay)

    def _won(self, record: Record, reason: str) -> list[ClaimEffect]:
        # Everything older is dead now: the arbiter moved past it by our own hand.
        return self._decide(Verdict.WON, record, reason,
                            Holdings((record,), (), self.holdings.seen))  # fmt: skip

    def _halt(self, record: Record | None, reason: str) -> list[ClaimEffect]:
        return self._decide(Verdict.HALT, record, reason, self.holdings)

    def _decide(
        self, verdict: Verdict, record: Record | None, reason: str, holdings: Holdings
    ) -> list[ClaimEffect]:
        self.decided = Decided(verdict, record, reason)
        self.holdings = holdings
        return [Persist(holdings), self.decided]
