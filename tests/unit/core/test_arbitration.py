"""Every verdict of the arbitration rules (I1), and the records they are about."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

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
    holdings_from_bytes,
)
from kvmft.core.records import Mode, Record
from kvmft.errors import KvmftError

CLUSTER = "c" * 32


def nonces(start: int = 1) -> Callable[[], str]:
    numbers = itertools.count(start)
    return lambda: f"{next(numbers):032x}"


R1 = records.first(CLUSTER, "node-a", "node-b", "a" * 32)
R2 = records.paired(R1, "node-a", "node-b", "b" * 32, epoch=1)
R3B = records.solo(R2, "node-b", "node-a", "d" * 32)


def solo(holdings: Holdings, me: str = "node-a") -> Claim:
    peer = "node-b" if me == "node-a" else "node-a"
    return Claim.solo(CLUSTER, me, peer, holdings, nonces())


def sent(effects: list[ClaimEffect]) -> SendTxn:
    (found,) = [each for each in effects if isinstance(each, SendTxn)]
    return found


def verdict(effects: list[ClaimEffect]) -> Verdict:
    (found,) = [each for each in effects if isinstance(each, Decided)]
    return found.verdict


def test_what_is_sent_was_persisted_before() -> None:
    effects = solo(Holdings((R2,))).start()
    assert [type(each) for each in effects] == [Persist, SendTxn]
    assert isinstance(effects[0], Persist)
    assert sent(effects).new in effects[0].holdings.written


def test_a_claim_raises_the_generation_of_exactly_the_newest_record_held() -> None:
    transaction = sent(solo(Holdings((R1, R2))).start())
    assert transaction.base == R2
    assert (transaction.new.gen, transaction.new.mode) == (R2.gen + 1, Mode.SOLO)


def test_a_swap_is_won_and_leaves_one_base() -> None:
    claim = solo(Holdings((R1, R2)))
    transaction = sent(claim.start())
    assert verdict(claim.on_reply(1, Reply(True, None))) is Verdict.WON
    assert claim.holdings == Holdings((transaction.new,), ())


def test_a_lost_answer_is_recognised_by_the_record_that_was_sent() -> None:
    claim = solo(Holdings((R2,)))
    transaction = sent(claim.start())
    again = sent(claim.on_unknown(1, "time-out"))
    assert (again.base, again.new, again.txn) == (R2, transaction.new, 1)
    assert verdict(claim.on_reply(1, Reply(False, transaction.new.to_bytes()))) is Verdict.WON


def test_an_earlier_record_of_ours_is_recognised() -> None:
    earlier = records.solo(R2, "node-a", "node-b", "e" * 32)
    claim = solo(Holdings((R2,), (earlier,)))
    claim.start()
    assert verdict(claim.on_reply(1, Reply(False, earlier.to_bytes()))) is Verdict.WON
    assert claim.holdings.bases == (earlier,)


def test_another_base_that_we_hold_is_claimed_from() -> None:
    claim = solo(Holdings((R1, R2)))
    claim.start()
    effects = claim.on_reply(1, Reply(False, R1.to_bytes()))
    assert sent(effects).base == R1 and sent(effects).new.gen == 3, "above what was named"
    assert isinstance(effects[1], Persist), "written ahead too"


def test_a_generation_above_all_bases_is_lost_for_good() -> None:
    claim = solo(Holdings((R1, R2)))
    claim.start()
    assert verdict(claim.on_reply(1, Reply(False, R3B.to_bytes()))) is Verdict.LOST
    assert claim.on_reply(1, Reply(True, None)) == []


def test_a_generation_not_above_is_undecided_and_asked_again() -> None:
    claim = solo(Holdings((R2,)), me="node-b")
    transaction = sent(claim.start())
    for __ in range(20):
        again = sent(claim.on_reply(1, Reply(False, R1.to_bytes())))
        assert (again.base, again.new) == (transaction.base, transaction.new)
    assert claim.decided is None


def test_an_unknown_answer_never_decides_and_never_changes_the_transaction() -> None:
    claim = solo(Holdings((R2,)))
    transaction = sent(claim.start())
    delays = [sent(claim.on_unknown(1, "reset")).delay_ms for __ in range(12)]
    assert claim.decided is None and delays == sorted(delays) and delays[-1] <= 1000
    assert sent(claim.on_unknown(1, "reset")).new == transaction.new


@pytest.mark.parametrize(
    "current",
    [None, b"", b"{}", b"null", R2.to_bytes() + b" ",
     Record("f" * 32, 5, Mode.SOLO, "node-a", "node-b", "1" * 32, 0).to_bytes()],
)  # fmt: skip
def test_missing_unreadable_or_foreign_records_halt(current: bytes | None) -> None:
    claim = solo(Holdings((R2,)))
    claim.start()
    assert verdict(claim.on_reply(1, Reply(False, current))) is Verdict.HALT
    assert claim.holdings.bases == (R2,), "a person may still need them"


def test_a_creation_never_replaces_a_record_that_is_there() -> None:
    claim = Claim.create(CLUSTER, "node-b", "node-a", nonces())
    assert sent(claim.start()).base is None
    assert verdict(claim.on_reply(1, Reply(False, R1.to_bytes()))) is Verdict.HALT


def test_a_pairing_lost_to_the_secondary_is_lost() -> None:
    claim = Claim.pair(CLUSTER, "node-a", Holdings((R1, R2)), R1, R2)
    assert sent(claim.start()).new == R2
    assert verdict(claim.on_reply(1, Reply(False, R3B.to_bytes()))) is Verdict.LOST


def test_a_side_without_records_claims_nothing() -> None:
    with pytest.raises(KvmftError, match="holds no record"):
        solo(Holdings())


def test_holdings_survive_the_claims_file_and_damage_is_told() -> None:
    holdings = Holdings((R1, R2), (R3B,))
    assert holdings_from_bytes(holdings.to_bytes(), CLUSTER) == holdings
    for damaged in (b"", b"{", b"[]", holdings.to_bytes()[:-9], b'{"bases": [1], "written": []}'):
        with pytest.raises(KvmftError, match="damaged|not one of kvmft"):
            holdings_from_bytes(damaged, CLUSTER)


@pytest.mark.parametrize(
    ("field", "value"),
    [("gen", -1), ("gen", True), ("gen", "1"), ("mode", "BOTH"), ("nonce", "xyz"), ("v", 2),
     ("holder", 5), ("epoch", 1.5), ("extra", 1)],
)  # fmt: skip
def test_a_record_with_an_impossible_field_is_refused(field: str, value: object) -> None:
    data = json.loads(R2.to_bytes())
    data[field] = value
    with pytest.raises(KvmftError, match="not one of kvmft's"):
        records.from_bytes(json.dumps(data, sort_keys=True, separators=(",", ":")).encode(), CLUSTER)


def test_equal_records_have_equal_bytes_and_come_back_equal() -> None:
    assert records.from_bytes(R2.to_bytes(), CLUSTER) == R2
    assert R2.to_bytes() != R3B.to_bytes()


def test_a_named_pair_that_was_never_written_is_burnt_so_that_its_secondary_loses() -> None:
    """The primary was killed after it named the pair. It goes on alone from the record before; the
    secondary, which holds the named one, must not stay undecided for ever."""
    nonces = iter(f"{n:032x}" for n in range(1, 100)).__next__
    alone = records.first("0" * 32, "a", "b", nonces())
    named = records.paired(alone, "a", "b", nonces(), 1)
    claim = Claim.solo("0" * 32, "a", "b", Holdings((alone, named), ()), nonces)
    claim.start()
    effects = claim.on_reply(1, Reply(False, alone.to_bytes()))
    sent = next(effect for effect in effects if isinstance(effect, SendTxn))
    assert sent.base == alone and sent.new.gen > named.gen
    claim.on_reply(2, Reply(True, None))
    other = Claim.solo("0" * 32, "b", "a", Holdings((named,), ()), nonces)
    other.start()
    other.on_reply(1, Reply(False, sent.new.to_bytes()))
    assert other.decided is not None and other.decided.verdict is Verdict.LOST
