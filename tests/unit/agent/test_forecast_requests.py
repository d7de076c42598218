"""A forecast is refused where it could mislead or disturb, is measured by a process of its own, and gives way to protection."""

from __future__ import annotations

import asyncio
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from kvmft.agent import doctor, forecasts
from kvmft.agent.service import Agent
from kvmft.errors import KvmftError
from tests.unit.agent.test_agent_safety import agent as plain_agent
from tests.unit.agent.test_agent_safety import managed

ANSWERS = """
import json, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
line = json.loads(sock.makefile("rb").readline())
sock.sendall(json.dumps({"msg": "forecast", "result": {"seconds": line["seconds"], "told": line}}).encode() + b"\\n")
"""
WAITS = """
import json, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
lines = sock.makefile("rb")
lines.readline()
said = lines.readline()
error = {"code": "forecast_ended", "message": "It was ended.", "remedy": "", "reasons": []}
sock.sendall(json.dumps({"msg": "failed", "error": error}).encode() + b"\\n")
"""
DIES = "import os; os.kill(os.getpid(), 9)"


class Peers:
    """One peer that answers; a request of `n` bytes takes n / 40 MB/s longer."""

    async def call(self, peer: str, op: str, padding: str = "") -> Any:
        await asyncio.sleep(0.001 + len(padding) / 40e6)
        return {}


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """A running VM, a kernel that can do it, a process that answers."""
    made = plain_agent(tmp_path)
    nic = types.SimpleNamespace(alias="net0")
    domain = types.SimpleNamespace(uuid="u", own_monitor=None, nics=(nic,), accelerator="kvm")
    made.host.find = lambda vm: types.SimpleNamespace(domain=domain, pid=4711)
    made.host.execution = lambda vm: "running"
    made.peers = Peers()
    monkeypatch.setattr(doctor, "kernel_findings", list)
    run_as(monkeypatch, tmp_path, ANSWERS)
    return made


def run_as(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str) -> None:
    """The measuring process is this program instead."""
    (folder / "measures.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{':'.join(sys.path)}")
    monkeypatch.setattr(forecasts, "MODULE", "measures")


def ask(agent: Agent, **args: Any) -> dict[str, Any]:
    return asyncio.run(agent.requests.answer("vm_forecast", {"vm": "v", **args}))


def refused(agent: Agent, **args: Any) -> KvmftError:
    with pytest.raises(KvmftError) as caught:
        ask(agent, **args)
    return caught.value


def test_the_process_is_told_what_to_measure_and_its_answer_is_the_answer(agent: Agent) -> None:
    found = ask(agent, seconds=3, options={"max_added_latency_ms": 7})
    told = found["told"]
    assert found["vm"] == "v" and found["accelerator"] == "kvm" and found["seconds"] == 3
    assert (told["qemu_pid"], told["nics"], told["stops"]) == (4711, ["net0"], False)
    assert told["options"]["max_added_latency_ms"] == 7 and told["options"]["max_pause_share"] == 0.5
    assert 12e6 < told["log_rate"] < 60e6, "what a peer answered says what the FT network carries"
    assert ask(agent, log_mb_s=40)["told"]["log_rate"] == 40e6


def test_without_a_peer_the_network_is_not_known(agent: Agent) -> None:
    async def call(*_: Any, **__: Any) -> Any:
        raise KvmftError("ft_network_down", "x")

    agent.peers.call = call
    assert ask(agent)["told"]["log_rate"] is None


def test_a_vm_that_is_protected_or_elsewhere_is_not_measured(agent: Agent) -> None:
    known = managed(agent, desired="enabled")
    error = refused(agent)
    assert error.code == "protected_already" and "kvmft status v" in error.remedy
    known.state.desired = "suspended"
    assert ask(agent)["vm"] == "v", "a suspended VM is unprotected"
    known.state.role = "secondary"
    assert refused(agent).code == "runs_elsewhere"


@pytest.mark.parametrize("state", ["off", "paused"])
def test_a_vm_that_does_not_run_is_not_measured(agent: Agent, state: str) -> None:
    agent.host.execution = lambda vm: state
    error = refused(agent)
    assert error.code == "vm_not_running" and state in error.message


def test_what_the_kernel_lacks_is_told_before_qemu_is_touched(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "kernel_findings", lambda: [KvmftError("kernel_without_pagemap_scan", "No.", "Boot Linux 6.7.")])
    started: list[Any] = []
    monkeypatch.setattr(agent.forecasts, "_measure", started.append)
    assert refused(agent).code == "kernel_without_pagemap_scan" and started == []


@pytest.mark.parametrize("args", [{"seconds": 1}, {"seconds": 61}, {"seconds": "ten"}, {"seconds": True}, {"stops": 1},
                                  {"log_mb_s": 0}, {"options": {"interval": 1}}])  # fmt: skip
def test_what_is_not_understood_is_refused(agent: Agent, args: dict[str, Any]) -> None:
    assert refused(agent, **args).code in ("bad_request", "config_invalid")


def test_one_forecast_of_a_vm_at_a_time_and_protection_goes_first(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_as(monkeypatch, tmp_path, WAITS)

    async def story() -> None:
        first = asyncio.create_task(agent.requests.answer("vm_forecast", {"vm": "v"}))
        while agent.forecasts._under_way.get("v") is None:
            await asyncio.sleep(0.01)
        with pytest.raises(KvmftError) as second:
            await agent.requests.answer("vm_forecast", {"vm": "v"})
        assert second.value.code == "forecast_under_way"
        await asyncio.sleep(0.3)
        await agent.forecasts.end("v")
        with pytest.raises(KvmftError) as ended:
            await first
        assert ended.value.code == "forecast_ended"
        assert agent.forecasts._under_way == {}

    asyncio.run(story())


def test_protection_that_begins_ends_a_forecast_first(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    async def end(vm: str) -> None:
        order.append(f"end {vm}")

    async def launch(vm: Any, config: dict[str, Any]) -> None:
        order.append(config["role"])

    monkeypatch.setattr(agent.forecasts, "end", end)
    monkeypatch.setattr("kvmft.agent.vm.ManagedVm._launch", launch)
    found = agent.host.find("v")
    found.domain.machine = "q35"
    found.domain.nics = ()
    agent.host.disk_sizes = lambda vm, domain: []
    asyncio.run(managed(agent)._start_primary(found, None))
    assert order == ["end v", "primary"]


def test_a_process_that_is_killed_is_one_clear_error(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_as(monkeypatch, tmp_path, DIES)
    assert refused(agent).code == "forecast_lost"
    run_as(monkeypatch, tmp_path, ANSWERS)
    assert ask(agent)["vm"] == "v", "nothing stands in the way of the next one"
