"""When the next checkpoint is due: for output at once, otherwise as late as the objectives allow."""

from __future__ import annotations

import pytest

from kvmft.core.pacing import FIRST_THROUGHPUT, Pace, Pacer

MIB = 1 << 20


class Vm:
    """A pacer and the clock of its VM."""

    def __init__(self, **asked: float) -> None:
        self.pacer, self.now = Pacer(Pace(**asked)), 10.0

    def epoch(self, ran: float, pause: float = 0.003, size: int = 4096, commit: float = 0.002) -> None:
        self.now += ran + pause
        self.pacer.captured(self.now, pause, size)
        self.pacer.committed(self.now + commit)

    def gap(self, output_waits: bool = False) -> float:
        """How long the VM may run from its resumption on."""
        return self.pacer.due(output_waits) - self.now


def test_a_vm_with_nothing_to_say_is_left_to_run_and_output_is_not_kept_waiting() -> None:
    vm = Vm()
    for __ in range(3):
        vm.epoch(0.1)
    assert vm.gap() == pytest.approx(0.5)
    assert vm.gap(output_waits=True) == pytest.approx(0.004)


def test_an_idle_vm_stands_still_less_than_a_twentieth_of_the_time() -> None:
    """Also with the pauses that libvirt's passthrough makes."""
    vm = Vm()
    vm.epoch(0.02, pause=0.020)
    assert 0.020 / (0.020 + vm.gap()) < 0.05


def test_more_dirty_memory_means_shorter_epochs() -> None:
    """What is dirtied in one epoch can be committed within the objective."""
    vm = Vm(max_added_latency=0.1)
    vm.epoch(1.0)
    for __ in range(30):
        ran = vm.gap()
        size = int(400 * MIB * ran)
        vm.epoch(ran, size=size, commit=size / (200 * MIB))
    assert vm.gap() == pytest.approx(0.05, rel=0.1), "0.1 s x 200 MiB/s / 400 MiB/s"


def test_what_a_checkpoint_gets_done_is_measured() -> None:
    vm = Vm()
    vm.epoch(1.0)
    for __ in range(40):
        vm.epoch(0.1, pause=0.010, size=20 * MIB, commit=0.010)
    fast = vm.gap()
    for __ in range(40):
        vm.epoch(0.1, pause=0.010, size=20 * MIB, commit=0.190)
    assert vm.gap() < fast / 5, "a slow network means shorter epochs"
    assert vm.pacer.throughput == pytest.approx(20 * MIB / 0.2, rel=0.01)


def test_small_checkpoints_tell_nothing_about_throughput() -> None:
    vm = Vm()
    for __ in range(50):
        vm.epoch(0.1, size=50_000, commit=0.1)
    assert vm.pacer.throughput == FIRST_THROUGHPUT


def test_a_long_pause_never_takes_more_than_its_share() -> None:
    for share, rest in ((0.5, 0.050), (0.25, 0.150)):
        vm = Vm(max_pause_share=share)
        for __ in range(60):
            vm.epoch(0.1, pause=0.050)
        assert vm.gap(output_waits=True) == pytest.approx(rest, rel=0.01)


def test_a_pause_that_something_else_made_does_not_put_off_the_next_checkpoint() -> None:
    """A QEMU that was stopped for 5 s must not hold its clients' output for 5 s more."""
    vm = Vm()
    for __ in range(20):
        vm.epoch(0.02, pause=0.003)
    vm.epoch(0.02, pause=5.0)
    assert vm.gap(output_waits=True) < 0.01
    vm.epoch(0.02, pause=0.003)
    assert vm.gap(output_waits=True) < 0.01


def test_an_objective_that_is_not_kept_is_told_with_its_cause() -> None:
    vm = Vm(max_added_latency=0.020)
    assert vm.pacer.shortfall() is None
    vm.epoch(0.1, pause=0.004, commit=0.004)
    assert vm.pacer.shortfall() is None
    for __ in range(60):
        vm.epoch(0.1, pause=0.004, commit=0.040)
    assert "waits about 44 ms" in (said := str(vm.pacer.shortfall())) and "the commit on the secondary" in said
    for __ in range(60):
        vm.epoch(0.1, pause=0.040, commit=0.004)
    assert "the VM's pause" in str(vm.pacer.shortfall())
    for __ in range(60):
        vm.epoch(0.1, pause=0.004, commit=0.004)
    assert vm.pacer.shortfall() is None


def test_an_epoch_under_load_is_no_shorter_than_what_output_gets() -> None:
    vm = Vm()
    vm.epoch(1.0)
    vm.epoch(0.001, size=900 * MIB)
    assert vm.gap() >= 0.004
