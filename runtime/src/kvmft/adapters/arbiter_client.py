"""Runs claims against the arbiter for one VM: durable first, then the request, from a thread.

At most one request is under way. An arbiter may block for as long as it likes (a hung mount): the
claim is told that there was no answer, and the answer counts when it comes after all, because what
would be asked again is the same.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kvmft.adapters.arbiters import open_arbiter
from kvmft.adapters.durable import remove_durably, write_durably
from kvmft.adapters.reactor import Reactor, Timer
from kvmft.adapters.seen import SEEN_PATH, load_seen
from kvmft.core import records
from kvmft.core.arbitration import (
    Claim,
    ClaimEffect,
    Decided,
    Holdings,
    Note,
    Persist,
    Reply,
    SendTxn,
    Verdict,
    holdings_from_bytes,
)
from kvmft.core.position import Position, newest
from kvmft.core.records import Mode, Record
from kvmft.errors import KvmftError
from kvmft.ports import Arbiter, Unclear, vm_key

PATIENCE = 4.0
"""Seconds without an answer after which people are told."""

PERSIST_RETRY = 0.5
"""Seconds until a claims file that could not be written is tried again."""


def nonce() -> str:
    """128 random bits, as 32 hex digits."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class ArbiterIdentity:
    """Who claims for which VM, and where its claims are kept."""

    cluster: str
    uuid: str
    me: str
    peer: str
    claims_path: str
    arbiter: dict[str, Any]
    seen_path: str = SEEN_PATH


