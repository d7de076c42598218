"""One side's claims: the core's `Claim`, with durable holdings and a simulated arbiter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmft.core import arbitration, records
from kvmft.core.arbitration import Claim, Decided, Holdings, Note, Persist, Reply, SendTxn, Verdict
from kvmft.core.records import Mode, Record
from kvmft.errors import KvmftError
from kvmft.sim.world import SimArbiter, World

CLUSTER = "0" * 32


class SimClaims:
    """What `adapters.arbiter_client` does, for the process `owner` on its host."""

    def __init__(
        self, world: World, arbiter: SimArbiter, owner: Any, peer: str,
        on_decided: Callable[[bool, bool, str], None],
    ) -> None:  # fmt: skip
        self._world = world
        self._arbiter = arbiter
        self._owner = owner
        self._host = owner.host
        self._peer = peer
        self._on_decided = on_decided
        self._claim: Claim | None = None
        self.named: Record | None = None

    def _nonce(self) -> str:
        return f"{self._world.rng.getrandbits(128):032x}"

    @property
    def holdings(self) -> Holdings:
        """The claims file of this host."""
        found: Holdings = self._host.holdings
        return found

    def create(self) -> None:
        """Turn FT on, or claim from what is held already."""
        if self.holdings.bases or self.holdings.written:
            self.solo()
            return
        me = self._host.name
        self._begin(lambda: Claim.create(CLUSTER, me, self._peer, self._nonce))

    def solo(self) -> None:
        """Ask for the right to run alone."""
        me, held = self._host.name, self.holdings
        if not held.bases and len(held.written) == 1:
            record = held.written[0]
            self._begin(
                lambda: Claim(CLUSTER, me, held, None, lambda base: base, record, write_ahead=False)
            )
            return
        self._begin(lambda: Claim.solo(CLUSTER, me, self._peer, held, self._nonce))

    def name_pair(self, epoch: int) -> bytes:
        """Name the pair's record, durably; its bytes."""
        (base,) = self.holdings.bases
        self.named = records.paired(base, self._host.name, self._peer, self._nonce(), epoch)
        self._persist(self.holdings.with_base(self.named))
        return self.named.to_bytes()

    def pair(self) -> None:
        """Make the named record the arbiter's."""
        named, held = self.named, self.holdings
        assert named is not None
        self._begin(lambda: Claim.pair(CLUSTER, self._host.name, held, held.bases[0], named))

    def accept_offer(self, data: bytes) -> None:
        """Secondary: hold the record of the pair, the only one that it may claim from."""
        record = records.from_bytes(data, CLUSTER)
        if record.mode is not Mode.PAIRED or record.peer != self._host.name:
            raise KvmftError("offer_wrong", "not ours", "")
        self._persist(Holdings((record,), ()))

    def remove(self) -> None:
        """FT was turned off: delete the record if it is still ours."""
        held = self.holdings
        if len(held.bases) != 1:
            return

        def answered(reply: Reply | None) -> None:
            if reply is not None and reply.succeeded:
                self._host.holdings, self._arbiter.removed_unseen = Holdings(), False

        self._arbiter.ask(self._host.agent, self._host, held.bases[0].to_bytes(), None, None, answered)

    def _persist(self, holdings: Holdings) -> None:
        """Store `holdings`; OSError when the disk is full."""
        trouble = self._host.disk_trouble
        if trouble and self._world.rng.random() < trouble:
            self._world.count("persist fails")
            raise OSError("the claims file cannot be written")
        self._host.holdings = holdings

    def _begin(self, make: Callable[[], Claim]) -> None:
        try:
            self._claim = make()
        except KvmftError as error:
            self._on_decided(False, True, str(error))
            return
        self._run(self._claim.start())

    def _run(self, effects: list[arbitration.ClaimEffect]) -> None:
        for index, effect in enumerate(effects):
            if self._owner.dead:
                return
            match effect:
                case Persist(holdings):
                    if self._host.steps_to_live:
                        self._owner.may_die()
                        if self._owner.dead:
                            return
                    try:
                        self._persist(holdings)
                    except OSError:
                        self._world.at(
                            0.5, self._host, self._owner, self._again, self._claim, effects[index:]
                        )
                        return
                case SendTxn():
                    self._world.at(
                        effect.delay_ms / 1000, self._host, self._owner, self._send, self._claim, effect
                    )
                case Note():
                    self._world.count("verdict undecided or unknown")
                case Decided(verdict, _record, reason):
                    self._claim = None
                    self._world.count(f"verdict {verdict.value}")
                    won, halted = verdict is Verdict.WON, verdict is Verdict.HALT
                    self._world.at(
                        0.0, self._host, self._owner, self._on_decided, won, halted, reason
                    )

    def _again(self, claim: Claim, effects: list[arbitration.ClaimEffect]) -> None:
        if claim is self._claim:
            self._run(effects)

    def _send(self, claim: Claim, effect: SendTxn) -> None:
        if claim is not self._claim:
            return

        def answered(reply: Reply | None) -> None:
            if claim is not self._claim:
                return
            if reply is None:
                self._run(claim.on_unknown(effect.txn, "no answer"))
            else:
                self._run(claim.on_reply(effect.txn, reply))

        base = effect.base.to_bytes() if effect.base else None
        self._arbiter.ask(
            self._owner, self._host, base, effect.new.to_bytes(), effect.new, answered
        )
