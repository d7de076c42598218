"""Cold boot by the arbiter's word, switchover, and moving the secondary, from the agent's side."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from kvmft.agent import vm as vm_module
from kvmft.agent.service import Agent
from kvmft.agent.vm import ManagedVm
from kvmft.agent.vm_status import status_of
from kvmft.errors import KvmftError
from tests.unit.agent.conftest import Boot
from tests.unit.agent.test_agent_safety import FakeWorker, agent, hook, managed


class Launched:
    """Catches the workers that would be started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.configs: list[dict[str, Any]] = []

        async def launch(vm: ManagedVm, config: dict[str, Any]) -> None:
            self.configs.append(config)
            vm._worker_role = config["role"]
            vm.worker = FakeWorker(vm, "failed")

        monkeypatch.setattr(ManagedVm, "_launch", launch)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Launched:
    return Launched(monkeypatch)


def off(a: Agent) -> None:
    """The VM is off, and `start` is remembered."""
    a.host.running = False
    a.host.started = []
    a.host.start = a.host.started.append


def step(vm: ManagedVm) -> None:
    vm._not_before = 0.0
    asyncio.run(vm.reconcile())


async def settle(vm: ManagedVm, outcome: str, reason: str = "test") -> None:
    vm._outcome = (outcome, reason)
    vm._worker_ended(vm.worker)
    while vm._settling:
        await asyncio.sleep(0.01)


def test_after_a_power_cut_a_vm_that_had_a_secondary_starts_only_by_a_won_claim(
    tmp_path: Path, boot: Boot, launched: Launched
) -> None:
    a = agent(tmp_path)
    m = managed(a, may_start=False, running=True, boot="boot-1")
    off(a)
    boot.name = "boot-2"
    step(m)
    assert [config["role"] for config in launched.configs] == ["claim"]
    assert a.host.started == []
    assert hook(a, tmp_path), "libvirt may start it before the verdict"
    asyncio.run(settle(m, "solo"))
    assert a.host.started == ["v"]
    assert a.store.load("v").may_start and a.store.load("v").boot == "boot-2"


@pytest.mark.parametrize(("outcome", "role"), [("fenced", "stale"), ("failed", "primary")])
def test_a_lost_or_halted_claim_never_starts_it(
    tmp_path: Path, boot: Boot, launched: Launched, outcome: str, role: str
) -> None:
    a = agent(tmp_path)
    m = managed(a, may_start=False, running=True, boot="boot-0")
    off(a)
    step(m)
    asyncio.run(settle(m, outcome))
    assert a.host.started == [] and a.store.load("v").role == role
    assert hook(a, tmp_path)


def test_a_former_secondary_never_boots_by_itself(
    tmp_path: Path, boot: Boot, launched: Launched
) -> None:
    a = agent(tmp_path)
    m = managed(a, role="secondary", may_start=False)
    m._recover = True
    off(a)
    boot.name = "boot-2"
    step(m)
    step(m)
    assert a.host.started == [] and launched.configs == []
    assert a.store.load("v").role == "stale"


def test_a_vm_that_ran_alone_by_right_starts_again_without_a_claim(
    tmp_path: Path, boot: Boot, launched: Launched
) -> None:
    a = agent(tmp_path)
    m = managed(a, may_start=True, running=True, boot="boot-0")
    off(a)
    step(m)
    assert a.host.started == ["v"] and launched.configs == []


def test_a_vm_that_was_powered_off_stays_off_after_a_reboot_of_its_host(
    tmp_path: Path, boot: Boot, launched: Launched
) -> None:
    a = agent(tmp_path)
    m = managed(a, may_start=True, running=True, boot="boot-1")
    off(a)
    step(m)
    assert m.shown[0] == "need_secondary" and "off" in m.shown[1]
    boot.name = "boot-2"
    step(m)
    assert a.host.started == []


