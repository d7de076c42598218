"""A pair of two QEMU versions is refused where it is planned: nothing is given up for it."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from kvmft.agent.host import Found, Host
from kvmft.core.admission import Request
from kvmft.core.domain import describe
from kvmft.errors import KvmftError
from tests.unit.agent.test_agent_safety import FakeWorker, agent, managed

XML = (
    "<domain type='kvm'><name>v</name><uuid>u</uuid><memory unit='KiB'>65536</memory>"
    "<vcpu>1</vcpu><os><type machine='pc-q35-7.2'>hvm</type></os><devices/></domain>"
)


def found(running: bool = True) -> Found:
    return Found(describe(XML), XML, XML, running, 1, 0)


def admit(tmp_path: Path, **request: Any) -> list[str]:
    a = agent(tmp_path)
    a.host.versions = lambda: {"qemu": "10.0.13", "libvirt": "11.3.0"}
    a.host.admit = lambda *_: []
    answer = asyncio.run(a.peer_requests.admit({"vm": "v", "xml": XML, "disks": [], **request}))
    return [reason["code"] for reason in answer["lacking"]]


def test_a_host_with_another_qemu_lacks_that(tmp_path: Path) -> None:
    assert admit(tmp_path, qemu_version="7.2.22") == ["qemu_version"]
    assert admit(tmp_path, qemu_version="10.0.13") == []


def test_a_move_to_a_host_with_another_qemu_costs_no_protection(tmp_path: Path) -> None:
    a = agent(tmp_path)
    m = managed(a, role="primary")
    m.worker = FakeWorker(m, "detached")
    a.host.find = lambda _vm: found()
    a.host.disk_sizes = lambda *_: []
    a.host.qemu_of = lambda _found: "7.2.22"
    a.host.request = lambda _domain: Request()
    reason = KvmftError("qemu_version", "QEMU is 7.2.22 on the primary and 10.0.13 on b.", "")

    async def call(peer: str, op: str, **args: Any) -> Any:
        lacking = [] if args.get("qemu_version") == "10.0.13" else [reason.to_dict()]
        return {"memory": 1 << 40, "lacking": lacking}

    a.peers.call = call
    with pytest.raises(KvmftError) as caught:
        asyncio.run(m.orders.move_secondary("b"))
    assert [each.code for each in caught.value.reasons] == ["qemu_version"]
    assert m.worker.sent == []


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """libvirt with QEMU 10.0.13 installed and a VM that runs in 7.2.22."""
    answer = {"return": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian"}}
    monitor = types.SimpleNamespace(qemuMonitorCommand=lambda *_: json.dumps(answer))
    monkeypatch.setitem(sys.modules, "libvirt_qemu", monitor)
    made = Host()
    monkeypatch.setattr(made, "versions", lambda: {"qemu": "10.0.13", "libvirt": "11.3.0"})
    monkeypatch.setattr(made, "_lookup", lambda _vm: None)
    return made


def test_a_vm_that_runs_in_the_qemu_from_before_an_upgrade_is_refused(host: Host) -> None:
    with pytest.raises(KvmftError) as caught:
        host.qemu_of(found())
    assert caught.value.code == "qemu_version"
    assert "still runs in QEMU 7.2.22" in caught.value.message


def test_a_vm_that_is_off_starts_in_the_installed_qemu(host: Host) -> None:
    assert host.qemu_of(found(running=False)) == "10.0.13"
