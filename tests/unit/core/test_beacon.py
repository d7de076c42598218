"""Beacons: only what is genuine, new, and of the other side of this session counts."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmft.core.beacon import SIZE, VERSION, Receiver, Sender, Side, offer, read_offer
from kvmft.core.wire import WireError

KEY = bytes(range(32))
SESSION = "5" * 32


def sender(key: bytes = KEY, session: str = SESSION, side: Side = Side.PRIMARY) -> Sender:
    return Sender(key, session, side)


def receiver() -> Receiver:
    return Receiver(KEY, SESSION, Side.PRIMARY)


def test_genuine_beacons_are_accepted_in_order_also_where_some_are_lost() -> None:
    ours, theirs = receiver(), sender()
    sent = [theirs.next() for __ in range(6)]
    assert {len(each) for each in sent} == {SIZE}
    assert [ours.accept(sent[each]) for each in (0, 1, 3, 5)] == [True] * 4


def test_what_was_heard_before_is_no_sign_of_life() -> None:
    ours, theirs = receiver(), sender()
    first, second, third = theirs.next(), theirs.next(), theirs.next()
    assert ours.accept(second)
    assert not ours.accept(second), "replayed"
    assert not ours.accept(first), "older"
    assert ours.accept(third)


@pytest.mark.parametrize(
    "other",
    [sender(key=bytes(32)), sender(session="6" * 32), sender(side=Side.SECONDARY)],
    ids=["another key", "another session", "our own side"],
)
def test_a_beacon_that_is_not_for_us_is_nothing(other: Sender) -> None:
    assert not receiver().accept(other.next())


def test_another_version_is_nothing_also_where_it_is_genuine() -> None:
    genuine = sender().next()
    body = bytes([VERSION + 1]) + genuine[1:26]
    mac = hmac.new(KEY, body, hashlib.sha256).digest()[:16]
    assert not receiver().accept(body + mac)
    body = genuine[:26]
    assert receiver().accept(body + hmac.new(KEY, body, hashlib.sha256).digest()[:16])


def test_each_byte_counts() -> None:
    genuine = sender().next()
    for position in range(SIZE):
        changed = bytearray(genuine)
        changed[position] ^= 1
        assert not receiver().accept(bytes(changed)), position
    ours = receiver()
    assert not ours.accept(genuine[:-1]) and not ours.accept(genuine + b"\0")
    assert ours.accept(genuine), "what was refused leaves no trace"


def test_a_forged_high_number_does_not_shut_out_the_peer() -> None:
    ours, theirs = receiver(), sender()
    forged = bytearray(theirs.next())
    forged[18:26] = b"\xff" * 8
    assert not ours.accept(bytes(forged))
    assert ours.accept(theirs.next())


@given(st.binary(max_size=2 * SIZE))
def test_random_bytes_are_nothing(data: bytes) -> None:
    assert not receiver().accept(data)


@given(st.binary(min_size=SIZE - 18, max_size=SIZE - 18))
def test_random_bytes_behind_a_genuine_head_are_nothing(rest: bytes) -> None:
    genuine = sender().next()
    if rest != genuine[18:]:
        assert not receiver().accept(genuine[:18] + rest)


def test_an_offer_is_read_as_it_was_made() -> None:
    assert read_offer(offer(7411, KEY)) == (7411, KEY)


@pytest.mark.parametrize("value", [None, {"version": VERSION + 1, "port": "elsewhere"}, {}])
def test_a_peer_without_beacons_or_with_other_ones_offers_none(value: object) -> None:
    assert read_offer(value) is None


@pytest.mark.parametrize(
    "change",
    [{"port": 0}, {"port": 65536}, {"port": True}, {"port": "7411"}, {"port": None}, {"key": None},
     {"key": "00" * 31}, {"key": "0g" * 32}, {"key": 5}],
)  # fmt: skip
def test_nonsense_in_an_offer_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        read_offer({**offer(7411, KEY), **change})


@pytest.mark.parametrize("value", [5, "7411", [1], True])
def test_an_offer_that_is_no_object_is_an_error(value: object) -> None:
    with pytest.raises(WireError):
        read_offer(value)
