"""The modules against the agent itself, on its own control protocol; only host and worker are made up."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmft.agent.lines import MAX_LINE, serve
from kvmft.agent.requests import Requests
from kvmft.agent.service import Agent
from kvmft.agent.vm import ManagedVm
from tests.unit.agent.test_agent_safety import FakeHost, FakeWorker
from tests.unit.agent.test_agent_safety import agent as agent_of_a_host
from tests.unit.plugins.steps import Steps

Run = Callable[..., dict[str, Any]]


class OneVm(FakeHost):
    """A host with one VM, `v`, that is off."""

    def __init__(self) -> None:
        super().__init__()
        self.running = False

    def find(self, vm: str) -> Any:
        domain = types.SimpleNamespace(uuid="u", accelerator="tcg")
        return types.SimpleNamespace(domain=domain, running=self.running, xml="", live=None)

    def disk_sizes(self, vm: str, domain: Any) -> list[dict[str, Any]]:
        return []

    def qemu_of(self, found: Any) -> str:
        return "7.2.22"

    def request(self, domain: Any) -> Any:
        return types.SimpleNamespace(to_dict=dict)

    def versions(self) -> dict[str, Any]:
        return {"qemu": "7.2.22", "libvirt": "9.0.0"}


class Peers:
    """Other hosts that take everything."""

    async def call(self, peer: str, op: str, **args: Any) -> dict[str, Any]:
        if op == "peer_ping":
            return {"host": peer, "version": "0.1.0", "maintenance": peer == "c"}
        return {"memory": 1, "lacking": []}


async def _pair(vm: ManagedVm) -> None:
    """In place of a standby and a sync: protected at once, by a later generation."""
    vm.state.peer = vm.state.peer or "b"
    vm.state.may_start = False
    vm.worker, vm._worker_role = FakeWorker(vm, "detached"), "primary"
    vm.figures = {"generation": int(vm.figures.get("generation") or 0) + 1}
    vm._show("protected", "paired")


async def _no_findings(self: Requests, *_args: Any) -> list[Any]:
    return []


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An agent of host `a` with peers `b` and `c`, that serves and keeps its VMs moving."""
    monkeypatch.setattr(ManagedVm, "_pair", _pair)
    monkeypatch.setattr(Requests, "_findings", _no_findings)
    monkeypatch.setattr("kvmft.agent.service.LOOP", 0.05)
    monkeypatch.setattr("kvmft.agent.vm.boot_id", lambda: "boot")
    monkeypatch.setattr("kvmft.agent.exposure.boot_id", lambda: "boot")
    made = agent_of_a_host(tmp_path)
    made.host, made.peers = OneVm(), Peers()
    peers = {**made.config.peers, "c": made.config.peers["b"]}
    made.config = dataclasses.replace(made.config, peers=peers)
    ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def live() -> None:
        loops.append(asyncio.get_running_loop())
        server = await asyncio.start_unix_server(
            lambda reader, writer: serve(reader, writer, made.requests.answer),
            str(tmp_path / "real.sock"), limit=MAX_LINE,
        )  # fmt: skip
        moving = asyncio.create_task(made._keep_moving())
        ready.set()
        await stop.wait()
        moving.cancel()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield made
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture
def steps(tmp_path: Path, module: Run, capsys: pytest.CaptureFixture[str]) -> Steps:
    """Modules against the agent, each step shown in the output."""

    def run(name: str, checks: list[bool], params: dict[str, Any]) -> list[dict[str, Any]]:
        given = {**params, "socket_path": str(tmp_path / "real.sock")}
        return [module(name, check=check, diff=True, **given) for check in checks]

    return Steps(run, capsys)


def test_the_life_of_a_vm_with_the_agent_itself(
    real: Agent, tmp_path: Path, module: Run, steps: Steps
) -> None:
    socket = str(tmp_path / "real.sock")

    def step(name: str, what: str = "modify", **params: Any) -> dict[str, Any]:
        return steps.step(what, name, name="v", timeout=20, **params)

    off = step("ft_vm", "create", allowed_hosts=["a", "b", "c"], options={"sync_mib_s": 50})
    assert off["protected"] is False and off["status"]["switched_off"], off
    assert "begins when it is started" in off["reason"]
    assert off["status"]["options"] == {"sync_mib_s": 50}
    step("ft_secondary", "create", host="b")
    real.host.running = True
    started = module("ft_vm", socket_path=socket, name="v", timeout=20)
    assert started["protected"] and not started["changed"], "a VM that was just started is not off"
    assert started["status"]["secondary"] == "b"
    moved = step("ft_secondary", host="c")
    assert moved["protected"] and moved["status"]["secondary"] == "c"
    back = step("ft_vm", secondary="b", allowed_hosts=["a", "b"], options={"interval_ms": 10})
    assert back["protected"] and back["status"]["secondary"] == "b"
    assert back["status"]["allowed_hosts"] == ["a", "b"]
    assert back["status"]["options"] == {"sync_mib_s": 50, "interval_ms": 10}
    refused = module("ft_secondary", socket_path=socket, name="v", host="c")
    assert refused["failed"] and "not among allowed_hosts (a, b)" in refused["msg"]
    assert step("ft_vm", allowed_hosts=[])["status"]["allowed_hosts"] == []
    assert steps.same("ft_vm_info", name="v")["vms"][0]["state"] == "protected"
    assert step("ft_vm", state="suspended")["status"]["state"] == "suspended"
    assert step("ft_vm", state="enabled")["protected"]
    assert step("ft_vm", "remove", state="disabled")["status"]["state"] == "disabled"


def test_the_maintenance_of_a_host_with_the_agent_itself(real: Agent, steps: Steps) -> None:
    def seen() -> dict[str, Any]:
        """What another host is told that asks for a place for a standby, and what people see."""
        found: dict[str, Any] = steps.same("ft_host_info")["host"]["maintenance"]
        assert found["on"] is bool(real.maintenance.lacking())
        return found

    assert seen() == {"on": False, "reason": "", "since": None}
    begun = steps.step("create", "ft_host", state="maintenance", reason="new disks")
    assert begun["host"] == "a" and begun["empty"] and begun["maintenance"]["on"]
    since = seen()["since"]
    assert since is not None
    changed = steps.step("modify", "ft_host", state="maintenance", reason="new memory")
    assert changed["diff"]["before"] == {"state": "maintenance", "reason": "new disks"}
    assert seen() == {"on": True, "reason": "new memory", "since": since}
    ended = steps.step("remove", "ft_host", state="active")
    assert ended["diff"]["after"] == {"state": "active", "reason": ""}
    assert seen() == {"on": False, "reason": "", "since": None}
    told = [each["reason"] for each in real.events.read(None, 0, 99) if each["event"] == "maintenance"]
    assert told == ["a takes no new secondary: new disks", "a takes no new secondary: new memory",
                    "a takes secondaries again"]  # fmt: skip


def test_a_host_in_maintenance_says_what_has_to_leave_it(
    real: Agent, tmp_path: Path, module: Run
) -> None:
    socket = str(tmp_path / "real.sock")
    real.host.running = True
    module("ft_vm", socket_path=socket, name="v", timeout=20)
    found = module("ft_host", socket_path=socket, state="maintenance")
    assert found["primaries"] == ["v"] and found["secondaries"] == [] and not found["empty"]
    real.host.running = False
    assert module("ft_host", socket_path=socket, state="maintenance", reason="x" * 201)["failed"]
    peers = module("ft_host_info", socket_path=socket)["host"]["peers"]
    assert {name: each["maintenance"] for name, each in peers.items()} == {"b": False, "c": True}
