"""A forecast is what the pacer would make of what was measured: the pacer itself, and nothing beside it, says when."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from kvmft.core import forecast
from kvmft.core.forecast import (
    COMMIT,
    PAGE,
    ROUND_TRIPS,
    SAVE,
    STATE,
    STOP_AND_CONT,
    Curve,
    Interval,
    Measured,
)
from kvmft.core.pacing import Pace, Pacer

MIB = 1 << 20
SCAN, FIND, COPY, TRIP = 0.0002, 0.1e-6, 0.9e-6, 0.0001
LENGTHS = {0.004: 250, 0.020: 50, 0.100: 20, 0.500: 10}


def measured(pages: Any, packets: Any = lambda length: 0, **more: Any) -> Measured:
    """`pages` and `packets` in an interval, given its length in seconds."""
    rows = [
        Interval(length, length * 1.01, pages(length), SCAN + pages(length) * FIND, packets(length), pages(length),
                 pages(length) * COPY)
        for length, number in LENGTHS.items() for __ in range(number)
    ]  # fmt: skip
    return Measured(1024 * MIB, tuple(rows), **{"round_trips": (TRIP,) * 20, "log_rate": 500e6, **more})


def pause_of(pages: float) -> float:
    return STOP_AND_CONT + ROUND_TRIPS * TRIP + max(SAVE, SCAN + pages * (FIND + COPY)) + SCAN


def middle(values: tuple[float, ...]) -> float:
    return sorted(values)[len(values) // 2]


def test_an_idle_vm_gets_the_longest_intervals_and_their_pages() -> None:
    found = forecast.predict(measured(lambda length: 50), Pace())
    assert middle(found.ran) == pytest.approx(0.5)
    assert middle(found.pages) == pytest.approx(50, rel=0.01)
    assert middle(found.pauses) == pytest.approx(pause_of(50), rel=0.01)
    assert found.pause_share == pytest.approx(pause_of(50) / (0.5 + pause_of(50)), rel=0.02)
    assert found.log_rate == pytest.approx((50 * PAGE + STATE) / 0.502, rel=0.02)
    assert found.missed is None
    # A lone request finds a VM at rest: it waits for one checkpoint.
    size = 50 * PAGE + STATE
    assert middle(found.waits) == pytest.approx(pause_of(50) + COMMIT + size / 500e6, rel=0.02)


def test_pages_between_the_measured_lengths_lie_between_theirs() -> None:
    curve = Curve(measured(lambda length: round(1000 * math.sqrt(length))).intervals, 1024 * MIB)
    for ran in (0.004, 0.01, 0.05, 0.3, 0.5):
        assert curve.pages(ran) == pytest.approx(1000 * math.sqrt(ran), rel=0.03)
    assert curve.pages(2.0) == pytest.approx(1000 * math.sqrt(2.0), rel=0.05), "as the longest ones went on"
    assert 40 < curve.pages(0.002) < 63 and curve.pages(0.0) == 0.0
    assert Curve(measured(lambda length: 260_000).intervals, 256 * MIB).pages(60.0) == 65_536, "never more than there is"


def test_a_writer_gets_the_intervals_that_the_pacer_gives_it() -> None:
    """The very rule: a pacer that is told the same checkpoints has the same intervals."""
    given = measured(lambda length: round(60_000 * length / 0.5), log_rate=1e9)
    pace = Pace(max_added_latency=0.02)
    found = forecast.predict(given, pace)
    pacer, cost, now, ran = Pacer(pace), forecast.costs(given), 10.0, 0.1
    for __ in range(200):
        pages = 60_000 * ran / 0.505
        size = pages * PAGE + STATE
        pause, commit = cost.pause(pages), cost.commit(size, pages)
        now += ran + pause
        pacer.captured(now, pause, int(size))
        pacer.committed(now + commit)
        ran = max(pacer.due(False), now + commit) - now
    assert 0.01 < ran < 0.2, "neither bound of the pace decides here"
    assert middle(found.ran) == pytest.approx(ran, rel=0.05)


def test_a_change_of_the_rule_changes_the_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pacer, "due", lambda self, output_waits: self._resumed + 0.033)
    assert middle(forecast.predict(measured(lambda length: 5), Pace()).ran) == pytest.approx(0.033)


def test_output_ends_an_epoch_at_once_and_waits_for_no_more_than_its_checkpoint() -> None:
    given = measured(lambda length: 100, lambda length: 1 if length >= 0.100 else 0)
    given = dataclasses.replace(given, intervals=tuple(
        dataclasses.replace(each, packets=1 if index % 25 == 0 else 0) if each.length == 0.004 else each
        for index, each in enumerate(given.intervals)))  # fmt: skip
    rate = forecast.bursts(given)
    assert rate == pytest.approx(-math.log(1 - 10 / 250) / 0.00404, rel=0.01) or rate < 11
    found = forecast.predict(given, Pace())
    assert middle(found.ran) < 0.2 and max(found.ran) <= 0.5 + 1e-6
    assert middle(found.waits) == pytest.approx(pause_of(100) + COMMIT + (100 * PAGE + STATE) / 500e6, rel=0.05)
    assert len(found.waits) > 100


def test_a_vm_that_sends_all_the_time_runs_no_less_than_its_options_say() -> None:
    given = measured(lambda length: 100, lambda length: round(length * 2000))
    assert forecast.bursts(given) == pytest.approx(2000, rel=0.02)
    found = forecast.predict(given, Pace(min_interval=0.004))
    assert middle(found.ran) == pytest.approx(0.004, abs=0.0005)
    slower = forecast.predict(given, Pace(min_interval=0.030))
    assert middle(slower.ran) == pytest.approx(0.030, abs=0.001) and middle(slower.waits) > middle(found.waits)


def test_the_share_of_standing_still_is_kept_whatever_the_pauses() -> None:
    given = measured(lambda length: 100_000, lambda length: round(length * 2000), log_rate=5e9)
    for share in (0.5, 0.2):
        found = forecast.predict(given, Pace(max_pause_share=share, max_added_latency=10.0))
        assert found.pause_share == pytest.approx(share, rel=0.05) and "max_pause_share)" not in str(found.missed)


def test_pauses_that_cannot_be_foreseen_break_the_share_and_that_is_told() -> None:
    """One checkpoint in twelve is enormous: a pause counts for the next run time as two usual ones at most."""
    given = measured(lambda length: 10, lambda length: round(length * 2000), log_rate=50e9)
    some = tuple(dataclasses.replace(each, pages=200_000, copied=0) if index % 12 == 0 else each
                 for index, each in enumerate(given.intervals))  # fmt: skip
    found = forecast.predict(dataclasses.replace(given, intervals=some), Pace(max_pause_share=0.1, max_added_latency=10.0))
    assert found.pause_share > 0.15
    assert found.missed is not None and "(max_pause_share)" in found.missed


def test_an_objective_that_would_be_missed_is_told_in_the_words_of_status() -> None:
    slow = forecast.predict(measured(lambda length: 20_000, log_rate=10e6), Pace())
    assert slow.missed is not None and "(max_added_latency_ms). Most of it is the commit on the secondary" in slow.missed
    paused = forecast.predict(measured(lambda length: 200_000, log_rate=50e9), Pace())
    assert paused.missed is not None and "Most of it is the VM's pause" in paused.missed
    share = Pace(max_added_latency=0.3, max_pause_share=0.1)
    rested = forecast.predict(measured(lambda length: 100_000, lambda length: round(length * 2000), log_rate=50e9), share)
    assert rested.missed is not None and "allow a larger max_pause_share" in rested.missed
    assert forecast.predict(measured(lambda length: 100), Pace()).missed is None


def test_the_worst_pauses_have_the_worst_intervals_and_the_worst_round_trips() -> None:
    given = measured(lambda length: 100, round_trips=(TRIP,) * 95 + (0.005,) * 5)
    some = tuple(dataclasses.replace(each, pages=50_000) if index % 10 == 0 else each for index, each in enumerate(given.intervals))
    found = forecast.predict(dataclasses.replace(given, intervals=some), Pace())
    ordered = sorted(found.pauses)
    assert ordered[len(ordered) // 2] == pytest.approx(pause_of(100), rel=0.05)
    assert ordered[-1] >= pause_of(50_000)
    late = [pause for pause, pages in zip(found.pauses, found.pages, strict=True) if pages < 101 and pause > pause_of(100) + 0.009]
    assert 0.02 < len(late) / len(found.pauses) < 0.08, "one in twenty round trips is late"
    assert sorted(found.pages)[int(0.95 * len(found.pages))] == pytest.approx(50_000, rel=0.01)


def test_real_stops_replace_what_is_assumed_of_qemu() -> None:
    given = measured(lambda length: 100, stops=(0.0080, 0.0090, 0.0100))
    assert forecast.costs(given).pause(0) == pytest.approx(0.0090 + TRIP + SCAN)
    assert forecast.costs(measured(lambda length: 100)).pause(0) < 0.005


def test_what_a_page_costs_is_told_by_scans_and_copies_of_many() -> None:
    cost = forecast.costs(measured(lambda length: round(length * 100_000)))
    assert cost.scan == pytest.approx(SCAN, rel=0.01) and cost.page == pytest.approx(FIND + COPY, rel=0.01)
    few = forecast.costs(measured(lambda length: 10))
    assert few.page == forecast.FIND + forecast.COPY, "ten pages tell nothing of what a page costs"


def test_intervals_that_the_host_made_long_count_for_nothing() -> None:
    given = measured(lambda length: 10)
    interrupted = Interval(0.004, 0.200, 50_000, 0.1, copied=16_384, copy=0.02)
    disturbed = dataclasses.replace(given, intervals=(*given.intervals, *[interrupted] * 20))
    assert forecast.predict(disturbed, Pace()).pages == forecast.predict(given, Pace()).pages
    # Of a VM so large that a scan takes longer than the shortest lengths, these were not measured.
    slow = tuple(dataclasses.replace(each, seconds=max(each.seconds, 0.050)) for each in given.intervals)
    assert [group[0].length for group in forecast.by_length(slow)] == [0.100, 0.500]


def test_disk_writes_are_in_the_log_too() -> None:
    quiet, writing = (forecast.predict(measured(lambda length: 10, disk_rate=rate), Pace()) for rate in (0.0, 50e6))
    assert writing.log_rate - quiet.log_rate == pytest.approx(50e6, rel=0.05)


def test_the_same_figures_give_the_same_forecast() -> None:
    given = measured(lambda length: 100, lambda length: round(length * 50))
    assert forecast.predict(given, Pace()) == forecast.predict(given, Pace())


def with_news(share: dict[float, float], compare: float = 0.0) -> Measured:
    """1,000 pages in each interval; of those copied, so much of their bytes is new, given the interval's length."""
    rows = [Interval(length, length, 1000, SCAN + 1000 * FIND, 0, 1000, 1000 * COPY, round(1000 * PAGE * share[length]), 1000 * compare)
            if copied and length in share else Interval(length, length, 1000, SCAN + 1000 * FIND)
            for length, number in LENGTHS.items() for copied in (True, True, *(False,) * (number - 2))]  # fmt: skip
    return Measured(1024 * MIB, tuple(rows), (TRIP,) * 20, log_rate=500e6)


