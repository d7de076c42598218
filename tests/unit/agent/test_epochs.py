"""The agent passes single epochs on, each to the one who asked, and says why when there are none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvmft.agent import epochs as epochs_module
from kvmft.agent.service import Agent
from kvmft.agent.vm import ManagedVm
from kvmft.errors import KvmftError
from kvmft.worker.stats import EpochStats
from tests.unit.agent.test_agent_safety import FakeWorker, agent, managed


class Worker(FakeWorker):
    """Answers `epochs` with real statistics, as soon as the loop turns."""

    def __init__(self, vm: ManagedVm) -> None:
        super().__init__(vm, "failed")
        self.stats = EpochStats(started=1.0)
        self.answers = True

    def send(self, **message: Any) -> None:
        super().send(**message)
        if message["cmd"] == "epochs" and self.answers:
            found = {"msg": "epochs", "id": message["id"], **self.stats.newer(5.0, message["since"])}
            asyncio.get_running_loop().call_soon(self.vm._message, found)


def protected(tmp_path: Path) -> tuple[Agent, ManagedVm, Worker]:
    """An agent whose VM `v` is protected from here."""
    a = agent(tmp_path)
    vm = managed(a, may_start=False, desired="enabled")
    vm.worker = worker = Worker(vm)
    vm._worker_role, vm.shown = "primary", ("protected", "")
    return a, vm, worker


def ask(a: Agent, **args: Any) -> Any:
    return asyncio.run(a.requests.answer("vm_epochs", {"vm": "v", **args}))


def test_epochs_of_the_worker_and_what_is_held(tmp_path: Path) -> None:
    a, vm, worker = protected(tmp_path)
    vm.figures = {"held_bytes": 1514}
    first = ask(a)
    worker.stats.captured(3.0, 0.002, 42)
    found = ask(a, since=first["counts"])
    assert found["values"]["pages"] == [42.0] and found["held_bytes"] == 1514
    assert "msg" not in found and "id" not in found


def test_who_asks_together_is_answered_with_his_own(tmp_path: Path) -> None:
    a, __, worker = protected(tmp_path)
    worker.stats.captured(3.0, 0.002, 42)

    async def both() -> list[Any]:
        return await asyncio.gather(a.requests.answer("vm_epochs", {"vm": "v", "since": {}}), a.requests.answer("vm_epochs", {"vm": "v"}))

    all_of_them, none_of_them = asyncio.run(both())
    assert all_of_them["values"]["pages"] == [42.0] and none_of_them["values"] == {}


def test_a_late_answer_is_not_that_to_the_next_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs_module, "ANSWER", 0.05)
    a, vm, worker = protected(tmp_path)
    worker.answers = False
    with pytest.raises(KvmftError, match="did not answer") as error:
        ask(a)
    assert error.value.code == "worker_silent"
    monkeypatch.setattr(epochs_module, "ANSWER", 20.0)
    worker.answers = True
    late = {"msg": "epochs", "id": worker.sent[-1]["id"], "values": "old"}
    vm._message(late)
    assert ask(a)["values"] == {}


def test_a_worker_that_ends_leaves_nobody_waiting(tmp_path: Path) -> None:
    a, vm, worker = protected(tmp_path)
    worker.answers = False

    async def run() -> None:
        asked = asyncio.create_task(a.requests.answer("vm_epochs", {"vm": "v"}))
        await asyncio.sleep(0)
        vm.epochs.lost()
        await asked

    with pytest.raises(KvmftError, match="worker ended"):
        asyncio.run(run())


@pytest.mark.parametrize("since", ["all", [1], {"pages": -1}, {"pages": "1"}])
def test_counts_that_are_none_are_refused(tmp_path: Path, since: Any) -> None:
    a, __, worker = protected(tmp_path)
    with pytest.raises(KvmftError, match="since is"):
        ask(a, since=since)
    assert worker.sent == []


def test_a_vm_that_is_not_protected_from_here(tmp_path: Path) -> None:
    a, vm, __ = protected(tmp_path)
    vm._worker_role = "secondary"
    with pytest.raises(KvmftError, match="not protected from here"):
        ask(a)
