"""The silence detector: quick, patient with a stalled FT log while beacons come, and fair when starved itself."""

from __future__ import annotations

import pytest

from kvmft.core.detector import BEACONS_MISSED, EXCUSES, SilenceDetector

TICK = 0.0375


def detector() -> SilenceDetector:
    return SilenceDetector(0.3, 0.7, 0.0)


def suspected_at(
    which: SilenceDetector, begin: float, end: float, log: bool = False, beacons: bool = False
) -> float | None:
    """When the peer is suspected from `begin` to `end`, with these signs of life at each tick; None: never."""
    now = begin
    while now <= end:
        if log:
            which.heard(now)
        if beacons:
            which.beacon(now)
        if which.suspects(now):
            return now
        now += TICK
    return None


def test_silence_of_both_networks_is_suspected_after_the_timeout() -> None:
    which = detector()
    assert suspected_at(which, 0.0, 1.0, log=True, beacons=True) is None
    found = suspected_at(which, 1.0, 3.0)
    assert found is not None and 1.2 < found < 1.36


def test_a_log_that_stalls_while_beacons_come_is_given_longer_and_not_for_ever() -> None:
    which = detector()
    assert suspected_at(which, 0.0, 1.0, log=True, beacons=True) is None
    found = suspected_at(which, 1.0, 5.0, beacons=True)
    assert found is not None and 1.6 < found < 1.76


def test_beacons_that_stop_later_end_the_patience() -> None:
    which = detector()
    assert suspected_at(which, 0.0, 0.1, log=True, beacons=True) is None
    assert suspected_at(which, 0.1, 0.2, beacons=True) is None
    found = suspected_at(which, 0.2, 3.0)
    assert found is not None and 0.45 < found < 0.56


@pytest.mark.parametrize("awaited", [False, True])
def test_where_no_beacon_ever_came_the_log_alone_counts(awaited: bool) -> None:
    which = detector()
    if awaited:
        which.await_beacons(0.0)
    found = suspected_at(which, 0.0, 3.0)
    assert found is not None and 0.3 < found < 0.36


def test_beacons_that_stopped_long_ago_do_not_delay() -> None:
    which = detector()
    which.beacon(0.0)
    assert suspected_at(which, 0.0, 4.0, log=True) is None, "beacons alone decide nothing"
    found = suspected_at(which, 4.0, 6.0)
    assert found is not None and 4.2 < found < 4.36


def test_a_log_timeout_below_the_timeout_counts_as_the_timeout() -> None:
    which = SilenceDetector(0.3, 0.1, 0.0)
    found = suspected_at(which, 0.0, 3.0, beacons=True)
    assert found is not None and 0.3 < found < 0.36


def test_a_sign_of_life_resets_it() -> None:
    which = detector()
    assert suspected_at(which, 0.0, 0.29) is None
    which.heard(0.29)
    assert suspected_at(which, 0.3, 0.55) is None
    which.heard(0.1)  # an older one takes nothing back
    assert suspected_at(which, 0.55, 0.58) is None


def test_own_starvation_is_not_the_peers_death() -> None:
    which = detector()
    assert not which.suspects(0.1)
    assert not which.suspects(2.0), "it was not scheduled for 1.9 s: that says nothing of the peer"
    found = suspected_at(which, 2.01, 4.0)
    assert found is not None and 2.14 < found < 2.2, "and silence after that is silence"


def test_one_that_is_always_starved_is_not_blind() -> None:
    which = detector()
    late = [which.suspects(0.4 * turn) for turn in range(1, EXCUSES + 2)]
    assert late == [False] * EXCUSES + [True]


def test_what_it_hears_gives_back_its_excuses() -> None:
    which = detector()
    for turn in range(1, 4 * EXCUSES):
        which.heard(0.4 * turn - 0.01 - (0.31 if turn % 2 else 0))
        assert not which.suspects(0.4 * turn)


def told(which: SilenceDetector, begin: float, end: float, log: bool, beacons: bool) -> list[bool]:
    """What people are told between `begin` and `end`."""
    found, now = [], begin
    while now <= end:
        if log:
            which.heard(now)
        if beacons:
            which.beacon(now)
        if (changed := which.beacons_changed(now)) is not None:
            found.append(changed)
        now += TICK
    return found


@pytest.mark.parametrize("came", [False, True])
def test_people_are_told_once_of_beacons_that_are_missing_and_once_of_their_return(
    came: bool,
) -> None:
    which = detector()
    which.await_beacons(0.0)
    assert told(which, 0.0, 1.0, log=True, beacons=came) == []
    assert told(which, 1.0, BEACONS_MISSED - 0.1, log=True, beacons=False) == []
    assert told(which, BEACONS_MISSED - 0.1, 30.0, log=True, beacons=False) == [False]
    assert told(which, 30.0, 60.0, log=True, beacons=True) == [True]
    assert told(which, 60.0, 90.0, log=True, beacons=False) == [False]


def test_nothing_is_told_of_beacons_that_nobody_awaits_or_of_a_silent_peer() -> None:
    assert told(detector(), 0.0, 30.0, log=True, beacons=False) == []
    which = detector()
    which.await_beacons(0.0)
    assert told(which, 0.0, 30.0, log=False, beacons=False) == []
