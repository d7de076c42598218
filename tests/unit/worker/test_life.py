"""Signs of life: how often they are sent, whom they tell, and what is made of the peer's."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from kvmft.adapters.reactor import Reactor
from kvmft.core.beacon import KEY_BYTES, VERSION
from kvmft.core.wire import WireError
from kvmft.worker.config import BeaconPaths
from kvmft.worker.life import SIGNS, Life

PORTS = (16800, 17199)
SESSION = "5" * 32


class Waited(Reactor):
    """Its time is what it waited for: none goes by while this process is held up."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0

    def now(self) -> float:  # type: ignore[override]
        return self.time

    def step(self, timeout: float | None = None) -> None:
        ends = [timer.due for timer in self._timers if timer.callback]
        until = min(ends if timeout is None else [*ends, self.time + timeout])
        begun = time.monotonic()
        super().step(until - self.time)
        self.time = min(until + 1e-9, self.time + time.monotonic() - begun)
        super().step(0.0)  # what is due now


class Side:
    """One worker's Life, whose FT log is a number that says when it was heard last."""

    def __init__(self, reactor: Reactor, role: str, own: int, peer: int, **config: Any) -> None:
        self.reactor = reactor
        self.events: list[str] = []
        self.losses: list[tuple[str, float]] = []
        self.heartbeats = 0
        self.can_send = True
        self.paired = True
        self.log_lives = True
        paths = BeaconPaths(f"127.0.0.{own}", f"127.0.0.{peer}", PORTS)
        settings = {"role": role, "session": SESSION, "peer": "node-x", "detection": 0.2, "ft_silence": 0.6,
                    "beacons": paths, **config}  # fmt: skip
        link = SimpleNamespace(event=lambda name, reason, **data: self.events.append(name))
        self.stopped = 0.0
        self.life = Life(reactor, SimpleNamespace(**settings), link, lambda: self.paired, self.heard,  # type: ignore[arg-type]
                         self.beat, lambda reason, silence: self.losses.append((reason, silence)))  # fmt: skip

    def heard(self) -> float:
        return self.reactor.now() if self.log_lives else self.stopped

    def stop_log(self) -> None:
        self.log_lives, self.stopped = False, self.reactor.now()

    def beat(self) -> bool:
        self.heartbeats += self.can_send
        return self.can_send


class Both:
    """Two sides in one reactor."""

    def __init__(self, **config: Any) -> None:
        self.reactor = Waited()
        self.one = Side(self.reactor, "primary", 1, 2, **config)
        self.other = Side(self.reactor, "secondary", 2, 1, **config)

    def begin(self, one: bool = True, other: bool = True) -> None:
        """HELLO and WELCOME; a side that is False is of a version before beacons."""
        self.one.life.begin()
        self.other.life.begin()
        hello = self.one.life.offer() if one else None
        welcome = self.other.life.offer() if other and hello else None
        self.other.life.learn(hello)
        self.one.life.learn(welcome)

    def run(self, seconds: float) -> None:
        self.reactor.run_until(lambda: False, seconds)

    def close(self) -> None:
        self.one.life.end()
        self.other.life.end()
        self.reactor.close()


@pytest.fixture
def both() -> Iterator[Both]:
    made = Both()
    yield made
    made.close()


def lost_after(both: Both, seconds: float) -> float | None:
    """When side one takes the other for lost, in seconds from now; None: not within `seconds`."""
    begun = both.reactor.now()
    lost = both.reactor.run_until(lambda: bool(both.one.losses), seconds)
    return both.reactor.now() - begun if lost else None


def test_a_log_that_stalls_is_borne_longer_while_beacons_come(both: Both) -> None:
    both.begin()
    both.run(0.2)
    both.one.stop_log()
    found = lost_after(both, 5.0)
    assert found is not None and 0.6 <= found < 0.7
    reason, silence = both.one.losses[0]
    assert "though beacons of the management network come" in reason and silence >= 0.6
    both.run(0.3)
    assert len(both.one.losses) == 1 and both.other.losses == []


@pytest.mark.parametrize("old", ["one", "other"])
def test_with_a_version_before_beacons_the_log_alone_counts(old: str) -> None:
    both = Both(ft_silence=30.0)
    both.begin(**{old: False})
    both.run(0.2)
    both.one.stop_log()
    assert lost_after(both, 5.0) is not None
    assert both.one.losses[0][0].endswith("ms")
    both.close()


def test_beacons_that_end_with_the_log_give_no_patience() -> None:
    both = Both(ft_silence=30.0)
    both.begin()
    both.run(0.2)
    both.other.life.end()
    both.one.stop_log()
    assert lost_after(both, 5.0) is not None
    both.close()


