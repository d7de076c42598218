"""What protection would cost a VM, told from what was measured of it while it ran unprotected.

There is no second rule of when a checkpoint is due: `core.pacing.Pacer` itself is run over the measured memory and output
of the VM, epoch after epoch, with the costs that were measured on this host. What it then shows is the forecast.

Of a page that the secondary knows only what is new crosses the FT log (`worker.shadow`). How much that is, is measured with the same
code on the pages that are copied, each time against what was copied before.

All times in seconds, sizes in bytes, rates per second; a page has 4 KiB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvmft.core.pacing import FIRST_THROUGHPUT, Pace, Pacer
from kvmft.core.vmstream import PAGE

STOP_AND_CONT = 0.0007
"""What `stop` and `cont` take within QEMU, without the round trips to its monitor."""
SAVE = 0.0009
"""What saving the devices takes, meanwhile memory is copied."""
FIND, COPY = 0.1e-6, 1.0e-6
"""A page more in a scan and in a copy, where the VM writes less than MEASURABLE pages, so that it hardly matters."""
MEASURABLE = 64
ROUND_TRIPS = 2
"""To QEMU's monitor in a checkpoint: `stop` with the save, then `cont`."""
COMMIT = 0.0006
"""From the VM's resumption to the acknowledgement, of a checkpoint with hardly a page."""
STATE = 60 << 10
"""The devices' state in a checkpoint."""
LIKELY_LOG_RATE = FIRST_THROUGHPUT
"""Where nothing was measured of the FT network."""
LONE_REQUESTS = 1.0
"""Requests a second for which latency is told where the VM sent nothing while it was measured."""
LATE = 1.5
"""An interval so many times longer than others of its length is one that the host interrupted, and a length whose
intervals were all so much longer was not measured."""
WARM_UP, WARM_UP_EPOCHS = 5.0, 64
"""Simulated time and epochs that do not count: the pacer learns the costs."""
SIMULATED, EPOCHS = 600.0, 2000
"""Then it counts, until the first of these is reached."""


@dataclass(frozen=True)
class Interval:
    """What the VM did in one tracked interval of about `length`, which took `seconds`: `pages` that it wrote, the
    time `scan` that it took to find them, and the packets that it sent. `copied` pages of these were copied
    in the time `copy`; `sent` bytes of them would cross the FT log, which took `compare` to find out. None: all."""

    length: float
    seconds: float
    pages: int
    scan: float
    packets: int = 0
    copied: int = 0
    copy: float = 0.0
    sent: int | None = None
    compare: float = 0.0


@dataclass(frozen=True)
class Measured:
    """Everything measured of one VM. `round_trips`: to QEMU's monitor, one by one. `stops`: real stops of the VM with
    its devices saved, where somebody asked for them. `log_rate`: what the FT network carries, None where
    no peer answered. `sees_output`: whether the packets of the VM could be counted."""

    ram: int
    intervals: tuple[Interval, ...]
    round_trips: tuple[float, ...]
    stops: tuple[float, ...] = ()
    disk_rate: float = 0.0
    log_rate: float | None = None
    sees_output: bool = True


@dataclass(frozen=True)
class Costs:
    """What a checkpoint is made of. `stop`: stop and cont with their round trips; `save`: of the devices, meanwhile the
    pages are found and copied; `scan`: finding no page; `page`: finding and copying one more; `late`: by how much
    the worst round trips exceed the usual one, in order; `compare`: finding out what is new in a page."""

    stop: float
    save: float
    scan: float
    page: float
    late: tuple[float, ...]
    log_rate: float
    compare: float = 0.0

    def pause(self, pages: float, luck: float = 0.5) -> float:
        """How long the VM stands still for so many pages; `luck` (0 to 1) is the quantile of what delays QEMU."""
        return self.stop + max(self.save, self.scan + pages * self.page) + self.scan + ROUND_TRIPS * quantile(self.late, luck)

    def commit(self, size: float, pages: float) -> float:
        """From the VM's resumption to the acknowledgement of a checkpoint of so many `pages`, of which `size` bytes are sent."""
        return COMMIT + pages * self.compare + size / self.log_rate


@dataclass(frozen=True)
class Prediction:
    """Epoch by epoch: pauses, run times, pages, commits; and what output had to wait. `missed` is the sentence that status would
    show as `objective_missed`."""

    pauses: tuple[float, ...]
    ran: tuple[float, ...]
    pages: tuple[float, ...]
    commits: tuple[float, ...]
    waits: tuple[float, ...]
    pause_share: float
    log_rate: float
    missed: str | None


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value at `share` (0 to 1) of ordered values; 0 where there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def median(values: Sequence[float]) -> float:
    """The middle one of `values`, in any order."""
    return quantile(sorted(values), 0.5)


