"""The checker of the append-only log accepts what a real log did and names what none can do."""

from __future__ import annotations

import random
import time
from math import inf

import pytest

from tests.linear.appends import Append, Length, check

GOOD = [Append("a", 0, 1, 0), Append("b", 0.5, 3, 1), Append("c", 4, 5, 2)]


def test_a_good_history_is_accepted() -> None:
    assert check(GOOD, ["a", "b", "c"]).linearizable


def test_a_log_that_began_earlier() -> None:
    later = [Append(op.value, op.called, op.returned, op.index + 70) for op in GOOD
             if op.index is not None]  # fmt: skip
    assert check(later, ["a", "b", "c"], base=70).linearizable


def test_an_open_append_may_be_there_or_not() -> None:
    opened = Append("d", 4.5)
    assert check([*GOOD, opened], ["a", "b", "c"]).linearizable
    assert check([*GOOD, opened], ["a", "b", "c", "d"]).linearizable
    assert check([*GOOD, opened], ["a", "b", "d", "c"]).misplaced


def test_an_open_append_cannot_come_before_what_returned_before_its_call() -> None:
    history = [Append("a", 0, 1, 1), Append("late", 2)]
    assert check(history, ["late", "a"]).disorder


def test_a_lost_record_is_named() -> None:
    found = check(GOOD, ["a", "b"])
    assert found.lost == ["c"]
    assert not found.linearizable


def test_a_duplicate_is_named() -> None:
    found = check(GOOD, ["a", "b", "c", "b"])
    assert found.duplicates == ["b"]
    assert not found.linearizable


def test_a_phantom_is_named() -> None:
    assert check(GOOD, ["a", "b", "c", "x"]).phantoms == ["x"]


def test_reordering_is_named() -> None:
    swapped = check(GOOD, ["a", "c", "b"])
    assert len(swapped.misplaced) == 2
    assert swapped.disorder == [
        "append b at 2 returned at 3.0000, before append c at 1 was called at 4.0000, which the log "
        "has before it"
    ]


def test_concurrent_appends_may_have_either_order() -> None:
    both = [Append("a", 0, 5, 1), Append("b", 1, 4, 0)]
    assert check(both, ["b", "a"]).linearizable


def test_split_brain_two_records_got_the_same_index() -> None:
    history = [Append("a", 0, 1, 0), Append("left", 2, 3, 1), Append("right", 2, 3, 1)]
    found = check(history, ["a", "right"])
    assert found.lost == ["left"]


def test_a_length_that_lags_or_runs_ahead_is_named() -> None:
    assert check(GOOD, ["a", "b", "c"], lengths=[Length(2, 3.5, 3.6)]).linearizable
    assert check(GOOD, ["a", "b", "c"], lengths=[Length(1, 3.5, 3.6)]).disorder
    assert check(GOOD, ["a", "b", "c"], lengths=[Length(3, 3.5, 3.6)]).disorder


def real_history(seed: int, count: int, clients: int) -> tuple[list[Append], list[str]]:
    """Appends of several clients to a real log; some get no answer, and of these some no effect."""
    rng = random.Random(seed)
    planned = []
    for client in range(clients):
        clock = 0.0
        for number in range(count // clients):
            called = clock + rng.expovariate(20)
            instant = called + rng.expovariate(30)
            clock = instant + rng.expovariate(30)
            planned.append((instant, called, clock, f"c{client}n{number}"))
    history, log = [], []
    for _instant, called, returned, value in sorted(planned):
        lost = rng.random() < 0.02
        index = None if lost else len(log)
        if not lost or rng.random() < 0.5:
            log.append(value)
        history.append(Append(value, called, inf if lost else returned, index))
    return history, log


@pytest.mark.parametrize("seed", range(40))
def test_what_a_real_log_did_is_accepted(seed: int) -> None:
    history, log = real_history(seed, 400, 1 + seed % 8)
    assert check(history, log).linearizable


@pytest.mark.parametrize("seed", range(40))
def test_a_real_log_with_a_fault_put_in_is_rejected(seed: int) -> None:
    rng = random.Random(seed)
    history, log = real_history(seed, 400, 1 + seed % 8)
    answered = {op.value for op in history if op.index is not None}
    at = rng.choice([place for place, value in enumerate(log) if value in answered])
    without = log[:at] + log[at + 1 :]
    assert not check(history, without).linearizable
    assert not check(history, [*log, log[at]]).linearizable
    moved = [*without, log[at]]
    assert moved == log or not check(history, moved).linearizable


def test_tens_of_thousands_of_appends_take_seconds() -> None:
    history, log = real_history(3, 60_000, 8)
    begun = time.process_time()
    assert check(history, log).linearizable
    assert time.process_time() - begun < 10
