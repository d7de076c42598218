"""Invariants on real QEMUs, each with a planted bug that shows that its check can fail."""

from __future__ import annotations

import mmap
import os
import signal
import time

import pytest

from tests.pair.bootsector import count_on_disk
from tests.pair.conftest import on_each
from tests.pair.harness import Pair, make_pki, wait_for

COUNT_AT = 0x8000
"""Where the boot-sector guest counts (bytes of guest memory)."""

NO_DISK_BOUNDARY = """
from kvmft.worker import disklog
_late = [(bytearray(), bytearray())]
_cut = disklog.DiskLog.cut
def cut(self):
    _late.append(_cut(self))
    return _late.pop(0)
disklog.DiskLog.cut = cut
"""
"""A write goes into the checkpoint after its own."""

NO_COPY_IN_THE_STOP = """
from kvmft.adapters import memory
_read = memory.GuestMemory.read
def read(self, ranges, into):
    import signal, time, os
    os.kill(self._pid, signal.SIGCONT)
    return _read(self, ranges[: len(ranges) // 2], into)
memory.GuestMemory.read = read
"""
"""Half of what a scan returned is not copied."""


def at_rest(pair: Pair) -> tuple[int, int]:
    """The standby's count in memory and on disk, at one commit: the primary's worker is stopped
    for a moment, shorter than the detection time, so nothing new is applied."""
    primary = pair.workers[1]
    os.kill(primary.process.pid, signal.SIGSTOP)
    try:
        time.sleep(0.3)
        pid = pair.standby_vm.process.pid
        for name in os.listdir(f"/proc/{pid}/fd"):
            if "memfd:" in os.readlink(f"/proc/{pid}/fd/{name}"):
                descriptor = os.open(f"/proc/{pid}/fd/{name}", os.O_RDONLY)
                with mmap.mmap(descriptor, 1 << 20, prot=mmap.PROT_READ) as area:
                    memory = int.from_bytes(area[COUNT_AT : COUNT_AT + 4], "little")
                os.close(descriptor)
                return memory, count_on_disk(pair.standby_vm.disk)
    finally:
        os.kill(primary.process.pid, signal.SIGCONT)
    raise AssertionError("the standby has no memfd")


def agrees(memory: int, disk: int) -> bool:
    """The guest writes each 256th count: the disk has the last such one, or the one before while
    the stop came between counting and writing."""
    return disk in (memory & ~0xFF, (memory & ~0xFF) - 0x100)


@on_each()
def test_memory_and_disk_of_a_commit_belong_together(pair: Pair) -> None:
    pair.protect()
    for __ in range(5):
        time.sleep(0.2)
        memory, disk = at_rest(pair)
        assert agrees(memory, disk), f"memory {memory:#x}, disk {disk:#x}"


@pytest.mark.parametrize("pair", ["tcg"], indirect=True)
def test_that_check_sees_a_disk_epoch_boundary_taken_away(pair: Pair) -> None:
    """Only where the guest writes in almost every epoch; boot sectors are slow on some KVMs."""
    pair.protect(primary_patch=NO_DISK_BOUNDARY)
    seen = []
    for __ in range(30):
        time.sleep(0.1)
        seen.append(agrees(*at_rest(pair)))
    assert not all(seen)


@on_each()
def test_the_audit_sees_pages_that_were_not_copied(pair: Pair) -> None:
    primary, __ = pair.protect(primary_patch=NO_COPY_IN_THE_STOP)
    primary.send(cmd="audit", id=1)
    assert primary.wait(msg="audit", id=1)["different"] > 0


def test_a_killed_primary_worker_comes_back_solo_and_the_vm_never_stopped(pair: Pair) -> None:
    primary, secondary = pair.protect()
    primary.stop()
    again = pair.start_primary(None)
    again.wait(msg="done", outcome="solo")
    secondary.wait(msg="done", outcome="failed")
    before = pair.primary_vm.counts[-1]
    assert wait_for("counting on", lambda: pair.primary_vm.counts[-1] > before)
    assert pair.standby_vm.counts == []


@on_each()
def test_a_killed_secondary_worker_still_activates_what_it_acknowledged(pair: Pair) -> None:
    __, secondary = pair.protect()
    time.sleep(0.5)
    os.kill(pair.workers[1].process.pid, signal.SIGKILL)
    secondary.stop()
    pair.primary_vm.process.kill()
    last = pair.primary_vm.counts[-1]
    again, __ = resume_secondary(pair)
    again.wait(msg="done", outcome="activated")
    first = wait_for("the guest counting on node-b", lambda: pair.standby_vm.counts)[0]
    assert last - 0x4000 < first <= last + 0x100


