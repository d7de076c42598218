"""The end of a QEMU, played by a process that sleeps."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace
from typing import Any, cast

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
    qemu._qemu_died(0)
    assert told == [False]
    assert qemu.ends() and told == [False], "once"
