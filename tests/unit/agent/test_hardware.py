"""Devices that change while a VM is protected make a new standby, and nothing else does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kvmft.agent.vm import ManagedVm
from kvmft.errors import KvmftError
from tests.unit.agent.test_agent_safety import FakeWorker, agent, managed

BEFORE = frozenset({"vcpus 1", "disk virtio-disk0 slot=1 /a.raw"})


def watched(tmp_path: Path, now: Any) -> tuple[ManagedVm, list[dict[str, Any]], list[str]]:
    """A protected VM whose devices are `now` (or libvirt's error); what its worker was sent, and the
    events."""
    made = agent(tmp_path)

    def hardware(_vm: str) -> frozenset[str]:
        if isinstance(now, Exception):
            raise now
        return frozenset(now)

    made.host.hardware = hardware
    vm = managed(made, role="primary")
    worker = FakeWorker(vm, "detached")
    vm.worker, vm._worker_role, vm.hardware.known = worker, "primary", BEFORE
    asyncio.run(vm._watch_hardware())
    told = [each["reason"] for each in made.events.read("v", 0, 100) if each["event"] == "hardware_changed"]
    return vm, worker.sent, told


def test_the_same_devices_change_nothing(tmp_path: Path) -> None:
    vm, sent, told = watched(tmp_path, BEFORE)
    assert (sent, told) == ([], []) and vm.hardware.known == BEFORE


def test_a_new_disk_ends_the_pairing_once_so_that_a_new_one_is_made(tmp_path: Path) -> None:
    vm, sent, told = watched(tmp_path, BEFORE | {"disk scsi0-0-0-1 unit=1 /b.raw"})
    assert sent == [{"cmd": "suspend"}]
    assert len(told) == 1 and "scsi0-0-0-1" in told[0] and "virtio-disk0" not in told[0]
    vm.hardware.due = 0.0
    asyncio.run(vm._watch_hardware())
    assert sent == [{"cmd": "suspend"}]
    assert vm.state.desired == "enabled"


def test_a_libvirt_that_does_not_answer_is_no_change(tmp_path: Path) -> None:
    vm, sent, told = watched(tmp_path, KvmftError("libvirt_down", "x", ""))
    assert (sent, told) == ([], []) and vm.hardware.known == BEFORE


def test_a_qemu_that_is_gone_is_no_change_of_devices(tmp_path: Path) -> None:
    """The worker knows better what happened."""
    vm, sent, told = watched(tmp_path, frozenset())
    assert (sent, told) == ([], []) and vm.hardware.known == BEFORE
