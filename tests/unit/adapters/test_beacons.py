"""The beacons' socket: ports of the range, the peer's datagrams alone, and nothing that goes wrong ends a worker."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from kvmft.adapters.beacons import BeaconSocket
from kvmft.adapters.reactor import Reactor
from kvmft.errors import KvmftError

PORTS = (16400, 16799)


class Ends:
    """Two sockets on loopback addresses, and what each heard."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.heard: list[list[bytes]] = [[], []]
        self.sockets = [BeaconSocket(self.reactor, f"127.0.0.{last}", PORTS, self.heard[number].append)
                        for number, last in enumerate((1, 2))]  # fmt: skip

    def connect(self) -> None:
        for number, last in ((0, 2), (1, 1)):
            self.sockets[number].connect(f"127.0.0.{last}", self.sockets[1 - number].port)

    def run(self, seconds: float = 0.05) -> None:
        """Some turns, however late this process is."""
        for __ in range(5):
            self.reactor.step(seconds / 5)

    def close(self) -> None:
        for each in self.sockets:
            each.close()
        self.reactor.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def test_what_one_sends_the_other_hears(ends: Ends) -> None:
    ends.connect()
    ends.sockets[0].send(b"one")
    ends.sockets[0].send(b"two")
    ends.sockets[1].send(b"three")
    ends.run()
    assert ends.heard == [[b"three"], [b"one", b"two"]]


def test_before_the_peer_is_known_nothing_is_sent_or_heard(ends: Ends) -> None:
    ends.sockets[0].send(b"nobody")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"early", ("127.0.0.1", ends.sockets[0].port))
        ends.run()
    assert ends.heard == [[], []]


def test_a_stranger_is_not_heard(ends: Ends) -> None:
    ends.connect()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.2", 0))  # the peer's address, another port
        stranger.sendto(b"I am the peer", ("127.0.0.1", ends.sockets[0].port))
        stranger.sendto(b"x" * 60000, ("127.0.0.1", ends.sockets[0].port))
        ends.run()
    assert ends.heard == [[], []]


def test_a_peer_that_is_gone_breaks_nothing_and_is_heard_when_it_is_back(ends: Ends) -> None:
    ends.connect()
    port = ends.sockets[1].port
    ends.sockets[1].close()
    for __ in range(5):
        ends.sockets[0].send(b"anybody there?")  # the kernel tells of the closed port
        ends.run(0.01)
    for __ in range(3):
        ends.sockets[0].send(b"anybody there?")  # and tells it to the next that is sent
        time.sleep(0.005)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back:
        back.bind(("127.0.0.2", port))
        back.connect(("127.0.0.1", ends.sockets[0].port))
        back.send(b"here again")
        ends.run()
        ends.sockets[0].send(b"good")
        assert back.recv(100) == b"good"
    assert ends.heard[0] == [b"here again"]


def test_the_first_free_port_of_the_range_is_taken(ends: Ends) -> None:
    first = ends.sockets[0].port
    assert PORTS[0] <= first <= PORTS[1]
    other = BeaconSocket(ends.reactor, "127.0.0.1", PORTS, lambda data: None)
    second = other.port
    assert first < second <= PORTS[1]
    other.close()
    other.close()
    again = BeaconSocket(ends.reactor, "127.0.0.1", PORTS, lambda data: None)
    assert again.port == second
    again.close()


def test_a_range_that_is_in_use_and_an_address_that_is_not_here_are_told(ends: Ends) -> None:
    taken = ends.sockets[0].port
    for address, ports in (("127.0.0.1", (taken, taken)), ("192.0.2.77", PORTS)):
        descriptors = len(os.listdir("/proc/self/fd"))
        with pytest.raises(KvmftError) as caught:
            BeaconSocket(ends.reactor, address, ports, lambda data: None)
        assert caught.value.code == "beacons_no_port" and address in caught.value.message
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_peer_without_a_route_is_told(ends: Ends) -> None:
    with pytest.raises(KvmftError) as caught:
        ends.sockets[0].connect("255.255.255.255", 7411)
    assert caught.value.code == "management_network_down"


def test_a_flood_does_not_hold_up_the_reactor(ends: Ends) -> None:
    ends.connect()
    for number in range(150):
        ends.sockets[1].send(b"%d" % number)
    ends.reactor.step(0.5)
    assert 0 < len(ends.heard[0]) < 150
    ends.run()
    assert len(ends.heard[0]) == 150


def test_it_may_be_closed_by_what_it_heard() -> None:
    reactor = Reactor()
    heard: list[bytes] = []

    def took(data: bytes) -> None:
        heard.append(data)
        one.close()

    one = BeaconSocket(reactor, "127.0.0.1", PORTS, took)
    two = BeaconSocket(reactor, "127.0.0.2", PORTS, lambda data: None)
    one.connect("127.0.0.2", two.port)
    two.connect("127.0.0.1", one.port)
    two.send(b"first")
    two.send(b"second")
    assert reactor.run_until(lambda: bool(heard), 20)
    reactor.step(0.05)
    assert heard == [b"first"]
    two.close()
    reactor.close()
