"""Failure detection on two real networks: what is cut, how long, and who then takes whom for lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.pair import networks as nets
from tests.pair.harness import Pair, Worker, wait_for
from tests.pair.networks import Networks

OPTIONS: dict[str, Any] = {
    "interval_ms": 20,
    "min_interval_ms": 4,
    "agent_grace_ms": 1500,
    "realtime": False,
}
"""Detection as it is by default: 300 ms on both networks, 800 ms on the FT network alone."""
SLOW = {**OPTIONS, "detection_ms": 1000}
"""For what is no loss: a machine that holds its processes up for half a second makes none of it."""

# Here a loss is a matter of fractions of a second, which other tests can take from these workers.
pytestmark = pytest.mark.alone


@pytest.fixture
def networks(pair: Pair) -> Iterator[Networks]:
    nets.share_arbiter(pair)
    made = Networks()
    try:
        yield made
    finally:
        for worker in pair.workers:
            worker.stop()
        made.remove()


def losses(*workers: Worker) -> list[dict[str, Any]]:
    """Every event with which one of these took its peer for lost."""
    return [each for worker in workers for each in worker.poll()
            if each["msg"] == "event" and each["event"] in ("primary_lost", "secondary_lost")]  # fmt: skip


def first_loss(seconds: float, *workers: Worker) -> dict[str, Any] | None:
    """The first loss by silence that any of these tells within so many seconds; None: there was none."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := losses(*workers):
            return min(found, key=lambda each: each["time"])
        time.sleep(0.01)
    return None


def status(worker: Worker) -> dict[str, Any]:
    return worker.wait(msg="status")


def commits(worker: Worker) -> int:
    return int(status(worker)["epoch"])


def goes_on(primary: Worker) -> None:
    """Commits are made from here on."""
    primary.poll()
    primary.messages.clear()
    before = commits(primary)
    until = time.monotonic() + 10
    while commits(primary) <= before:
        assert time.monotonic() < until, "no commit any more"
        primary.messages.clear()


def test_a_log_that_stalls_while_beacons_pass_is_borne(pair: Pair, networks: Networks) -> None:
    primary, secondary = nets.protect(pair, networks, {**SLOW, "ft_silence_ms": 6000})
    for __ in range(2):
        time.sleep(0.5)
        networks.cut("ft0")
        # TCP makes some more of it: it tries again after 0.2, 0.6, 1.4, 3 s.
        time.sleep(1.2)
        networks.cut()
        time.sleep(1.5)
    assert first_loss(1.0, primary, secondary) is None
    goes_on(primary)


def test_a_log_that_stays_silent_is_a_loss_also_while_beacons_pass(
    pair: Pair, networks: Networks
) -> None:
    primary, secondary = nets.protect(pair, networks, OPTIONS)
    networks.cut("ft0")
    loss = first_loss(6.0, primary, secondary)
    assert loss is not None and loss["data"]["signal"] == "silence"
    assert 800 <= loss["data"]["detection_ms"] < 4000
    assert "beacons of the management network come" in loss["reason"]


# The time for the FT log alone is far away here: what comes before it is the judgement of both.
PATIENT = {**OPTIONS, "ft_silence_ms": 20_000}


def soon(loss: dict[str, Any] | None) -> None:
    assert loss is not None and loss["data"]["signal"] == "silence"
    assert 300 <= loss["data"]["detection_ms"] < 5000
    assert "beacons" not in loss["reason"]


def test_silence_of_both_networks_is_a_loss_after_the_detection_time(
    pair: Pair, networks: Networks
) -> None:
    primary, secondary = nets.protect(pair, networks, PATIENT)
    networks.cut("ft0", "mgmt0")
    soon(first_loss(6.0, primary, secondary))


def test_a_side_that_hears_neither_network_suspects_though_it_is_heard(
    pair: Pair, networks: Networks
) -> None:
    primary, secondary = nets.protect(pair, networks, PATIENT)
    networks.cut("ft0", "mgmt0", hosts=("node-b",))
    soon(first_loss(6.0, secondary))
    assert secondary.find(msg="event", event="primary_lost") is not None


def test_a_host_that_stands_still_is_lost_after_the_detection_time(
    pair: Pair, networks: Networks
) -> None:
    primary, secondary = nets.protect(pair, networks, PATIENT)
    time.sleep(0.3)
    for each in (primary.process.pid, pair.primary_vm.process.pid):
        os.kill(each, signal.SIGSTOP)
    try:
        soon(first_loss(6.0, secondary))
        secondary.wait(msg="done", outcome="activated")
    finally:
        os.kill(primary.process.pid, signal.SIGCONT)


