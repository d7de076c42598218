"""An answer that shows a history that went back, or another arbiter, is no answer (I1)."""

from __future__ import annotations

import pytest

from kvmft.core import records
from kvmft.core.arbitration import Claim, Decided, Holdings, Reply, Verdict, holdings_from_bytes
from kvmft.core.position import Position, broken_history, newest
from kvmft.errors import KvmftError

CLUSTER = "c" * 32
BASE = records.first(CLUSTER, "node-a", "node-b", "a" * 32)
NINE = Position("one", 9)


def claim() -> Claim:
    made = Claim.solo(CLUSTER, "node-a", "node-b", Holdings((BASE,), (), NINE), lambda: "b" * 32)
    made.start()
    return made


def verdict(made: Claim, reply: Reply) -> Decided | None:
    made.on_reply(1, reply)
    return made.decided


@pytest.mark.parametrize(
    ("reply", "broken"),
    [
        (Reply(True, None, Position("one", 10), NINE), False),
        (Reply(True, None, Position("one", 9), NINE), True),
        (Reply(True, None, Position("one", 3), NINE), True),
        (Reply(True, None, Position("two", 99), NINE), True),
        (Reply(True, None, Position("one", 3), None), False),
        (Reply(False, BASE.to_bytes(), NINE, NINE), False),
        (Reply(False, BASE.to_bytes(), Position("one", 8), NINE), True),
        (Reply(False, BASE.to_bytes(), Position("two", 9), NINE), True),
    ],
)
def test_an_answer_from_the_past_halts_also_when_it_says_that_it_swapped(
    reply: Reply, broken: bool
) -> None:
    made = claim()
    decided = verdict(made, reply)
    if broken:
        assert decided is not None and decided.verdict is Verdict.HALT
        assert made.holdings.bases == (BASE,) and made.holdings.seen == NINE
    else:
        assert decided is None or decided.verdict is Verdict.WON


def test_answers_may_come_in_any_order() -> None:
    """What counts is what was seen when the request went out, not what was seen since."""
    made = claim()
    made.on_reply(1, Reply(False, BASE.to_bytes(), Position("one", 20), NINE))
    made.on_reply(1, Reply(False, BASE.to_bytes(), Position("one", 12), NINE))
    assert made.decided is None and made.holdings.seen == Position("one", 20)


def test_what_was_seen_survives_the_win_and_the_claims_file() -> None:
    made = claim()
    verdict(made, Reply(True, None, Position("one", 10), NINE))
    assert made.holdings.seen == Position("one", 10)
    assert holdings_from_bytes(made.holdings.to_bytes(), CLUSTER) == made.holdings


def test_a_claims_file_with_a_damaged_position_claims_nothing() -> None:
    data = Holdings((BASE,), (), NINE).to_bytes().replace(b"9\n", b'"x"\n')
    with pytest.raises(KvmftError, match="damaged"):
        holdings_from_bytes(data, CLUSTER)


def test_reasons_say_what_happened() -> None:
    assert broken_history(None, NINE) is None and broken_history(NINE, None) is None
    assert "from revision 9 to 8" in str(broken_history(NINE, Position("one", 8)))
    assert "wiped or restored" in str(broken_history(NINE, NINE, changed=True))
    assert "another arbiter" in str(broken_history(NINE, Position("two", 9)))


def test_the_newest_position_is_that_of_the_first_arbiter() -> None:
    assert newest(NINE, Position("one", 12)) == Position("one", 12)
    assert newest(NINE, Position("two", 12)) == NINE
    assert newest(None, NINE) == newest(NINE, None) == NINE
