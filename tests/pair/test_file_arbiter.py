"""The whole way on real QEMUs with a shared directory as the arbiter."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmft.adapters.filearbiter import FileArbiter
from kvmft.core import records
from kvmft.core.records import Mode, Record
from kvmft.ports import vm_key
from tests.pair.harness import CLUSTER, VM_UUID, Pair, wait_for


@pytest.fixture
def shared(pair: Pair) -> Iterator[Path]:
    """The pair's arbiter is this directory; its etcd is dead, so that nothing can fall back to it."""
    directory = pair.root / "shared"
    directory.mkdir()
    FileArbiter(str(directory)).set_up(CLUSTER)
    pair.etcd.stop()
    pair.arbiter = {"type": "file", "directory": str(directory)}
    yield directory


def record(directory: Path) -> Record | None:
    """The VM's record, as a refused swap tells it."""
    reply = FileArbiter(str(directory)).swap(vm_key(CLUSTER, VM_UUID), b"never", b"never")
    return None if reply.current is None else records.from_bytes(reply.current, CLUSTER)


def holds(directory: Path) -> tuple[Mode, str]:
    found = record(directory)
    assert found is not None
    return found.mode, found.holder


def test_kill_of_the_primarys_qemu(pair: Pair, shared: Path) -> None:
    pair.protect()
    time.sleep(0.5)
    assert holds(shared) == (Mode.PAIRED, "node-a")
    pair.primary_vm.process.kill()
    shown = pair.primary_vm.counts[-1]
    pair.workers[0].wait(msg="done", outcome="activated")
    first = wait_for("the guest counting on node-b", lambda: pair.standby_vm.counts)[0]
    assert shown - 0x4000 < first <= shown + 0x100
    assert holds(shared) == (Mode.SOLO, "node-b")


def test_the_loser_is_fenced_when_both_sides_run_on(pair: Pair, shared: Path) -> None:
    primary, secondary = pair.protect()
    os.kill(primary.process.pid, signal.SIGSTOP)
    secondary.wait(msg="done", outcome="activated")
    os.kill(primary.process.pid, signal.SIGCONT)
    primary.wait(msg="done", outcome="fenced")
    assert pair.primary_vm.process.wait(timeout=5) != 0


def test_while_the_directory_is_away_nobody_takes_over_and_the_vm_waits(
    pair: Pair, shared: Path
) -> None:
    primary, secondary = pair.protect()
    away = shared.with_name("away")
    shared.rename(away)
    shared.mkdir()  # a mount point without its mount
    secondary.stop()
    primary.wait(msg="state", state="failing_over")
    noted = primary.wait(msg="event", event="arbiter")
    assert "is not mounted, or was not set up" in noted["reason"]
    wait_for("the pause", lambda: "nor the arbiter" in str(primary.wait(msg="status")["reason"]))
    assert primary.find(msg="done") is None
    held = pair.primary_vm.counts[-1]
    time.sleep(0.5)
    assert pair.primary_vm.counts[-1] == held, "the VM is paused after the bound"
    shared.rmdir()
    away.rename(shared)
    primary.wait(msg="done", outcome="solo")
    assert wait_for("counting on", lambda: pair.primary_vm.counts[-1] > held)
    assert holds(shared) == (Mode.SOLO, "node-a")


HALT_INSIDE_A_CHECKPOINT = """
import os
from kvmft.core import events
from kvmft.worker import primary
_take = primary.PrimaryWorker._take_checkpoint
def take(self, effect):
    _take(self, effect)
    if os.path.exists(os.path.join(self.config.state_dir, "halt-now")):
        self.post(events.Claimed(False, True, "planted"))
primary.PrimaryWorker._take_checkpoint = take
"""
"""The verdict comes after the checkpoint has sent `stop`, and before it sends `cont`."""


def test_a_verdict_to_halt_inside_a_checkpoint_leaves_the_vm_paused(pair: Pair) -> None:
    primary, __ = pair.protect(primary_patch=HALT_INSIDE_A_CHECKPOINT)
    (pair.root / "state-node-a" / "halt-now").touch()
    primary.wait(msg="done", outcome="failed", reason="planted")
    held = pair.primary_vm.counts[-1]
    time.sleep(1)
    assert pair.primary_vm.counts[-1] == held


def test_turning_off_takes_the_record_away(pair: Pair, shared: Path) -> None:
    primary, __ = pair.protect()
    primary.send(cmd="stop")
    primary.wait(msg="done", outcome="detached")
    assert record(shared) is None
    last = pair.primary_vm.counts[-1]
    assert wait_for("counting on", lambda: pair.primary_vm.counts[-1] > last)


def test_a_wiped_directory_halts_both_sides_and_nothing_runs_twice(pair: Pair, shared: Path) -> None:
    primary, secondary = pair.protect()
    shared.rename(shared.with_name("lost"))
    shared.mkdir()
    FileArbiter(str(shared)).set_up(CLUSTER)
    os.kill(primary.process.pid, signal.SIGSTOP)
    done = secondary.wait(msg="done", outcome="failed")
    assert "another arbiter than before" in done["reason"]
    os.kill(primary.process.pid, signal.SIGCONT)
    primary.wait(msg="done", outcome="failed")
    assert pair.standby_vm.counts == []
    held = pair.primary_vm.counts[-1]
    time.sleep(0.5)
    assert pair.primary_vm.counts[-1] == held, "paused for a person, and not killed"
    assert pair.primary_vm.process.poll() is None
    # The person has decided for node-a, and removed what it held (docs/administration.md).
    (pair.root / "state-node-a" / "claims.json").unlink()
    pair.start_primary(None).wait(msg="done", outcome="solo")
    assert wait_for("counting on", lambda: pair.primary_vm.counts[-1] > held)
    assert holds(shared) == (Mode.SOLO, "node-a")