def test_a_management_network_that_is_cut_costs_nothing_and_is_told(
    pair: Pair, networks: Networks
) -> None:
    primary, secondary = nets.protect(pair, networks, {**PATIENT, **SLOW})
    networks.cut("mgmt0")
    for worker, peer in ((primary, "node-b"), (secondary, "node-a")):
        told = worker.wait(msg="event", event="beacons_missed")
        assert f"no beacons come from {peer}" in told["reason"]
    wait_for("status to say so", lambda: str(status(primary)["beacons_missed"]).startswith("No beacons come from node-b"))
    networks.cut()
    for worker in (primary, secondary):
        worker.wait(msg="event", event="beacons_back")
        told_of = [each["event"] for each in worker.poll() if each["msg"] == "event"]
        assert (told_of.count("beacons_missed"), told_of.count("beacons_back")) == (1, 1)
    wait_for("status to say no more of it", lambda: status(primary)["beacons_missed"] is None)
    assert losses(primary, secondary) == []
    networks.cut("mgmt0")
    time.sleep(0.5)
    networks.cut("ft0", "mgmt0")
    soon(first_loss(6.0, primary, secondary))


def sockets(worker: Worker) -> int:
    """UDP sockets in the worker's network namespace, where nothing else runs."""
    with open(f"/proc/{worker.process.pid}/net/udp", encoding="ascii") as file:
        return len(file.readlines()) - 1


@pytest.mark.parametrize("older", ["node-a", "node-b"])
def test_a_pair_with_an_older_version_detects_by_the_log_alone(
    pair: Pair, networks: Networks, older: str
) -> None:
    """A version before beacons says nothing of them in HELLO or WELCOME, as one that was told no addresses."""
    newer = tuple(host for host in nets.HOSTS if host != older)
    primary, secondary = nets.protect(pair, networks, PATIENT, newer)
    assert sockets(secondary) == 0
    networks.cut("ft0")
    soon(first_loss(6.0, primary, secondary))


def test_a_port_that_cannot_be_had_costs_only_the_beacons(pair: Pair, networks: Networks) -> None:
    subprocess.run(
        ["ip", "-n", networks.names["node-b"], "addr", "flush", "dev", "mgmt0"], check=True
    )
    primary, secondary = nets.protect(pair, networks, PATIENT)
    told = secondary.wait(msg="event", event="no_beacons")
    assert "10.190.0.12" in told["reason"] and "management interface" in told["reason"]
    networks.cut("ft0")
    soon(first_loss(6.0, primary, secondary))


@contextmanager
def starved(*workers: Worker) -> Iterator[None]:
    """The workers share one processor with three busy processes of the same priority."""
    cpu = {min(os.sched_getaffinity(0))}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for __ in range(3)]
    try:
        for each in (*workers, *busy):
            pid = each.process.pid if isinstance(each, Worker) else each.pid
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), cpu)
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def test_starved_workers_are_not_suspected(pair: Pair, networks: Networks) -> None:
    primary, secondary = nets.protect(pair, networks, OPTIONS)
    with starved(primary, secondary):
        assert first_loss(5.0, primary, secondary) is None
    goes_on(primary)


def test_a_worker_that_stands_still_for_200_ms_is_not_suspected(
    pair: Pair, networks: Networks
) -> None:
    primary, secondary = nets.protect(pair, networks, OPTIONS)
    for worker in (primary, secondary) * 3:
        os.kill(worker.process.pid, signal.SIGSTOP)
        time.sleep(0.2)
        os.kill(worker.process.pid, signal.SIGCONT)
        time.sleep(0.4)
    assert first_loss(0.5, primary, secondary) is None
    goes_on(primary)


def test_a_worker_that_stood_still_does_not_take_that_for_its_peers_silence(
    pair: Pair, networks: Networks
) -> None:
    """The secondary is patient here, so that it does not end the pair before the primary wakes."""
    primary, secondary = nets.protect(pair, networks, OPTIONS, patient=("node-b",))
    for __ in range(3):
        os.kill(primary.process.pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(primary.process.pid, signal.SIGCONT)
        time.sleep(0.5)
    assert first_loss(0.5, primary, secondary) is None
    goes_on(primary)
