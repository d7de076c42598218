"""Packets for the guest: told with their epoch while the pair lives, kept by the secondary until a commit covers them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest

from kvmft.adapters.reactor import Reactor
from kvmft.core.events import TakeCheckpoint
from kvmft.core.wire import HEADER, FrameType, WireError, decode_header
from kvmft.worker import guest_input
from kvmft.worker.guest_input import EPOCH_PACKETS, KEPT_BYTES, InputWatch, Replay
from kvmft.worker.primary import PrimaryWorker


class Tap:
    """A packet socket whose packets the test brings."""

    def __init__(self, _reactor: Reactor, interface: str) -> None:
        self.interface, self.resting, self.waiting = interface, False, list[bytes]()

    def watch(self, on_packet: Callable[[bytes], None]) -> None:
        if self.interface == "gone":
            raise OSError("no such device")
        self.on_packet = on_packet

    def read(self) -> None:
        while self.waiting and not self.resting:
            self.on_packet(self.waiting.pop(0))

    def rest(self) -> None:
        self.resting = True

    def go_on(self) -> None:
        if self.resting:
            self.resting = False
            self.waiting.clear()

    def close(self) -> None:
        self.resting = True


@pytest.fixture
def taps(monkeypatch: pytest.MonkeyPatch) -> list[Tap]:
    made: list[Tap] = []

    def make(reactor: Reactor, interface: str) -> Tap:
        made.append(Tap(reactor, interface))
        return made[-1]

    monkeypatch.setattr(guest_input, "GuestInput", make)
    return made


class Log:
    """What went to the secondary: (type, epoch or NIC, body)."""

    def __init__(self) -> None:
        self.frames: list[tuple[FrameType, int, bytes]] = []

    def __call__(self, data: bytes) -> None:
        header = decode_header(data[: HEADER.size])
        self.frames.append((header.type, header.epoch, data[HEADER.size :]))


def test_a_packet_that_may_come_too_late_for_a_checkpoint_is_not_covered_by_it(taps: list[Tap]) -> None:
    """The VM may not read any more what comes just before it stands still, nor what nobody read here yet."""
    log = Log()
    watch = InputWatch(Reactor(), log)
    watch.add(0, "vnet0")
    watch.add(1, "vnet1")
    taps[1].on_packet(b"first")
    taps[0].waiting.append(b"waits in the socket")
    watch.cut(1)
    taps[0].read()
    taps[0].on_packet(b"second")
    assert log.frames == [
        (FrameType.REPLAY, 1, b"\x01first"), (FrameType.REPLAY, 2, b"\x00waits in the socket"),
        (FrameType.REPLAY, 2, b"\x00second"),
    ]  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
def test_the_cut_comes_before_the_stop(last: bool) -> None:
    """After it the VM reads nothing more, so that what comes between the two would be lost with the primary."""
    calls = Mock()
    worker: Any = SimpleNamespace(engine=calls.engine, input=calls.input, clock=calls.clock, audits=calls.audits, output=calls.output,
                                  _captured=None)  # fmt: skip
    PrimaryWorker._take_checkpoint(worker, TakeCheckpoint(5, last=last))
    done = [name for name, *__ in calls.mock_calls]
    assert done.index("input.cut") < done.index("engine.take")
    assert ("input.begin" in done) == last
    assert call.input.cut(5) in calls.mock_calls


def test_a_flood_is_not_told_and_the_next_epoch_begins_anew(taps: list[Tap]) -> None:
    log = Log()
    watch = InputWatch(Reactor(), log)
    watch.add(0, "vnet0")
    taps[0].waiting = [b"x"] * (EPOCH_PACKETS + 50)
    taps[0].read()
    assert len(log.frames) == EPOCH_PACKETS and taps[0].resting
    watch.cut(1)
    assert not taps[0].resting
    taps[0].on_packet(b"y")
    assert log.frames[-1] == (FrameType.REPLAY, 2, b"\0y")


def test_after_the_last_stop_every_packet_is_carried_over(taps: list[Tap]) -> None:
    log = Log()
    watch = InputWatch(Reactor(), log)
    watch.add(3, "vnet0")
    taps[0].waiting = [b"x"] * (EPOCH_PACKETS + 50)
    watch.cut(8)
    watch.hand_over()
    log.frames.clear()
    for __ in range(EPOCH_PACKETS + 50):
        taps[0].on_packet(b"x")
    assert log.frames == [(FrameType.INPUT, 3, b"x")] * (EPOCH_PACKETS + 50)


def test_an_interface_that_is_gone_is_the_callers_to_tell(taps: list[Tap]) -> None:
    watch = InputWatch(Reactor(), Log())
    with pytest.raises(OSError, match="no such device"):
        watch.add(0, "gone")
    watch.cut(1)
    watch.close()


def frame(nic: int, packet: bytes) -> memoryview:
    return memoryview(bytes((nic,)) + packet)


def test_a_commit_covers_its_packets_and_those_before() -> None:
    replay = Replay()
    for epoch, packet in ((1, b"a"), (1, b"b"), (2, b"c"), (3, b"d")):
        replay.add(epoch, frame(epoch, packet))
    replay.committed(1)
    assert list(replay.take()) == [(2, b"c"), (3, b"d")]
    assert list(replay.take()) == []


def test_only_so_much_is_kept_and_the_oldest_goes_first() -> None:
    replay = Replay()
    piece = bytes(1 << 20)
    for number in range(6):
        replay.add(1, frame(number, piece))
    left = [nic for nic, __ in replay.take()]
    assert left == [3, 4, 5] and len(left) * len(piece) <= KEPT_BYTES


def test_a_frame_without_a_packet_is_refused() -> None:
    with pytest.raises(WireError, match="A REPLAY frame has 1 bytes"):
        Replay().add(1, memoryview(b"\0"))
