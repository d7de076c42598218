"""Planned switchover on a pair of real QEMUs: roles swap, and what is there already is not sent."""

from __future__ import annotations

import os
import time
from typing import Any

from tests.pair.bootsector import count_on_disk
from tests.pair.conftest import on_each
from tests.pair.harness import MEMORY_MIB, Pair, Worker, start_worker, wait_for


def switch(primary: Worker, secondary: Worker) -> dict[str, Any]:
    """Switch over; what the relieved primary left for the standby to come."""
    primary.send(cmd="switch")
    left = primary.wait(msg="handed_over")
    secondary.wait(msg="done", outcome="activated")
    return {"pid": left["pid"], "blocks": left["blocks"]}


@on_each()
def test_roles_swap_back_and_forth_and_little_is_sent(pair: Pair) -> None:
    primary, secondary = pair.protect()
    time.sleep(0.5)
    for __ in range(3):
        before = pair.primary_vm.counts[-1]
        base = switch(primary, secondary)
        old_qemu, keeper = pair.primary_vm.process, primary
        old_qemu.wait(20)
        first = wait_for("the guest on the other side", lambda: pair.standby_vm.counts)[0]
        assert before <= first, "the guest went back"
        pair.swap()
        secondary, port = pair.start_secondary(base=base)
        primary = pair.start_primary(port)
        primary.wait(msg="state", state="protected")
        secondary.wait(msg="base_taken")
        keeper.send(cmd="release")
        keeper.process.wait(20)
        synced = primary.wait(msg="event", event="synced")["data"]
        assert synced["memory_bytes"] < (MEMORY_MIB << 20) // 8, synced
        assert synced["memory_left_out_bytes"] > 0
        primary.send(cmd="audit", id=7)
        assert primary.wait(msg="audit", id=7)["different"] == 0
        time.sleep(0.5)
        primary.messages.clear()
    assert count_on_disk(pair.primary_vm.disk) >= first


@on_each("private_pair")
def test_private_memory_is_kept_too(private_pair: Pair) -> None:
    primary, secondary = private_pair.protect()
    first = primary.wait(msg="event", event="synced")["data"]["memory_bytes"]
    base = switch(primary, secondary)
    kept = os.stat(f"/proc/{base['pid']}/fd/{base['blocks'][0]['fd']}").st_blocks * 512
    assert 0 < kept <= 2 * first, "pages of zeros were kept, too"
    private_pair.primary_vm.process.wait(20)
    private_pair.swap()
    secondary, port = private_pair.start_secondary(base=base)
    again = private_pair.start_primary(port)
    again.wait(msg="state", state="protected")
    synced = again.wait(msg="event", event="synced")["data"]
    assert synced["memory_bytes"] < first - (128 << 10), (first, synced)


def test_a_resync_after_a_lost_secondary_sends_only_what_changed_of_the_disk(pair: Pair) -> None:
    with open(pair.primary_vm.disk, "r+b") as file:
        file.seek(512 << 10)
        file.write(os.urandom(256 << 10))
    primary, secondary = pair.protect()
    first = primary.wait(msg="event", event="synced")["data"]
    assert first["disk_bytes"] >= 256 << 10
    secondary.process.kill()
    pair.standby_vm.process.kill()
    primary.wait(msg="done", outcome="solo")
    pair.renew_standby()
    secondary, port = pair.start_secondary()
    again = pair.start_primary(port)
    again.wait(msg="state", state="protected")
    synced = again.wait(msg="event", event="synced")["data"]
    assert synced["disk_left_out_bytes"] >= 256 << 10
    assert synced["disk_bytes"] <= 128 << 10


def test_a_standby_that_does_not_load_leaves_the_vm_where_it_is(pair: Pair) -> None:
    """The device state is loaded before the claim, so the failure costs a pause and no more."""
    damage = (
        "import kvmft.worker.standby_qemu as s\n"
        "whole = s.activation_stream\n"
        "s.activation_stream = lambda *a: whole(*a)[:4000] + b'\\xff' * 4000"
    )
    primary, secondary = pair.protect(secondary_patch=damage)
    pid = pair.primary_vm.process.pid
    primary.send(cmd="switch")
    primary.wait(msg="done", outcome="solo")
    secondary.wait(msg="done", outcome="failed")
    shown = pair.primary_vm.counts[-1]
    wait_for("the guest counting on", lambda: pair.primary_vm.counts[-1] > shown)
    assert pair.primary_vm.process.poll() is None and pair.primary_vm.process.pid == pid


def test_a_device_that_is_slow_to_be_durable_is_no_silence(pair: Pair) -> None:
    """Before the claim the standby's disks are made durable; meanwhile the primary hears that the secondary lives."""
    slow = (
        "import time, kvmft.worker.replica as r\n"
        "real = r.ReplicaDisks._sync\n"
        "r.ReplicaDisks._sync = lambda self: (time.sleep(2.0), real(self))"
    )
    primary, secondary = pair.protect(secondary_patch=slow)
    time.sleep(0.5)  # from now on silence is judged by the VM's own detection time
    switch(primary, secondary)
    assert primary.find(msg="event", event="secondary_lost") is None


def test_a_worker_killed_after_the_takeover_finds_the_vm_running(pair: Pair) -> None:
    """The agent was killed between `cont` and its own note of it: the VM must not be destroyed."""
    primary, secondary = pair.protect()
    pair.primary_vm.process.kill()
    secondary.wait(msg="event", event="activated")
    secondary.process.kill()
    extra = {"listen_address": "127.0.0.1", "port_range": [20000, 29999], "resume": True}
    again = start_worker(pair.config("secondary", **extra))
    pair.workers.append(again)
    assert again.wait(msg="done")["outcome"] == "activated"
    assert pair.standby_vm.process.poll() is None