def by_length(intervals: Sequence[Interval]) -> list[list[Interval]]:
    """The intervals of each length, shorter ones first, without what LATE leaves out; at least one length is left."""
    grouped: list[list[Interval]] = []
    for length in sorted({each.length for each in intervals}):
        group = [each for each in intervals if each.length == length]
        usual = median([each.seconds for each in group])
        grouped.append([each for each in group if each.seconds <= LATE * usual])
    return [group for group in grouped if median([each.seconds for each in group]) <= LATE * group[0].length] or grouped[-1:]


class Curve:
    """Pages against the time that the VM ran: fewer for each further millisecond, as it writes the same ones again."""

    def __init__(self, intervals: Sequence[Interval], ram: int) -> None:
        self._most = ram / PAGE
        grouped = by_length(intervals)
        self._at = [math.log(median([each.seconds for each in group])) for group in grouped]
        self._pages = [sorted(math.log1p(each.pages) for each in group) for group in grouped]

    def pages(self, ran: float, luck: float = 0.5) -> float:
        """Pages written in `ran` seconds, at quantile `luck`: between the measured lengths on a straight line of
        logarithms; beyond them at most in proportion to the time."""
        if ran <= 0:
            return 0.0
        x, points = math.log(ran), [(at, quantile(group, luck)) for at, group in zip(self._at, self._pages, strict=True)]
        if len(points) == 1:
            points.append((points[0][0] + 1.0, points[0][1] + 1.0))
        last = len(points) - 2
        index = next((number for number in range(last) if x < points[number + 1][0]), last)
        (x1, y1), (x2, y2) = points[index : index + 2]
        slope = (y2 - y1) / (x2 - x1) if x2 > x1 else 0.0
        start = (x1, y1)
        if x < points[0][0] or x > points[-1][0]:
            slope = min(1.0, max(0.0, slope))
            start = points[0] if x < points[0][0] else points[-1]
        return min(self._most, max(0.0, math.expm1(start[1] + slope * (x - start[0]))))


class News:
    """The share of its pages' bytes that a checkpoint sends, against the time that the VM ran: more of a page is new after longer."""

    def __init__(self, intervals: Sequence[Interval]) -> None:
        self._points: list[tuple[float, float]] = []
        for group in by_length(intervals):
            shares = [each.sent / (each.copied * PAGE) for each in group if each.copied and each.sent is not None]
            if shares:
                self._points.append((math.log(median([each.seconds for each in group])), median(shares)))

    def share(self, ran: float) -> float:
        """On straight lines between what was measured, and beyond that as at its ends; 1 where nothing was."""
        if not self._points or ran <= 0:
            return self._points[0][1] if self._points else 1.0
        x, (first, *__), (last, *__) = math.log(ran), self._points[0], self._points[-1]
        if x <= first or x >= last:
            return self._points[0 if x <= first else -1][1]
        (x1, y1), (x2, y2) = next(
            pair for pair in zip(self._points, self._points[1:], strict=False) if x <= pair[1][0]
        )
        return y1 + (y2 - y1) * (x - x1) / (x2 - x1)


def costs(measured: Measured) -> Costs:
    """What a checkpoint of this VM costs on this host. Medians count, so that a scan which the host interrupted tells
    nothing; what a page costs is told by the intervals that had most of them."""
    groups = by_length(measured.intervals)
    few, *__, many = sorted((median([each.pages for each in group]), median([each.scan for each in group])) for group in groups * 2)
    find = FIND
    if many[0] - few[0] >= MEASURABLE:
        find = max(0.0, (many[1] - few[1]) / (many[0] - few[0]))
    copies = [each for group in groups for each in group if each.copied]
    most = max((each.copied for each in copies), default=0)
    copy, compare = COPY, 0.0
    if most >= MEASURABLE:
        large = [each for each in copies if each.copied >= most / 2]
        copy = median([each.copy / each.copied for each in large])
        compare = median([each.compare / each.copied for each in large])
    trips = sorted(measured.round_trips)
    usual = quantile(trips, 0.5)
    stop = STOP_AND_CONT + ROUND_TRIPS * usual
    if measured.stops:
        # One command stopped the VM, saved and let it run: a checkpoint needs one round trip more.
        stop = max(0.0, median(measured.stops) + usual - SAVE)
    late = tuple(max(0.0, each - usual) for each in trips)
    scan = max(0.0, few[1] - few[0] * find)
    return Costs(stop, SAVE, scan, find + copy, late, measured.log_rate or LIKELY_LOG_RATE, compare)


