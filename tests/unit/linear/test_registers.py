"""The checker of registers accepts what a real register did and rejects what none can do."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from math import inf

import pytest

from tests.linear.registers import EMPTY, Op, check, check_register


def write(value: str, called: float, returned: float = inf, key: str = "k") -> Op:
    return Op(key, "write", value, called, returned)


def read(value: str, called: float, returned: float = inf, key: str = "k") -> Op:
    return Op(key, "read", value, called, returned)


def cas(expected: str, value: str, seen: str | None, called: float, returned: float = inf) -> Op:
    return Op("k", "cas", value, called, returned, expected, seen)


GOOD = {
    "one after the other": [write("a", 0, 1), read("a", 2, 3), write("b", 4, 5), read("b", 6, 7)],
    "never written": [read(EMPTY, 0, 1)],
    "read during a write, old and new": [
        write("a", 0, 1), write("b", 2, 9), read("a", 3, 4), read("b", 5, 6)],
    "concurrent writes in either order": [
        write("a", 0, 5), write("b", 0, 5), read("b", 6, 7)],
    "concurrent writes, read between": [
        write("a", 0, 5), write("b", 0, 5), read("a", 1, 2), read("b", 6, 7)],
    "open write takes effect late": [
        write("a", 0, 1), write("b", 2), read("a", 10, 11), read("b", 12, 13), read("b", 14, 15)],
    "open write never takes effect": [write("a", 0, 1), write("b", 2), read("a", 10, 11)],
    "swap wins and loses": [
        write("a", 0, 1), cas("a", "b", "a", 2, 3), cas("a", "c", "b", 4, 5), read("b", 6, 7)],
    "two swaps at once, one wins": [
        write("a", 0, 1), cas("a", "b", "a", 2, 5), cas("a", "c", "b", 2, 5), read("b", 6, 7)],
    "open swap seen": [write("a", 0, 1), cas("a", "b", None, 2), read("b", 6, 7)],
    "chain of open swaps, the last one seen": [
        write("a", 0, 1), cas("a", "b", None, 2), cas("b", "c", None, 3), read("c", 6, 7)],
    "open reads prove nothing": [write("a", 0, 1), read("zzz", 2)],
}
BAD = {
    "stale read": [write("a", 0, 1), write("b", 2, 3), read("a", 4, 5)],
    "lost write": [write("a", 0, 1), read(EMPTY, 2, 3)],
    "read from nowhere": [read("x", 0, 1)],
    "value comes back": [
        write("a", 0, 1), write("b", 2, 9), read("b", 3, 4), read("a", 5, 6)],
    "open write taken back": [
        write("a", 0, 1), write("b", 2), read("b", 10, 11), read("a", 12, 13)],
    "read before the write was called": [read("a", 0, 1), write("a", 2, 3)],
    "two swaps of one value both win": [
        write("a", 0, 1), cas("a", "b", "a", 2, 5), cas("a", "c", "a", 2, 5)],
    "split brain: both sides answer": [
        write("a", 0, 1), write("left", 2, 3), read("a", 4, 5), write("right", 6, 7),
        read("left", 8, 9), read("right", 8, 9), read("left", 10, 11)],
    "swap loses against what it wanted": [write("a", 0, 1), cas("a", "b", EMPTY, 2, 3)],
    "open swap takes effect on the wrong value": [
        write("a", 0, 1), write("x", 1.2, 1.4), cas("a", "b", None, 2), read("b", 6, 7)],
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_are_accepted(name: str) -> None:
    assert check(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_bad_histories_are_rejected(name: str) -> None:
    (violation,) = check(BAD[name])
    assert "is impossible" in str(violation)


def test_registers_are_independent() -> None:
    good = [replace(op, key="good") for op in GOOD["one after the other"]]
    bad = [replace(op, key="bad") for op in BAD["stale read"]]
    assert [violation.op.key for violation in check(good + bad)] == ["bad"]


def test_a_value_from_before_the_history() -> None:
    assert check([read("old", 0, 1)], {"k": "old"}) == []
    assert check([read("old", 0, 1)]) != []


def test_values_must_be_unique() -> None:
    with pytest.raises(ValueError, match="unique"):
        check([write("a", 0, 1), write("a", 2, 3)])


def real_history(seed: int, count: int, clients: int, keys: int = 1, lose: float = 0.0) -> list[Op]:
    """What `clients` see of real registers: each operation takes effect at one instant between its
    call and its return. A share `lose` of them never gets an answer, and half of these no effect."""
    rng = random.Random(seed)
    held = dict.fromkeys((f"k{number}" for number in range(keys)), EMPTY)
    planned = []
    for client in range(clients):
        clock = rng.random()
        for number in range(count // clients):
            called = clock + rng.expovariate(20)
            instant = called + rng.expovariate(30)
            returned = instant + rng.expovariate(30)
            clock = returned
            planned.append((instant, called, returned, f"c{client}n{number}"))
    history = []
    for _instant, called, returned, value in sorted(planned):
        key = rng.choice(sorted(held))
        kind = rng.choice(("read", "write", "cas"))
        lost = rng.random() < lose
        effect = not lost or rng.random() < 0.5
        seen, expected = held[key], held[key] if rng.random() < 0.5 else f"not-{value}"
        if effect and (kind == "write" or (kind == "cas" and expected == seen)):
            held[key] = value
        history.append(Op(
            key, kind, seen if kind == "read" else value, called, inf if lost else returned,
            expected if kind == "cas" else "", None if lost or kind != "cas" else seen,
        ))  # fmt: skip
    return history


@pytest.mark.parametrize("seed", range(60))
def test_what_a_real_register_did_is_accepted(seed: int) -> None:
    assert check(real_history(seed, 300, 1 + seed % 7, 1 + seed % 3, 0.02 * (seed % 3))) == []


@pytest.mark.parametrize("seed", range(60))
def test_a_stale_read_put_into_a_real_history_is_rejected(seed: int) -> None:
    """A read answers with a value that was overwritten before it began: nothing explains it."""
    rng = random.Random(seed)
    history = real_history(seed, 300, 1 + seed % 5, 1, 0.01)
    end = max(op.returned for op in history if op.returned < inf)
    old = [op for op in history if op.kind == "write" and op.returned < end / 2]
    stale = rng.choice(old)
    # Whatever the order of concurrent ones is, a write called after it returned overwrote it.
    assert any(op.kind == "write" and op.called > stale.returned and op.returned < end
               for op in history)  # fmt: skip
    assert check([*history, read(stale.value, end + 1, end + 2, key="k0")])


@pytest.mark.parametrize("seed", range(60))
def test_a_lost_write_in_a_real_history_is_rejected(seed: int) -> None:
    """Leave out a write whose value was seen: the one who saw it cannot be explained."""
    history = real_history(seed, 300, 1 + seed % 5, 1)
    seen = {op.observed for op in history}
    victim = next(op for op in history if op.kind == "write" and op.value in seen)
    assert check([op for op in history if op is not victim])


def test_tens_of_thousands_of_operations_take_seconds() -> None:
    history = real_history(1, 40_000, 8, 4, 0.005)
    begun = time.process_time()
    assert check(history) == []
    assert time.process_time() - begun < 20


def test_the_answer_is_that_of_trying_every_order() -> None:
    """Small random histories, possible and impossible, against a search of all orders."""
    rng = random.Random(7)
    verdicts = set()
    for __ in range(600):
        ops = []
        for number in range(rng.randint(2, 5)):
            called = rng.randint(0, 12)
            returned = inf if rng.random() < 0.15 else called + rng.randint(1, 6)
            kind = rng.choice(("read", "write", "cas"))
            value = rng.choice((EMPTY, "v0", "v1", "v2")) if kind == "read" else f"v{number}"
            expected = rng.choice((EMPTY, "v0", "v1", "v2")) if kind == "cas" else ""
            seen = None if kind != "cas" or returned == inf else rng.choice((expected, EMPTY, "v0"))
            ops.append(Op("k", kind, value, called, returned, expected, seen))
        expected_verdict = _some_order(ops, EMPTY)
        assert (check_register(ops) is None) == expected_verdict, "\n".join(map(str, ops))
        verdicts.add(expected_verdict)
    assert verdicts == {True, False}


def _some_order(ops: list[Op], held: str) -> bool:
    if all(op.returned == inf for op in ops):
        return True
    first_return = min(op.returned for op in ops)
    for op in ops:
        if op.called <= first_return:
            rest = [each for each in ops if each is not op]
            after = held if op.kind == "read" and op.returned == inf else op.apply(held)
            if after is not None and _some_order(rest, after):
                return True
    return False