def resume_secondary(pair: Pair):  # type: ignore[no-untyped-def]
    from tests.pair.harness import start_worker

    worker = start_worker(
        pair.config("secondary", listen_address="127.0.0.1", port_range=[20000, 29999], resume=True)
    )
    pair.workers.append(worker)
    return worker, None


def test_a_secondary_without_its_journal_refuses_instead_of_guessing(pair: Pair) -> None:
    __, secondary = pair.protect()
    pair.workers[1].stop()
    secondary.stop()
    (pair.root / "run-node-b" / "journal" / "head").unlink()
    again, __ = resume_secondary(pair)
    again.wait(msg="done", outcome="failed")
    assert pair.standby_vm.counts == []


def test_the_loser_is_fenced_when_both_sides_run_on(pair: Pair) -> None:
    """The primary's worker is frozen; the secondary takes over; the thawed primary must die."""
    primary, secondary = pair.protect()
    os.kill(primary.process.pid, signal.SIGSTOP)
    secondary.wait(msg="done", outcome="activated")
    os.kill(primary.process.pid, signal.SIGCONT)
    primary.wait(msg="done", outcome="fenced")
    assert pair.primary_vm.process.wait(timeout=5) != 0


def test_an_ordered_failover_moves_the_vm_and_fences_the_old_side(pair: Pair) -> None:
    primary, secondary = pair.protect()
    secondary.send(cmd="claim")
    secondary.wait(msg="done", outcome="activated")
    primary.wait(msg="done", outcome="fenced")
    assert wait_for("the guest counting on node-b", lambda: pair.standby_vm.counts)


def test_without_an_arbiter_nobody_takes_over_and_the_vm_waits(pair: Pair) -> None:
    primary, secondary = pair.protect()
    pair.etcd.process.send_signal(signal.SIGSTOP)
    # On a busy machine it would go on for some milliseconds, in which a claim can be won.
    os.waitid(os.P_PID, pair.etcd.process.pid, os.WSTOPPED)
    secondary.stop()
    primary.wait(msg="state", state="failing_over")
    time.sleep(4)
    assert primary.find(msg="done") is None
    assert "neither the secondary nor the arbiter" in primary.wait(msg="status")["reason"]
    held = pair.primary_vm.counts[-1]
    time.sleep(0.5)
    assert pair.primary_vm.counts[-1] == held, "the VM is paused after the bound"
    pair.etcd.process.send_signal(signal.SIGCONT)
    primary.wait(msg="done", outcome="solo")
    assert wait_for("counting on", lambda: pair.primary_vm.counts[-1] > held)


@on_each()
def test_turning_off_leaves_the_vm_running_and_qemu_as_it_was(pair: Pair) -> None:
    before = sorted(os.listdir(f"/proc/{pair.primary_vm.process.pid}/fd"))
    primary, __ = pair.protect()
    primary.send(cmd="stop")
    primary.wait(msg="done", outcome="detached")
    last = pair.primary_vm.counts[-1]
    assert wait_for("counting on", lambda: pair.primary_vm.counts[-1] > last)
    primary.process.wait(timeout=5)
    after = sorted(os.listdir(f"/proc/{pair.primary_vm.process.pid}/fd"))
    assert len(after) <= len(before) + 1, (before, after)


@pytest.mark.parametrize("wrong", ["ca", "name"])
def test_a_stranger_gets_not_a_byte_and_the_vm_goes_on(pair: Pair, wrong: str) -> None:
    make_pki(pair.root / "other", ("node-b", "node-x"))
    pki = pair.root / ("other" if wrong == "ca" else "pki")
    name = "node-b" if wrong == "ca" else "node-a"
    __, port = pair.start_secondary(
        tls={"ca": str(pair.root / "pki" / "ca.pem"), "cert": str(pki / f"{name}.pem"),
             "key": str(pki / f"{name}.key")},
    )  # fmt: skip
    primary = pair.start_primary(port)
    done = primary.wait(msg="done", outcome="failed")
    assert "certificate" in done["reason"]
    assert pair.workers[0].find(msg="state", state="protected") is None
    last = pair.primary_vm.counts[-1]
    assert wait_for("counting on", lambda: pair.primary_vm.counts[-1] > last)
