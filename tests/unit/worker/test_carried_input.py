"""What waits for the VM on the host of the standby, before it runs there and from then on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest

from kvmft.adapters.reactor import Reactor
from kvmft.core.secondary import StandbyPhase
from kvmft.core.wire import Frame, FrameType
from kvmft.errors import KvmftError
from kvmft.worker import carried_input
from kvmft.worker.carried_input import INPUT_BOUND, CarriedInput
from kvmft.worker.secondary import SecondaryWorker

ADDRESS = bytes.fromhex("525400930050")
INTERFACES = {"net0": "vnet4", "net1": None, "net2": "vnet5"}
"""The second NIC is behind no tap."""


class World:
    """What was done, in its order; `missing` taps have no end that can be had."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.missing: set[str] = set()
        self.asked = 0

    def hmp(self, line: str) -> str:
        assert line == "info network"
        self.asked += 1
        return "as QEMU has it"

    def event(self, event: str, _reason: str, **data: Any) -> None:
        self.done.append((event, data))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    class End:
        def __init__(self, pid: int, interface: str) -> None:
            if interface in made.missing:
                raise KvmftError("tap_end_missing", "QEMU has no descriptor of it.", "There is no remedy.")
            self.name = interface
            made.done.append(("open", pid, interface))

        def clear(self) -> int:
            made.done.append(("clear", self.name))
            return 3

        def announce(self, address: bytes) -> None:
            made.done.append(("announce", self.name, address))

        def close(self) -> None:
            made.done.append(("close", self.name))

    class Tap:
        def __init__(self, _reactor: Reactor, interface: str) -> None:
            self.name = interface

        def put(self, packet: bytes) -> bool:
            made.done.append(("put", self.name, packet))
            return packet != b"refused"

    monkeypatch.setattr(carried_input, "TapEnd", End)
    monkeypatch.setattr(carried_input, "GuestInput", Tap)
    monkeypatch.setattr(carried_input, "tap_of", lambda info, pid, nic: INTERFACES[nic])
    monkeypatch.setattr(carried_input, "address_of", lambda info, nic: ADDRESS if nic == "net0" else None)
    return made


@pytest.fixture
def carried(world: World) -> CarriedInput:
    config: Any = SimpleNamespace(nics=list(INTERFACES), qemu_pid=77)
    made = CarriedInput(Reactor(), config, world, world)  # type: ignore[arg-type]
    made.look()
    return made


def test_drawing_announces_what_has_an_address_and_leaves_what_came(world: World, carried: CarriedInput) -> None:
    carried.draw()
    assert world.done == [
        ("open", 77, "vnet4"), ("announce", "vnet4", ADDRESS), ("close", "vnet4"), ("open", 77, "vnet5"), ("close", "vnet5"),
        ("input_drawn", {"interfaces": ["vnet4", "vnet5"]}),
    ]  # fmt: skip
    assert world.asked == 1, "QEMU is asked early and once"


def test_taps_are_cleared_and_nobody_is_told(world: World, carried: CarriedInput) -> None:
    for now in (100.0, 100.9):
        carried.clear(now)
        assert [each for each in world.done if each[0] not in ("open", "close")] == [("clear", "vnet4"), ("clear", "vnet5")]
    carried.clear(101.0)
    assert len(world.done) == 12


def test_a_tap_whose_end_cannot_be_had_stops_nothing(world: World, carried: CarriedInput) -> None:
    world.missing = {"vnet4"}
    carried.draw()
    carried.clear(100.0)
    assert [each[0] for each in world.done] == [
        "input_not_drawn", "open", "close", "input_drawn", "open", "clear", "close",
    ], "what cannot be had is told once"  # fmt: skip
    carried.replay.add(4, memoryview(b"\0first"))
    assert carried.vm_runs() == (0, 1)


def test_replayed_packets_come_before_carried_ones_and_then_each_as_it_comes(world: World, carried: CarriedInput) -> None:
    carried.carry_in(0, b"carried")
    carried.carry_in(2, bytes(INPUT_BOUND))  # more than is kept
    carried.carry_in(1, b"behind no tap")
    carried.carry_in(9, b"of a NIC that is not there")
    carried.replay.add(4, memoryview(b"\2replayed"))
    carried.replay.add(4, memoryview(b"\0refused"))
    assert world.done == [] and carried.vm_runs() == (1, 1)
    carried.carry_in(2, b"later")
    assert world.done == [("put", "vnet5", b"replayed"), ("put", "vnet4", b"refused"), ("put", "vnet4", b"carried"),
                          ("put", "vnet5", b"later")]  # fmt: skip


def test_a_vm_without_nics_asks_nothing(world: World) -> None:
    config: Any = SimpleNamespace(nics=[], qemu_pid=77)
    made = CarriedInput(Reactor(), config, world, world)  # type: ignore[arg-type]
    made.look()
    made.draw()
    assert (world.done, world.asked) == ([], 0)


@pytest.mark.parametrize("phase", StandbyPhase)
@pytest.mark.parametrize("runs", [False, True])
def test_taps_are_cleared_when_the_primary_is_heard_and_nobody_takes_over(phase: StandbyPhase, runs: bool) -> None:
    """Not by a timer: what comes after the primary's last word may be a neighbour that looks for the VM."""
    calls = Mock()
    worker = SecondaryWorker.__new__(SecondaryWorker)
    worker.__dict__.update(_runs=runs, machine=SimpleNamespace(phase=phase), input=calls.input, reactor=SimpleNamespace(now=lambda: 5.0),
                           driver=SimpleNamespace(finished=False), _status=calls.status, _look_after_disks=calls.disks)  # fmt: skip
    worker.frame(Frame(FrameType.HEARTBEAT, 0, memoryview(b"")))
    waits = phase in (StandbyPhase.FILLING, StandbyPhase.READY) and not runs
    assert calls.mock_calls == ([call.input.clear(5.0)] if waits else [])
    calls.reset_mock()
    worker.reactor = calls.reactor
    worker._status_timer()
    assert call.disks() in calls.mock_calls if waits else call.disks() not in calls.mock_calls
    assert not calls.input.mock_calls
