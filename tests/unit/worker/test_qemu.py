"""The end of a QEMU, played by a process that sleeps."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kvmft.adapters.reactor import READ, Reactor
from kvmft.worker.config import WorkerConfig
from kvmft.worker.qemu import Qemu


def test_a_death_is_told_also_when_something_else_breaks_with_it() -> None:
    """Its taps and sockets go at the same moment: what then fails must not hide the death."""
    process = subprocess.Popen(["sleep", "60"])
    reactor, told = Reactor(), []
    config: Any = SimpleNamespace(qemu_pid=process.pid, own_monitor="/monitor")
    qemu = Qemu(reactor, cast(WorkerConfig, config), told.append)
    qemu._watch_qemu()
    reading, writing = os.pipe()

    def breaks(_mask: int) -> None:
        os.read(reading, 1)
        raise OSError(100, "Network is down")

    reactor.add(reading, READ, breaks)
    process.kill()
    process.wait()
    os.write(writing, b"x")
    qemu._qemu_died()
    assert told == [False]
    assert qemu.ends() and told == [False], "once"


def test_a_step_that_fails_because_qemu_dies_is_its_death_before_it_has_ended() -> None:
    """Else this side would claim to run alone a VM that is gone, and win against the secondary."""
    told: list[bool] = []
    config: Any = SimpleNamespace(qemu_pid=1, own_monitor="/monitor")
    qemu = Qemu(Reactor(), cast(WorkerConfig, config), told.append)
    dying: Any = SimpleNamespace(ends_within=lambda _seconds: True, ended=lambda _seconds: False, unwatch=lambda: None)
    qemu._process = dying
    assert qemu.ends() and told == [False]


@pytest.mark.parametrize("killed", [False, True])
def test_libvirt_is_asked_why_a_qemu_ended_unless_a_signal_did_it(killed: bool) -> None:
    """A VM that plain virsh started has no monitor of ours, which would tell."""
    told: list[bool] = []
    reactor = Reactor()
    config: Any = SimpleNamespace(qemu_pid=1, own_monitor=None)
    qemu = Qemu(reactor, cast(WorkerConfig, config), told.append)
    ends: Any = SimpleNamespace(unwatch=lambda: None, killed=lambda: killed)
    qemu._process, qemu._ended_on_purpose = ends, lambda: True  # type: ignore[method-assign]
    qemu._qemu_died()
    assert reactor.run_until(lambda: bool(told), 5)
    assert told == [not killed]
