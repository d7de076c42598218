"""The disk mirrors inside a VM that runs and writes: taken out again, and broken."""

from __future__ import annotations

from tests.pair.harness import Pair, wait_for

CYCLES = 6
"""Cancelling a mirror in a running VM killed QEMU 7.2 in every second try here."""

BREAK_ON_DEMAND = """
import os
import kvmft.adapters.nbd as nbd
perform = nbd._Connection._perform
def perform_or_break(self, data):
    if os.path.exists({flag!r}):
        raise nbd._ProtocolError("the client's request is malformed")
    perform(self, data)
nbd._Connection._perform = perform_or_break
"""

LATE_ANSWERS = """
import kvmft.adapters.qmp as qmp
batch = qmp.SocketMonitor.batch
under_way = []
def late(self, commands, done, first=None):
    def answered(replies):
        under_way.pop()
        done(replies)
    if len(commands) == 2:  # the stop and the device state of a checkpoint
        under_way.append(commands)
        batch(self, commands, lambda replies: self._reactor.call_later(0.05, lambda: answered(replies)), first)
        return
    if commands[0].name == "block-job-cancel" and under_way:
        open({seen!r}, "w").close()
    batch(self, commands, done, first)
qmp.SocketMonitor.batch = late
"""

JOBS_AT_STOPS = """
import kvmft.adapters.qmp as qmp
batch = qmp.SocketMonitor.batch
def watched(self, commands, done, first=None):
    def looked(replies):
        jobs = [job["status"] for job in replies[0].get("return", ())]
        with open({seen!r}, "a") as file:
            print(*jobs or ["none"], file=file)
    if commands[0].name == "stop":
        batch(self, [qmp.command("query-block-jobs")], looked)
    batch(self, commands, done, first)
qmp.SocketMonitor.batch = watched
"""

DIE_IN_A_ROUND = """
import os
import kvmft.worker.engine as engine
from kvmft.adapters.qmp import command
def round(self, done):
    self._batch([command("stop")], lambda replies: os._exit(9))
engine.Engine.round = round
"""


def test_a_vm_that_writes_survives_being_turned_off_again_and_again(pair: Pair) -> None:
    for __ in range(CYCLES):
        primary, secondary = pair.protect()
        primary.send(cmd="stop")
        primary.wait(msg="done", outcome="detached")
        secondary.stop()
        pair.renew_standby()
    before = pair.primary_vm.counts[-1]
    pair.wait_for_counts(before + 256)


def test_a_mirror_that_breaks_ends_protection_and_not_the_vm(pair: Pair) -> None:
    flag = pair.root / "break"
    primary, __ = pair.protect(primary_patch=BREAK_ON_DEMAND.format(flag=str(flag)))
    flag.touch()
    failing = primary.wait(msg="state", state="failing_over")
    assert failing["reason"] == "the mirror of disk vda broke: the client's request is malformed"
    primary.wait(msg="done", outcome="failed")
    pair.wait_for_counts(pair.primary_vm.counts[-1] + 256)


def test_nothing_is_let_go_inside_a_checkpoint(pair: Pair) -> None:
    seen = pair.root / "inside"
    for __ in range(CYCLES):
        secondary, port = pair.start_secondary()
        primary = pair.start_primary(port, patch=LATE_ANSWERS.format(seen=str(seen)))
        primary.wait(msg="state", state="protected")
        primary.send(cmd="stop")
        primary.wait(msg="done", outcome="detached")
        secondary.stop()
        pair.renew_standby()
        assert not seen.exists(), "mirrors were cancelled while a checkpoint was about to end in cont"
        pair.wait_for_counts(pair.primary_vm.counts[-1] + 256)


def test_a_disk_with_a_thread_of_its_own_survives_many_checkpoints(threaded_pair: Pair) -> None:
    for __ in range(2):
        primary, secondary = threaded_pair.protect()
        threaded_pair.wait_for_counts(threaded_pair.primary_vm.counts[-1] + 512)
        assert threaded_pair.primary_vm.process.poll() is None
        primary.send(cmd="stop")
        primary.wait(msg="done", outcome="detached")
        secondary.stop()
        threaded_pair.renew_standby()


def test_no_mirror_is_at_work_when_the_vm_is_stopped(threaded_pair: Pair) -> None:
    """Each stop moves a disk out of its thread, and QEMU 10 aborts if a job goes on there then."""
    seen = threaded_pair.root / "stops"
    primary, __ = threaded_pair.protect(primary_patch=JOBS_AT_STOPS.format(seen=str(seen)))
    wait_for("stops", lambda: len(seen.read_text().splitlines()) > 20)
    primary.send(cmd="stop")
    primary.wait(msg="done", outcome="detached")
    before, *stops = seen.read_text().splitlines()
    assert before == "none", "the mirror was started in a VM that ran"
    assert set(stops) == {"standby"}


def test_a_worker_killed_in_a_round_of_the_first_sync_leaves_no_vm_stopped(pair: Pair) -> None:
    __, port = pair.start_secondary()
    killed = pair.start_primary(port, patch=DIE_IN_A_ROUND)
    killed.process.wait(20)
    pair.start_primary(None, arbitration="resume").wait(msg="event", event="resumed")
    pair.wait_for_counts(pair.primary_vm.counts[-1] + 64)
