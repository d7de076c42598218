"""Runs claims against the arbiter for one VM: durable first, then the request, from a thread."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvmft.adapters.durable import remove_durably, write_durably
from kvmft.adapters.etcd import Etcd, Unclear, config_of, vm_key
from kvmft.adapters.reactor import Reactor
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
from kvmft.core.records import Mode, Record
from kvmft.errors import KvmftError

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


class ArbiterClient:
    """Claims of one side of one VM. `on_decided(won, halted, reason)` ends each of them."""

    def __init__(
        self,
        reactor: Reactor,
        identity: ArbiterIdentity,
        on_decided: Callable[[bool, bool, str], None],
        on_note: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._identity = identity
        self._on_decided = on_decided
        self._on_note = on_note
        self._etcd = Etcd(config_of(identity.arbiter)) if _has_arbiter(identity.arbiter) else None
        self._claim: Claim | None = None
        self._named: Record | None = None
        self._attempt = 0
        self._last_note = ""
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
        """Name the pair's record, durably, as one that both sides may claim from; its bytes."""
        who = self._identity
        (base,) = self.holdings.bases
        self._named = records.paired(base, who.me, who.peer, nonce(), epoch)
        self._persist(self.holdings.with_base(self._named))
        return self._named.to_bytes()

    def pair(self) -> None:
        """Make the named record the arbiter's."""
        who, named = self._identity, self._named
        assert named is not None
        base = self.holdings.bases[0]
        self._begin(lambda: Claim.pair(who.cluster, who.me, self.holdings, base, named))

    def accept_offer(self, data: bytes) -> None:
        """Secondary: store the record of the pair durably; the only one it may ever claim from."""
        who = self._identity
        record = records.from_bytes(data, who.cluster)
        if record.mode is not Mode.PAIRED or (record.holder, record.peer) != (who.peer, who.me):
            raise KvmftError(
                "offer_wrong",
                f"The offered record pairs {record.holder} with {record.peer}.",
                "Check host names in the inventory; both hosts must agree.",
            )
        self._persist(Holdings((record,), ()))

    def forget(self) -> None:
        """Secondary: drop all records; this side can claim nothing until it is paired again."""
        self.holdings = Holdings()
        remove_durably(self._identity.claims_path)

    def remove(self, seconds: float) -> None:
        """FT was turned off: delete the VM's record if it is still ours, within `seconds`.

        Should it fail, the record stays ours and turning FT on again claims from it.
        """
        who = self._identity
        if self._etcd is None or len(self.holdings.bases) != 1:
            return
        done: list[bool] = []
        base = self.holdings.bases[0].to_bytes()
        etcd = self._etcd

        def run() -> None:
            try:
                ok = etcd.swap(vm_key(who.cluster, who.uuid), base, None).succeeded
            except Unclear:
                ok = False
            self._reactor.call_soon_threadsafe(lambda: done.append(ok))

        threading.Thread(target=run, daemon=True).start()
        self._reactor.run_until(lambda: bool(done), seconds)
        if done and done[0]:
            self.forget()

    # -- carrying out -------------------------------------------------------------------------------

    def _begin(self, make: Callable[[], Claim]) -> None:
        if self._etcd is None:
            self._on_decided(False, True, "no arbiter is configured, so nobody may take over")
            return
        try:
            self._claim = make()
        except KvmftError as error:
            self._on_decided(False, True, str(error))
            return
        self._last_note = ""
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
                    self._send_after(effect)
                case Note(text):
                    if text != self._last_note:
                        self._last_note = text
                        self._on_note(text)
                case Decided(verdict, _record, reason):
                    self._claim = None
                    won, halted = verdict is Verdict.WON, verdict is Verdict.HALT
                    self._reactor.call_later(0, partial(self._on_decided, won, halted, reason))

    def _go_on(self, claim: Claim | None, effects: list[ClaimEffect]) -> None:
        if claim is self._claim:
            self._run(effects)

    def _send_after(self, effect: SendTxn) -> None:
        if effect.delay_ms:
            self._reactor.call_later(effect.delay_ms / 1000, lambda: self._send(effect))
        else:
            self._send(effect)

    def _send(self, effect: SendTxn) -> None:
        claim, etcd, who = self._claim, self._etcd, self._identity
        if claim is None or etcd is None:
            return
        self._attempt += 1
        attempt = self._attempt
        base = effect.base.to_bytes() if effect.base else None
        new = effect.new.to_bytes()

        def answered(reply: Reply | None, why: str) -> None:
            if self._claim is claim:
                if reply is None:
                    self._run(claim.on_unknown(effect.txn, why))
                else:
                    self._run(claim.on_reply(effect.txn, reply))

        def run() -> None:
            reply: Reply | None = None
            why = ""
            try:
                reply = etcd.swap(vm_key(who.cluster, who.uuid), base, new, attempt)
            except Unclear as error:
                why = str(error)
            self._reactor.call_soon_threadsafe(lambda: answered(reply, why))

        threading.Thread(target=run, name="arbiter", daemon=True).start()

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


def _has_arbiter(arbiter: dict[str, Any]) -> bool:
    return arbiter.get("type") == "etcd"