def bursts(measured: Measured) -> float:
    """How often a second the VM begins to send something: packets that follow at once count as one."""
    short = by_length(measured.intervals)[0]
    length = median([each.seconds for each in short])
    busy = sum(1 for each in short if each.packets) / len(short)
    seconds = sum(each.seconds for each in measured.intervals)
    rate = sum(each.packets for each in measured.intervals) / seconds if seconds > 0 else 0.0
    # Of intervals of this length the share 1 - exp(-rate x length) has output.
    return min(rate, -math.log(1.0 - busy) / length) if 0 < busy < 1 else rate


def _spread(step: float) -> Iterator[float]:
    """Numbers between 0 and 1 that cover it evenly, and are the same each time."""
    share = 0.5
    while True:
        yield share
        share = (share + step) % 1.0


def _arrivals(rate: float) -> Iterator[float]:
    """The times, of the VM's own clock, at which it sends something: at random, `rate` times a second."""
    if rate <= 0:
        yield math.inf
        return
    now = 0.0
    for share in _spread(math.sqrt(3) - 1):
        now -= math.log(1.0 - share) / rate
        yield now


def predict(measured: Measured, pace: Pace) -> Prediction:
    """What `pace` would make of the VM. Where it sent nothing, the waits are those of LONE_REQUESTS a second."""
    rate = bursts(measured)
    if rate > 0:
        return _simulate(measured, pace, rate)
    silent, asked = _simulate(measured, pace, 0.0), _simulate(measured, pace, LONE_REQUESTS)
    return Prediction(silent.pauses, silent.ran, silent.pages, silent.commits, asked.waits, silent.pause_share, silent.log_rate,
                      silent.missed or asked.missed)  # fmt: skip


def _simulate(measured: Measured, pace: Pace, rate: float) -> Prediction:
    """Epochs as `core.primary` has them: one checkpoint at a time, due when the pacer says so."""
    cost, curve, pacer = costs(measured), Curve(measured.intervals, measured.ram), Pacer(pace)
    news = News(measured.intervals)
    arrivals, pages_luck, pause_luck = _arrivals(rate), _spread((math.sqrt(5) - 1) / 2), _spread(math.sqrt(2) - 1)
    output, resumed, committed, ran_until = next(arrivals), 1.0, 1.0, 0.0
    rows: list[tuple[float, float, float, float, float]] = []
    waits: list[float] = []
    begun, number = math.inf, 0
    while len(rows) < EPOCHS and (begun == math.inf or resumed < begun + SIMULATED):
        if begun == math.inf and number >= WARM_UP_EPOCHS and resumed >= WARM_UP:
            begun = resumed
        number += 1
        # Output of the VM's own time `output` is sent when the clock on the wall shows this:
        sent = resumed + output - ran_until
        at = max(committed, pacer.due(False))
        if sent < at:
            at = max(committed, sent, pacer.due(True))
        ran = at - resumed
        pages = curve.pages(ran, next(pages_luck))
        others = STATE + measured.disk_rate * ran
        size = pages * PAGE * news.share(ran) + others
        pause, ahead = cost.pause(pages, next(pause_luck)), resumed - ran_until
        resumed, ran_until = at + pause, ran_until + ran
        committed = resumed + cost.commit(size, pages)
        pacer.captured(resumed, pause, int(pages * PAGE + others))
        pacer.committed(committed)
        while output <= ran_until:
            if begun < math.inf:
                waits.append(committed - (ahead + output))
            output = next(arrivals)
        if begun < math.inf:
            rows.append((pause, ran, pages, committed - resumed, size))
    pauses, times, pages_of, commits, sizes = (tuple(column) for column in zip(*rows, strict=True))
    elapsed = sum(pauses) + sum(times)
    share = sum(pauses) / elapsed
    missed = pacer.shortfall() or _waits_missed(waits, pace) or _share_missed(share, pace)
    return Prediction(pauses, times, pages_of, commits, tuple(waits), share, sum(sizes) / elapsed, missed)


def _waits_missed(waits: Sequence[float], pace: Pace) -> str | None:
    """Pause and commit are short enough, but the VM has to run between two pauses."""
    usual = median(waits)
    if usual <= pace.max_added_latency:
        return None
    return (
        f"Output waits about {usual * 1000:.0f} ms for its checkpoint, asked for are at most "
        f"{pace.max_added_latency * 1000:.0f} ms (max_added_latency_ms). Most of it is the time that the VM has to run between two "
        "pauses: allow a larger max_pause_share or a smaller min_interval_ms."
    )


def _share_missed(share: float, pace: Pace) -> str | None:
    if round(100 * share) <= round(100 * pace.max_pause_share):
        return None
    return (
        f"The VM stands still {100 * share:.0f} % of the time, asked for are at most {100 * pace.max_pause_share:.0f} % "
        "(max_pause_share). Its pauses differ too much to be foreseen: look at the pages per epoch."
    )
