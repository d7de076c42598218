"""QEMU is killed under a VM whose memory takes the kernel long to free."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.bench import dirtyguest
from tests.pair.harness import Machine, Pair, wait_for

MEMORY_MIB = 2048
PR_SET_THP_DISABLE = 41
"""linux/prctl.h"""


def small_pages(only: bool) -> None:
    """Processes that are started from now on have pages of 4 KiB `only`: huge ones are freed in no time."""
    assert ctypes.CDLL(None, use_errno=True).prctl(PR_SET_THP_DISABLE, only, 0, 0, 0) == 0


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Pair]:
    """A guest of MEMORY_MIB that dirties some of it all the time. Its memory is its own alone and goes first, sockets after it."""
    small_pages(only=True)
    try:
        made = Pair(tmp_path, "tcg", private=True, machine=Machine(MEMORY_MIB, "on", partial(dirtyguest.write_disk, pages=100)))
    finally:
        small_pages(only=False)
    yield made
    made.stop()


class Gone(threading.Thread):
    """When a process has ended, with all that was its own: `at`, in seconds since 1970."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self.at = pid, 0.0
        self.start()

    def run(self) -> None:
        os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        self.at = time.time()


def resident_mib(pid: int) -> int:
    """Memory that a process has in RAM (proc(5): statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) >> 8


@pytest.mark.parametrize("interval", [8, 10_000], ids=["checkpoint after checkpoint", "none under way"])
def test_the_secondary_runs_the_vm_before_the_old_ones_memory_is_free(large: Pair, interval: int) -> None:
    """Half a second for these, a minute for the largest VMs: nobody would call that at once. And until then a step that
    failed must not be taken for anything but the death."""
    wait_for("the guest counting", lambda: len(large.primary_vm.counts) > 1, 60)
    wait_for("the standby's memory", lambda: resident_mib(large.standby_vm.process.pid) >= MEMORY_MIB, 60)
    __, port = large.start_secondary()
    primary = large.start_primary(port, options={"interval_ms": interval, "min_interval_ms": 4})
    secondary = large.workers[0]
    primary.wait(120, msg="state", state="protected")
    qemu = large.primary_vm.process
    gone = Gone(qemu.pid)
    killed = time.time()
    qemu.kill()
    activated = secondary.wait(msg="event", event="activated")
    assert activated["data"]["kind"] == "unplanned"
    primary.wait(60, msg="done", outcome="failed")
    gone.join(60)
    after = (activated["time"] - killed, gone.at - killed)
    assert after[0] < after[1], f"the death was told late: the VM ran after {after[0]:.3f} s, the process was gone after {after[1]:.3f}"
    print(f"ran after {after[0]:.3f} s, gone after {after[1]:.3f}")
    assert qemu.poll() is not None, "libvirt still believed in the VM when the worker ended"
    told = [each for each in primary.poll() if each["msg"] == "event"]
    assert "vm_died" in [each["event"] for each in told]
    assert "solo" not in [each["data"].get("purpose") for each in told], "it claimed to run a VM that was gone"