def test_until_there_is_a_pair_it_is_patient_and_then_no_more(both: Both) -> None:
    both.one.paired = False
    both.begin(one=False)
    both.one.stop_log()
    assert lost_after(both, 1.0) is None
    both.one.paired = True
    assert lost_after(both, 5.0) is not None


def test_signs_are_sent_so_often_and_not_more(both: Both) -> None:
    both.begin()
    for __ in range(200):
        both.one.life.show()  # as from within long work
    assert both.one.heartbeats == 1
    both.run(1.0)
    assert 1.0 / 0.2 * SIGNS - 2 <= both.one.heartbeats <= 1.0 / 0.2 * SIGNS + 2


def test_a_heartbeat_that_could_not_be_sent_is_due_still(both: Both) -> None:
    both.begin()
    both.one.can_send = False
    both.one.life.show()
    both.one.can_send = True
    both.one.life.show()
    assert both.one.heartbeats == 1


def test_long_work_shows_life_on_the_management_network_too() -> None:
    both = Both(ft_silence=30.0)
    both.begin()
    both.run(0.1)
    offered = both.one.life.offer()  # a port of the primary's that nobody reads but this test
    assert offered is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.2", 0))
        peer.settimeout(20.0)
        both.one.life.learn(
            {"version": VERSION, "port": peer.getsockname()[1], "key": "00" * KEY_BYTES}
        )
        for __ in range(500):
            both.one.life.show()
            both.reactor.time += 0.001
        numbers = [int.from_bytes(peer.recv(100)[18:26], "big") for __ in range(int(0.5 / 0.2 * SIGNS) - 2)]
        peer.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            while True:
                numbers.append(int.from_bytes(peer.recv(100)[18:26], "big"))
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) <= 0.5 / 0.2 * SIGNS + 2
    both.close()


def test_what_a_stranger_sends_is_no_life() -> None:
    both = Both(ft_silence=30.0)
    both.begin()
    both.run(0.1)
    both.other.life.end()
    both.one.stop_log()
    port = both.one.life._socket.port  # type: ignore[union-attr]
    genuine_port = both.one.life._socket._sock.getpeername()  # type: ignore[union-attr]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(genuine_port)  # even from the peer's own address and port
        for __ in range(60):
            stranger.sendto(b"\1\2" + bytes(40), ("127.0.0.1", port))
            both.run(0.01)
    assert both.one.losses
    both.close()


def test_no_addresses_and_no_port_mean_no_beacons() -> None:
    without = Both(beacons=None)
    without.one.life.begin()
    assert without.one.life.offer() is None and without.one.events == []
    without.close()
    elsewhere = Both(beacons=BeaconPaths("192.0.2.77", "127.0.0.2", PORTS))
    elsewhere.one.life.begin()
    assert elsewhere.one.life.offer() is None and elsewhere.one.events == ["no_beacons"]
    elsewhere.close()


def test_an_offer_to_which_no_way_leads_is_told_and_no_loss() -> None:
    both = Both(beacons=BeaconPaths("127.0.0.1", "255.255.255.255", PORTS))
    both.one.life.begin()
    assert both.one.life.offer() is not None
    both.one.life.learn({"version": VERSION, "port": 7411, "key": "00" * KEY_BYTES})
    assert both.one.events == ["no_beacons"]
    assert str(both.one.life.beacons_missed).startswith("Only the FT log shows life: There is no way to 255.255.255.255")
    both.run(0.4)
    assert both.one.losses == []
    both.close()


def test_an_offer_that_comes_twice_is_refused(both: Both) -> None:
    both.begin()
    with pytest.raises(WireError):
        both.one.life.learn({"version": VERSION, "port": 7411, "key": "00" * KEY_BYTES})


def test_missing_beacons_are_told_and_are_no_loss(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmft.core.detector.BEACONS_MISSED", 0.5)
    both.begin()
    both.run(0.2)
    both.other.life._close_socket()
    both.run(1.0)
    assert both.one.events == ["beacons_missed"] and both.one.losses == []
    missed = both.one.life.beacons_missed
    assert missed is not None and missed.startswith("No beacons come from ") and missed.endswith("there.")
    both.one.life.begin()  # another connection
    assert both.one.life.beacons_missed is None


def test_after_its_end_nothing_is_sent_or_judged(both: Both) -> None:
    both.begin()
    both.run(0.1)
    both.one.life.end()
    both.one.heartbeats = 0
    both.one.stop_log()
    both.one.life.show()
    both.run(0.5)
    assert both.one.heartbeats == 0 and both.one.losses == []
    assert both.one.life._socket is None
    both.other.life.end()
    both.run(0.1)
    assert not [timer for timer in both.reactor._timers if timer.callback], "nothing wakes it any more"
    both.one.life.begin()  # another connection
    both.one.log_lives = True
    both.run(0.3)
    assert both.one.heartbeats > 0 and both.one.losses == []