def test_a_vm_that_ended_here_gives_its_secondary_time_before_it_claims(
    tmp_path: Path, boot: Boot, launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = agent(tmp_path)
    m = managed(a, may_start=False, running=True, boot="boot-1")
    off(a)
    step(m)
    assert launched.configs == [] and m.shown[0] == "failing_over"
    now = time.monotonic()
    monkeypatch.setattr(vm_module.time, "monotonic", lambda: now + vm_module.TAKEOVER_TIME + 1)
    step(m)
    assert [config["role"] for config in launched.configs] == ["claim"]


def test_a_stale_instance_that_runs_is_stopped(tmp_path: Path) -> None:
    a = agent(tmp_path)
    m = managed(a, role="stale", may_start=False)
    step(m)
    assert a.host.destroyed == ["v"]


def test_a_switchover_makes_this_side_stale_before_anybody_is_told(
    tmp_path: Path, boot: Boot
) -> None:
    a = agent(tmp_path)
    m = managed(a, may_start=False, running=True)
    a.probe_arbiter = _nothing

    async def run() -> None:
        m.worker = worker = FakeWorker(m, "failed")
        m._worker_role, m.shown = "primary", ("protected", "")
        asking = asyncio.create_task(m.orders.switch())
        await asyncio.sleep(0.02)
        assert worker.sent == [{"cmd": "switch"}]
        with pytest.raises(KvmftError, match="is handing VM v over"):
            await m.prepare({}, "b")
        with pytest.raises(KvmftError, match="is handing VM v over"):
            await m.discard("b")
        assert worker.sent == [{"cmd": "switch"}], "its worker was ended while it kept the memory"
        m._message({"msg": "handed_over", "reason": "", "pid": 1, "blocks": []})
        await asking

    asyncio.run(run())
    stored = a.store.load("v")
    assert (stored.role, stored.may_start, stored.running) == ("stale", False, False)
    assert m.worker is None and m.left.base == {"pid": 1, "blocks": []}


def test_after_a_takeover_the_next_step_waits_and_the_guests_clock_moves_no_other_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def set_it(_domain: object) -> float:
        return 0.5

    monkeypatch.setattr(vm_module, "put_right", set_it)
    a = agent(tmp_path)
    a.host.define_activated = lambda vm: None
    vm = managed(a, role="secondary")

    async def take_over() -> None:
        begun = time.monotonic()
        await vm._became_primary()
        ended, vm._not_before, until = time.monotonic(), 1e9, vm._not_before  # as an arbiter that halted has it
        assert begun < until <= ended + 0.3
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

    asyncio.run(take_over())
    assert vm._not_before == 1e9
    assert [each["event"] for each in a.events.read(None, 0, 100)][-1] == "guest_time_set"


def test_a_switchover_that_fails_says_why_and_leaves_the_vm_here(tmp_path: Path) -> None:
    a = agent(tmp_path)
    m = managed(a, may_start=False, running=True)
    a.probe_arbiter = _nothing

    async def run() -> None:
        m.worker = FakeWorker(m, "solo")
        m._worker_role, m.shown = "primary", ("protected", "")
        asking = asyncio.create_task(m.orders.switch())
        await asyncio.sleep(0.02)
        await settle(m, "solo", "the standby did not load")
        with pytest.raises(KvmftError, match="the standby did not load"):
            await asking

    asyncio.run(run())
    assert a.store.load("v").role == "primary"


@pytest.mark.parametrize("shown", ["starting", "need_secondary"])
def test_only_a_protected_vm_is_switched(tmp_path: Path, shown: str) -> None:
    a = agent(tmp_path)
    m = managed(a)
    m.worker, m.shown = FakeWorker(m, "solo"), (shown, "because")
    with pytest.raises(KvmftError, match="because"):
        asyncio.run(m.orders.switch())
    assert m.worker.sent == []


def test_memory_that_nobody_comes_for_is_let_go(tmp_path: Path) -> None:
    a = agent(tmp_path)
    a.host.running = False
    m = managed(a, role="stale", may_start=False)
    keeper = FakeWorker(m, "solo")
    m.left.keeper, m.left.base, m.left.until = keeper, {"pid": 1}, time.monotonic() - 1
    step(m)
    assert keeper.sent == [{"cmd": "release"}] and m.left.base is None


def test_what_was_forgotten_is_not_written_again(tmp_path: Path, boot: Boot) -> None:
    a = agent(tmp_path)
    m = managed(a, desired="disabled", may_start=True)
    a.forget(m)
    step(m)
    assert a.store.load("v") is None


def test_another_hosts_discard_is_refused(tmp_path: Path) -> None:
    a = agent(tmp_path)
    m = managed(a, role="secondary", may_start=False)
    with pytest.raises(KvmftError) as caught:
        asyncio.run(m.discard("c"))
    assert caught.value.code == "not_yours" and a.host.destroyed == []


async def _nothing() -> None:
    """The arbiter answers."""


@pytest.mark.parametrize("outcome", [None, ("unsettled", "its QEMU died")])
def test_a_standby_whose_worker_was_killed_or_broke_after_its_claim_is_not_given_up(
    tmp_path: Path, boot: Boot, launched: Launched, outcome: tuple[str, str] | None
) -> None:
    a = agent(tmp_path)
    m = managed(a, role="secondary")
    m._recover = False
    asyncio.run(m._launch({"role": "secondary", "run_dir": str(tmp_path)}))

    async def end() -> None:
        m._outcome = outcome
        m._worker_ended(m.worker)
        while m._settling:
            await asyncio.sleep(0.01)

    asyncio.run(end())
    assert m.state.role == "secondary", "it was given up although its claim may have won"
    assert m._recover
    assert bool(a.host.destroyed) == (outcome is not None)


def test_a_vm_whose_qemu_ends_again_and_again_is_not_paired_at_once(
    tmp_path: Path, boot: Boot, launched: Launched
) -> None:
    a = agent(tmp_path)
    m = managed(a, may_start=True, running=True, boot="boot-1")
    for __ in range(vm_module.BOOTS_BORNE):
        off(a)
        a.host.crashed = lambda vm: True
        step(m)
        assert a.host.started == ["v"]
    a.host.running = True
    step(m)
    assert m.shown[0] == "need_secondary" and "times" in m.shown[1]
    assert launched.configs == []


def test_a_vm_that_is_off_on_purpose_says_so_and_one_that_ended_does_not(
    tmp_path: Path, boot: Boot, launched: Launched
) -> None:
    a = agent(tmp_path)
    m = managed(a, may_start=True, running=True, boot="boot-1")
    step_running = status_of(a, m, True)
    assert not step_running["switched_off"]
    off(a)
    assert not status_of(a, m, False)["switched_off"], "nobody looked yet"
    step(m)
    assert status_of(a, m, False)["switched_off"] and status_of(a, m, False)["state"] == "need_secondary"
    m.state.may_start, m.state.running = False, True
    assert not status_of(a, m, False)["switched_off"], "its secondary may have taken over"


def test_the_allowed_hosts_are_the_same_list_on_every_host(tmp_path: Path) -> None:
    a = agent(tmp_path)
    m = managed(a, allowed=["b"])
    assert status_of(a, m, True)["allowed_hosts"] == ["a", "b"]
    b = ManagedVm(a, type(m.state)("v", "u", peer="a", role="secondary",
                                   allowed=m.pairing.allowed_there("b")))  # fmt: skip
    b._agent.config = dataclasses.replace(a.config, host="b")
    assert status_of(a, b, False)["allowed_hosts"] == ["a", "b"]
    assert status_of(a, managed(a), True)["allowed_hosts"] == []
