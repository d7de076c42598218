"""When the clock of a guest is put forward, and by how much: a machine in place of KVM's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmft.worker import guest_clock
from kvmft.worker.guest_clock import ClockKeeper

MS = 1_000_000


class Kvm:
    """The host's clock and the guest's, in nanoseconds."""

    def __init__(self) -> None:
        self.host, self.guest = 5_000 * MS, 100 * MS

    def __enter__(self) -> Kvm:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    instruction = 0

    def lapse(self, ms: float, lost: float = 0.0) -> None:
        """So much time goes by, of which the guest's clock loses a part."""
        self.host += int(ms * MS)
        self.guest += int((ms - lost) * MS)


@pytest.fixture
def kvm(monkeypatch: pytest.MonkeyPatch) -> Kvm:
    kvm = Kvm()

    def put(_thread: object, _machine: int, clock: int, _realtime: int) -> None:
        assert clock >= kvm.guest, "it would go back"
        kvm.guest = clock

    monkeypatch.setattr(guest_clock, "Held", lambda *_arguments: kvm)
    monkeypatch.setattr(guest_clock, "read_clock", lambda *_arguments: kvm.guest)
    monkeypatch.setattr(guest_clock, "set_clock", put)
    monkeypatch.setattr(guest_clock, "host_clock", lambda: kvm.host)
    return kvm


@pytest.fixture
def keeper(kvm: Kvm) -> Iterator[ClockKeeper]:
    made = ClockKeeper(1, 2, False, lambda reason: None)
    made.look()
    yield made


def offset(kvm: Kvm) -> float:
    return (kvm.host - kvm.guest) / MS


def test_what_pauses_cost_is_put_forward(kvm: Kvm, keeper: ClockKeeper) -> None:
    for number in range(5):
        kvm.lapse(100, lost=8)
        keeper.pausing(number)
        keeper.running(number + 0.009)
        keeper.look()
        assert offset(kvm) == 4900
    assert keeper.behind == 0.0


def test_while_the_vm_is_stopped_nothing_is_set_and_nothing_forgotten(kvm: Kvm, keeper: ClockKeeper) -> None:
    kvm.lapse(100, lost=40)
    keeper.pausing(0.0)
    keeper.running(0.041)
    keeper.pausing(0.050)
    keeper.look()
    assert offset(kvm) == 4940, "QEMU would undo it"
    kvm.lapse(60, lost=30)
    keeper.running(0.081)
    keeper.look()
    assert offset(kvm) == 4900, "both pauses are made good"


def test_a_stop_of_somebody_else_is_left_as_it_is(kvm: Kvm, keeper: ClockKeeper) -> None:
    kvm.lapse(60_000, lost=60_000)
    keeper.look()
    assert offset(kvm) == 64_900
    kvm.lapse(100, lost=10)
    keeper.pausing(0.0)
    keeper.running(0.010)
    keeper.look()
    assert offset(kvm) == 64_900, "from there on it is kept"


def test_what_is_too_little_is_told_and_left_for_later(kvm: Kvm, keeper: ClockKeeper) -> None:
    kvm.lapse(100, lost=0.1)
    keeper.look()
    assert (offset(kvm), keeper.behind) == (4900.1, 0.0001)