def test_only_what_is_new_is_sent() -> None:
    whole, little = (forecast.predict(with_news(share), Pace()) for share in ({}, {0.5: 0.02}))
    assert whole.log_rate == pytest.approx((1000 * PAGE + STATE) / (0.5 + pause_of(1000)), rel=0.02)
    assert little.log_rate == pytest.approx((20 * PAGE + STATE) / (0.5 + pause_of(1000)), rel=0.02)
    assert middle(little.commits) == pytest.approx(COMMIT + (20 * PAGE + STATE) / 500e6, rel=0.02)


def test_the_pacer_is_told_of_all_pages_whatever_is_sent_of_them() -> None:
    """What a checkpoint takes goes by its pages: one that sends little of them comes no later for that."""
    pace = Pace(max_added_latency=0.005)
    rows = [Interval(length, length, round(60_000 * length), SCAN, 0, 1000, 1000 * COPY, 1000 * PAGE // 50, 1000 * COPY)
            for length, number in LENGTHS.items() for __ in range(number)]  # fmt: skip
    found = forecast.predict(Measured(1024 * MIB, tuple(rows), (TRIP,) * 20, log_rate=500e6), pace)
    assert middle(found.pauses) + middle(found.commits) < 1.2 * pace.max_added_latency and middle(found.ran) < 0.1


def test_to_find_out_what_is_new_takes_its_time() -> None:
    found = forecast.predict(with_news({0.5: 0.02}, compare=2e-6), Pace())
    assert middle(found.commits) == pytest.approx(COMMIT + 1000 * 2e-6 + (20 * PAGE + STATE) / 500e6, rel=0.02)


def test_the_share_of_news_is_on_a_line_between_the_lengths_measured() -> None:
    news = forecast.News(with_news({0.004: 0.1, 0.1: 0.3, 0.5: 0.7}).intervals)
    assert news.share(0.001) == news.share(0.004) == pytest.approx(0.1)
    assert news.share(0.02) == pytest.approx(0.2, rel=0.001)  # halfway from 4 to 100 ms, of their logarithms
    assert news.share(0.1) == pytest.approx(0.3) and news.share(0.5) == news.share(60.0) == pytest.approx(0.7)
    assert news.share(0.0) == pytest.approx(0.1)
    assert forecast.News(measured(lambda length: 50).intervals).share(0.1) == 1.0
