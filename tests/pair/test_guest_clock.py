"""A guest on KVM's clock under protection: how much time it loses, and that its clock never goes back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.pair import clockguest
from tests.pair.conftest import kvm_boots
from tests.pair.harness import Machine, Pair, wait_for

pytestmark = pytest.mark.skipif(not kvm_boots(), reason="no KVM here that runs a guest")

OPTIONS = {"interval_ms": 25, "min_interval_ms": 25, "max_pause_share": 0.9, "detection_ms": 1000, "agent_grace_ms": 1500}
WINDOW, BETWEEN = 3.0, 7.0
"""Seconds."""


@contextmanager
def _clocks(directory: Path) -> Iterator[Pair]:
    pair = Pair(directory, "kvm", machine=Machine(write_disk=clockguest.write_disk))
    try:
        wait_for("the guest's clock", lambda: clockguest.readings(pair.primary_vm.serial), 30)
        yield pair
    finally:
        pair.stop()


def _behind(serial: Path) -> float:
    """Seconds that the guest's clock is behind the host's at its best during WINDOW, from an origin of its own."""
    found = []
    until = time.monotonic() + WINDOW
    with serial.open("rb") as file:
        while time.monotonic() < until:
            file.seek(-min(90, file.seek(0, os.SEEK_END)), os.SEEK_END)
            *__, line, __ = [b"", *file.read().split(b"\n")]
            if len(line) == 42:
                found.append(time.clock_gettime(time.CLOCK_MONOTONIC_RAW) - int(line.split()[0], 16) / 1e9)
            time.sleep(0.001)
    return min(found)


def _calibrate(serial: Path) -> float:
    """Nanoseconds of the guest's clock for one tick of its counter, while nothing stops it."""
    time.sleep(WINDOW)
    first, *__, last = clockguest.readings(serial)
    return (last.clock - first.clock) / (last.counter - first.counter)


def _loss_ppm(serial: Path, tick: float) -> float:
    """What the clock lost against the counter, which runs on through a stop; the guest reads both at one moment. Of each
    window the best reading counts: between two corrections the clock falls behind, and comes up again."""
    ends = []
    for wait in (0.0, BETWEEN):
        time.sleep(wait)
        known = len(clockguest.readings(serial))
        time.sleep(WINDOW)
        ends.append(min((each.counter * tick - each.clock, each.counter) for each in clockguest.readings(serial)[known:]))
    (behind, begun), (later, ended) = ends
    return (later - behind) / ((ended - begun) * tick) * 1e6


def test_a_guest_on_kvmclock_keeps_true_time_at_25_ms_epochs(tmp_path: Path) -> None:
    losses, hosts = {}, {}
    with _clocks(tmp_path) as pair:
        serial = pair.primary_vm.serial
        tick = _calibrate(serial)
        for kept in (False, True):
            __, port = pair.start_secondary()
            primary = pair.start_primary(port, options={**OPTIONS, "true_time": kept},
                                         arbitration="held" if kept else "create")  # fmt: skip
            primary.wait(msg="state", state="protected")
            before, begun = _behind(serial), time.monotonic()
            losses[kept] = _loss_ppm(serial, tick)
            hosts[kept] = (_behind(serial) - before) / (time.monotonic() - begun)
            status = primary.find(msg="status")
            assert status is not None
            print(f"true_time {kept}: {losses[kept]:.0f} ppm lost; the status says {status['guest_clock_loss_ppm']} ppm")
            primary.stop()
            pair.renew_standby()
        last = clockguest.readings(serial)[-1]
    assert losses[False] > 5_000, losses
    assert abs(losses[True]) < 200, losses
    # The counter is the measure above: it is true itself, as far as a starved guest's printing tells.
    assert abs(hosts[True]) < 0.005, hosts
    assert last.back == 0


def test_a_failover_takes_no_time_from_a_guest_on_kvmclock(tmp_path: Path) -> None:
    with _clocks(tmp_path) as pair:
        secondary, port = pair.start_secondary(options=OPTIONS)
        primary = pair.start_primary(port, options=OPTIONS)
        primary.wait(msg="state", state="protected")
        before = _behind(pair.primary_vm.serial)
        for each in (primary.process.pid, pair.primary_vm.process.pid):
            os.kill(each, signal.SIGSTOP)  # a silent host: noticed after `detection_ms`
        try:
            event = secondary.wait(msg="event", event="activated")
            after = _behind(pair.standby_vm.serial)
        finally:
            os.kill(primary.process.pid, signal.SIGCONT)
        last = clockguest.readings(pair.standby_vm.serial)[-1]
    assert event["data"]["clock_put_forward_ms"] > OPTIONS["detection_ms"]
    assert abs(after - before) < 0.25, f"{after - before:.3f} s lost of {event['data']}"
    assert last.back == 0