class ArbiterClient:
    """Claims of one side of one VM. `on_decided(won, halted, reason)` ends each of them.

    `on_sent(text, **figures)` hears of every transaction, once, before it goes out; `receipt` is
    what to write down of the last claim's end: who asked from what, how often, and who holds now.
    """

    def __init__(
        self,
        reactor: Reactor,
        identity: ArbiterIdentity,
        on_decided: Callable[[bool, bool, str], None],
        on_note: Callable[[str], None],
        arbiter: Arbiter | None = None,
        on_sent: Callable[..., None] | None = None,
    ) -> None:
        self._reactor = reactor
        self._identity = identity
        self._on_decided = on_decided
        self._on_note = on_note
        self._arbiter = arbiter or open_arbiter(identity.arbiter)
        self._under_way = False
        self._waiting: SendTxn | None = None
        self._patience: Timer | None = None
        self._due: Timer | None = None
        self._on_sent = on_sent or (lambda text, **figures: None)
        self._sent: SendTxn | None = None
        self._times = 0
        self._begun = 0.0
        self._claim: Claim | None = None
        self._named: Record | None = None
        self._attempt = 0
        self._last_note = ""
        self.receipt: dict[str, Any] = {}
        self.holdings = self._load()

    @property
    def generation(self) -> int | None:
        """The newest generation that this side holds."""
        return max((record.gen for record in self.holdings.bases), default=None)

    def create(self) -> None:
        """Turn FT on. Where this side still holds records of an earlier time, it claims from them:
        a record that is ours must not be created a second time."""
        if self.holdings.bases or self.holdings.written:
            self.solo()
            return
        who = self._identity
        self._begin(lambda: Claim.create(who.cluster, who.me, who.peer, nonce))

    def solo(self) -> None:
        """Ask for the right to run alone."""
        who = self._identity
        if not self.holdings.bases and len(self.holdings.written) == 1:
            # A creation whose answer was lost: ask for the very same record again.
            record = self.holdings.written[0]
            self._begin(
                lambda: Claim(who.cluster, who.me, self.holdings, None, lambda base: base,
                              record, write_ahead=False)  # fmt: skip
            )
            return
        self._begin(lambda: Claim.solo(who.cluster, who.me, who.peer, self.holdings, nonce))

    def name_pair(self, epoch: int) -> bytes:
        """Name the pair's record, durably, as one that both sides may claim from; the offer's bytes:
        the record, and how far this side saw the arbiter's history."""
        who = self._identity
        (base,) = self.holdings.bases
        self._named = records.paired(base, who.me, who.peer, nonce(), epoch)
        self._persist(self.holdings.with_base(self._named))
        return encode_offer(self._named, self.holdings.seen)

    def pair(self) -> None:
        """Make the named record the arbiter's."""
        who, named = self._identity, self._named
        assert named is not None
        base = self.holdings.bases[0]
        self._begin(lambda: Claim.pair(who.cluster, who.me, self.holdings, base, named))

    def accept_offer(self, data: bytes) -> None:
        """Secondary: store the record of the pair durably; the only one it may ever claim from."""
        who = self._identity
        record, seen = decode_offer(data, who.cluster)
        if record.mode is not Mode.PAIRED or (record.holder, record.peer) != (who.peer, who.me):
            raise KvmftError(
                "offer_wrong",
                f"The offered record pairs {record.holder} with {record.peer}.",
                "Check host names in the inventory; both hosts must agree.",
            )
        self._persist(Holdings((record,), (), seen))

    def forget(self) -> None:
        """Secondary: drop all records; this side can claim nothing until it is paired again."""
        self.holdings = Holdings()
        remove_durably(self._identity.claims_path)

    def remove(self, seconds: float) -> None:
        """FT was turned off: take the VM's record away if it is still ours, within `seconds`.

        Should it fail, the record stays ours and turning FT on again claims from it.
        """
        if self._arbiter is None or len(self.holdings.bases) != 1 or self._under_way:
            return
        done: list[bool] = []

        def answered(reply: Reply | None, _why: str) -> None:
            done.append(reply is not None and (reply.succeeded or reply.current is None))

        self._ask(self.holdings.bases[0].to_bytes(), None, answered)
        self._reactor.run_until(lambda: bool(done), seconds)
        if done and done[0]:
            self.forget()

    # -- carrying out -------------------------------------------------------------------------------

    def _begin(self, make: Callable[[], Claim]) -> None:
        if self._arbiter is None:
            self._on_decided(False, True, "no arbiter is configured, so nobody may take over")
            return
        try:
            self._claim = make()
        except KvmftError as error:
            self._on_decided(False, True, str(error))
            return
        self._last_note = ""
        self._sent, self._times, self._begun = None, 0, self._reactor.now()
        self.receipt = {}
        self._run(self._claim.start())

    def _run(self, effects: list[ClaimEffect]) -> None:
        for index, effect in enumerate(effects):
            match effect:
                case Persist(holdings):
                    try:
                        self._persist(holdings)
                    except OSError as error:
                        # Nothing is asked and no verdict is given before it is durable.
                        self._on_note(f"the claims file cannot be written; tries again: {error}")
                        rest = partial(self._go_on, self._claim, effects[index:])
                        self._reactor.call_later(PERSIST_RETRY, rest)
                        return
                case SendTxn():
                    self._tell_sent(effect)
                    self._send_after(effect)
                case Note(text):
                    if text != self._last_note:
                        self._last_note = text
                        self._on_note(text)
                case Decided(verdict, record, reason):
                    self._claim = None
                    self._make_receipt(verdict, record)
                    won, halted = verdict is Verdict.WON, verdict is Verdict.HALT
                    self._reactor.call_later(0, partial(self._on_decided, won, halted, reason))

    def _tell_sent(self, effect: SendTxn) -> None:
        self._times += 1
        if self._sent is None or self._sent.txn != effect.txn:
            self._sent = effect
            base = records.brief(effect.base) if effect.base else "no record"
            self._on_sent(f"asks to replace {base} by {records.brief(effect.new)}",
                          base=effect.base.gen if effect.base else 0, asked=effect.new.gen,
                          nonce=effect.new.nonce[:8])  # fmt: skip

    def _make_receipt(self, verdict: Verdict, record: Record | None) -> None:
        sent = self._sent
        self.receipt = {
            "verdict": verdict.value,
            "base": sent.base.gen if sent and sent.base else 0,
            "asked": sent.new.gen if sent else None,
            "nonce": sent.new.nonce[:8] if sent else None,
            "record": records.brief(record) if record else None,
            "times": self._times,
            "arbiter_ms": round((self._reactor.now() - self._begun) * 1000, 1),
        }

    def _go_on(self, claim: Claim | None, effects: list[ClaimEffect]) -> None:
        if claim is self._claim:
            self._run(effects)

    def _send_after(self, effect: SendTxn) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due = self._reactor.call_later(effect.delay_ms / 1000, lambda: self._send(effect))

    def _send(self, effect: SendTxn) -> None:
        claim = self._claim
        if claim is None:
            return
        self._be_patient(claim, effect)
        if self._under_way:
            self._waiting = effect  # sent when what is under way has come back
            return
        self._waiting = None
        before = newest(claim.holdings.seen, self._seen_by_the_host())

        def answered(reply: Reply | None, why: str) -> None:
            self._answered(claim, effect, reply and replace(reply, before=before), why)

        base = effect.base.to_bytes() if effect.base else None
        self._ask(base, effect.new.to_bytes(), answered)

    def _answered(self, claim: Claim, effect: SendTxn, reply: Reply | None, why: str) -> None:
        waiting, self._waiting = self._waiting, None
        if self._claim is not claim:
            if waiting is not None:
                self._send(waiting)  # of a claim that began while this answer was awaited
            return
        if self._patience is not None:
            self._patience.cancel()
        if reply is None:
            self._run(claim.on_unknown(effect.txn, why))
        else:
            self._run(claim.on_reply(effect.txn, reply))

    def _be_patient(self, claim: Claim, effect: SendTxn) -> None:
        if self._patience is not None:
            self._patience.cancel()

        def too_long() -> None:
            if self._claim is claim:
                self._run(claim.on_unknown(effect.txn, "it has not come back yet"))

        self._patience = self._reactor.call_later(PATIENCE, too_long)

    def _ask(
        self, base: bytes | None, new: bytes | None, answered: Callable[[Reply | None, str], None]
    ) -> None:
        """Have a thread ask; `answered` is called in the reactor, with None when in doubt."""
        arbiter, who = self._arbiter, self._identity
        assert arbiter is not None
        self._under_way = True
        self._attempt += 1
        attempt, key = self._attempt, vm_key(who.cluster, who.uuid)

        def back(reply: Reply | None, why: str) -> None:
            self._under_way = False
            answered(reply, why)

        def run() -> None:
            reply: Reply | None = None
            why = ""
            try:
                reply = arbiter.swap(key, base, new, attempt)
            except Unclear as error:
                why = str(error)
            except Exception as error:  # whatever it was, it is no answer
                why = f"it could not be asked: {error!r}"
            self._reactor.call_soon_threadsafe(lambda: back(reply, why))

        threading.Thread(target=run, name="arbiter", daemon=True).start()

    def _seen_by_the_host(self) -> Position | None:
        seen = load_seen(self._identity.seen_path)
        return None if seen is None else seen.position(self._identity.uuid)

    # -- durability ---------------------------------------------------------------------------------

    def _persist(self, holdings: Holdings) -> None:
        write_durably(self._identity.claims_path, holdings.to_bytes())
        self.holdings = holdings

    def _load(self) -> Holdings:
        try:
            with open(self._identity.claims_path, "rb") as file:
                return holdings_from_bytes(file.read(), self._identity.cluster)
        except FileNotFoundError:
            return Holdings()


def claims_path(state_dir: str) -> str:
    """Where a VM's holdings are kept."""
    return os.path.join(state_dir, "claims.json")


def encode_offer(record: Record, seen: Position | None) -> bytes:
    """The pair's record and, on a second line, how far its namer saw the arbiter's history."""
    if seen is None:
        return record.to_bytes()
    line = json.dumps({"arbiter": seen.arbiter, "revision": seen.revision}, sort_keys=True)
    return record.to_bytes() + b"\n" + line.encode()


def decode_offer(data: bytes, cluster: str) -> tuple[Record, Position | None]:
    """What `encode_offer` made; KvmftError when it is not that."""
    first, __, second = data.partition(b"\n")
    record = records.from_bytes(first, cluster)
    if not second:
        return record, None
    try:
        seen = json.loads(second)
        return record, Position(str(seen["arbiter"]), int(seen["revision"]))
    except (ValueError, KeyError, TypeError) as error:
        raise KvmftError(
            "offer_damaged", f"The offer's second line is damaged: {error!r}.",
            "Both hosts need the same kvmft version.",
        ) from error  # fmt: skip
