"""The agent keeps a VM safe through failures of libvirt, peers, arbiter and its own files."""

from __future__ import annotations

import asyncio
import os
import types
from pathlib import Path
from typing import Any

import libvirt
import pytest

from kvmft.agent import host as host_mod
from kvmft.agent.config import parse
from kvmft.agent.events import EventLog
from kvmft.agent.farewells import Farewells
from kvmft.agent.forecasts import Forecasts
from kvmft.agent.host import Host
from kvmft.agent.maintenance import Maintenance
from kvmft.agent.peer_requests import PeerRequests
from kvmft.agent.requests import Requests
from kvmft.agent.service import Agent
from kvmft.agent.store import Store, VmState
from kvmft.agent.vm import ManagedVm
from kvmft.cli.hook import refusal
from kvmft.core.domain import describe
from kvmft.errors import KvmftError

BASE: dict[str, Any] = {
    "cluster_id": "0" * 32,
    "host": "a",
    "storage_pool": "/tmp",
    "addresses": {"management": "10.0.0.1", "ft": "10.1.0.1", "migration": "10.2.0.1"},
    "peers": {"b": {"management": "10.0.0.2", "ft": "10.1.0.2", "migration": "10.2.0.2"}},
    "tls": {"ca": "/x", "cert": "/x", "key": "/x"},
    "arbiter": {"type": "none"},
}


class FakeHost:
    def __init__(self) -> None:
        self.running = True
        self.autostart: dict[str, bool] = {}
        self.destroyed: list[str] = []

    def is_running(self, vm: str) -> bool:
        return self.running

    def destroy(self, vm: str) -> None:
        self.destroyed.append(vm)
        self.running = False

    def set_autostart(self, vm: str, on: bool) -> bool:
        before = self.autostart.get(vm, False)
        self.autostart[vm] = on
        return before

    def define_activated(self, vm: str) -> None:
        pass

    def is_defined(self, vm: str) -> bool:
        return True

    def crashed(self, vm: str) -> bool:
        return False

    def find(self, vm: str):
        raise KvmftError("vm_not_found", "x", "")


class FakePeers:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    async def call(self, peer: str, op: str, **args: Any) -> Any:
        self.calls.append((peer, op))
        return {}


class FakeWorker:
    """Ends with `outcome` when told to stop."""

    def __init__(self, vm: ManagedVm, outcome: str) -> None:
        self.vm, self.outcome, self.sent = vm, outcome, []

    def send(self, **m: Any) -> None:
        self.sent.append(m)

    async def end(self, seconds: float = 5.0) -> None:
        self.vm._outcome = (self.outcome, "test")
        self.vm._worker_ended(self)


def agent(tmp_path: Path) -> Agent:
    made = Agent.__new__(Agent)
    made.config = parse(BASE)
    made.host = FakeHost()
    made.store = Store(str(tmp_path / "vm"))
    made.events = EventLog(str(tmp_path / "ev" / "events.jsonl"), "a")
    made.peers = FakePeers()
    made.arbiter_ok, made.arbiter_reason, made._vms = True, "", {}
    made.requests, made.peer_requests = Requests(made), PeerRequests(made)
    made.maintenance = Maintenance(str(tmp_path / "maintenance.json"), "a")
    made.forecasts = Forecasts(made)
    made.farewells = Farewells(
        str(tmp_path / "farewells.json"), made._tell_to_discard,
        made.events.add,
    )  # fmt: skip
    return made


def managed(a: Agent, **state: Any) -> ManagedVm:
    m = ManagedVm(a, VmState("v", "u", peer="b", **state))
    a._vms["v"] = m
    a.store.save(m.state)
    return m


def hook(a: Agent, tmp_path: Path) -> str | None:
    return refusal("v", "prepare", a.store.root, str(tmp_path / "tokens"))


def test_lost_while_turning_off_stays_stale_and_leaves_the_winner_alone(tmp_path):
    a = agent(tmp_path)
    m = managed(a, may_start=False)
    m.worker = FakeWorker(m, "fenced")
    m._regain = False

    async def run():
        try:
            await m.orders.stop_protection("disabled")
        except KvmftError:
            pass
        await asyncio.sleep(0.1)

    asyncio.run(run())
    assert a.host.destroyed == ["v"]
    assert ("b", "standby_discard") not in a.peers.calls
    assert hook(a, tmp_path), "the hook lets the loser's disk start"


def test_discarded_former_primary_does_not_autostart_its_stale_disk(tmp_path):
    a = agent(tmp_path)
    m = managed(a, role="secondary", may_start=False, autostart=True)
    m._recover = False
    asyncio.run(m.discard(m.state.peer))
    assert a.host.autostart.get("v") is not True, "autostart of a stale disk turned on"
    assert hook(a, tmp_path), "the hook lets the discarded replica start"


def test_disable_typed_on_the_stale_host_keeps_it_from_starting(tmp_path):
    a = agent(tmp_path)
    managed(a, role="stale", may_start=False, autostart=True)
    a.host.running = False
    a.host.find = lambda vm: types.SimpleNamespace(
        domain=types.SimpleNamespace(uuid="u", accelerator="tcg"), running=False
    )
    try:
        asyncio.run(a.requests.stop("v", "disabled", False))
    except KvmftError:
        pass
    assert a.host.autostart.get("v") is not True
    assert hook(a, tmp_path)


@pytest.mark.parametrize("desired", ["enabled", "disabled"])
def test_a_stale_vm_that_is_not_defined_any_more_is_forgotten_and_that_is_told(tmp_path, desired):
    a = agent(tmp_path)
    managed(a, role="stale", may_start=False, desired=desired)
    a.host.running, a.host.is_defined = False, lambda vm: False
    dry = asyncio.run(a.requests.stop("v", "disabled", True))
    assert dry["changed"] and "v" in a._vms and a.store.load("v")
    done = asyncio.run(a.requests.stop("v", "disabled", False))
    assert done["changed"] and (done["status"]["state"], done["status"]["role"]) == ("disabled", "none")
    assert "v" not in a._vms and hook(a, tmp_path) is None


def test_disable_with_no_worker_but_a_shut_output_does_not_just_forget(tmp_path):
    """Agent restarted (or in back-off): the VM's output is shut, the peer may have won."""
    a = agent(tmp_path)
    m = managed(a, may_start=False)  # => _regain
    launched = []

    async def start(found, port):
        launched.append(port)
        m.worker = FakeWorker(m, "detached")

    m._start_primary = start
    asyncio.run(m.orders.stop_protection("disabled"))
    assert launched, "forgotten with output shut and no claim made"


def test_disable_while_the_arbiter_is_down_is_not_done_and_completes_later(tmp_path):
    """A paired primary must claim before it leaves; unanswered, its worker is killed after 30 s."""
    a = agent(tmp_path)
    m = managed(a, may_start=False)
    m._regain = False
    m.worker = FakeWorker(m, "failed")

    async def run():
        with pytest.raises(KvmftError):
            await m.orders.stop_protection("disabled")
        assert a.managed("v") is m and a.store.load("v").desired == "disabled"
        assert ("b", "standby_discard") not in a.peers.calls

        async def start(found, port):  # the arbiter is back: the next worker wins
            m.worker = FakeWorker(m, "solo")
            await m.worker.end()

        m._start_primary = start
        m._not_before = 0.0
        await m.reconcile()
        await asyncio.sleep(0.1)
        m._not_before = 0.0
        await m.reconcile()
        await asyncio.sleep(0.1)
        assert a.managed("v") is None and a.store.load("v") is None

    asyncio.run(run())


@pytest.mark.parametrize("request_", ["discard", "prepare"])
def test_a_standby_that_takes_over_is_not_destroyed_by_a_request(tmp_path, request_):
    a = agent(tmp_path)
    m = managed(a, role="secondary", may_start=False)
    m._recover = False
    m.worker = FakeWorker(m, "activated")
    m.shown = ("failing_over", "silence")

    async def run():
        with pytest.raises(KvmftError):
            await (m.discard(m.state.peer) if request_ == "discard" else m.prepare({}, "b"))

    asyncio.run(run())
    assert a.host.destroyed == []


def test_a_standby_that_has_just_taken_over_becomes_primary_and_is_kept(tmp_path):
    a = agent(tmp_path)
    m = managed(a, role="secondary", may_start=False)
    m._recover = False

    class Late(FakeWorker):
        async def end(self, seconds=5.0):
            self.vm._outcome = ("activated", "x")

    m.worker = Late(m, "activated")
    asyncio.run(m.discard(m.state.peer))
    assert a.host.destroyed == [] and a.store.load("v").role == "primary"


def test_fencing_is_tried_again_when_libvirt_did_not_answer(tmp_path):
    a = agent(tmp_path)
    m = managed(a, may_start=False)
    m._regain = False
    fails = [1]

    def destroy(vm):
        if fails:
            fails.pop()
            raise KvmftError("libvirt_down", "x", "")
        a.host.destroyed.append(vm)

    a.host.destroy = destroy

    async def run():
        m.worker = FakeWorker(m, "fenced")
        await m.worker.end()
        await asyncio.sleep(0.1)
        assert a.store.load("v").role == "stale"
        m._not_before = 0.0
        await m.reconcile()

    asyncio.run(run())
    assert a.host.destroyed == ["v"]


def test_turning_off_in_the_ordinary_case_tells_the_peer_and_forgets(tmp_path):
    a = agent(tmp_path)
    m = managed(a, may_start=False, autostart=True)
    m._regain = False
    m.worker = FakeWorker(m, "detached")
    asyncio.run(m.orders.stop_protection("disabled"))
    assert a.store.load("v") is None and a.host.autostart["v"] is True
    assert a.host.destroyed == []


def test_suspending_keeps_the_state(tmp_path):
    a = agent(tmp_path)
    m = managed(a, may_start=False)
    m._regain = False
    m.worker = FakeWorker(m, "detached")
    asyncio.run(m.orders.stop_protection("suspended"))
    assert a.store.load("v").may_start and a.peers.calls == [("b", "standby_discard")]


def test_a_running_primary_is_not_declared_stale_because_libvirt_does_not_answer(
    tmp_path, monkeypatch
):
    a = agent(tmp_path)
    m = managed(a, may_start=False)
    h = Host()

    def down():
        raise KvmftError("libvirt_down", "libvirt does not answer.", "")

    monkeypatch.setattr(h, "_libvirt", down)
    a.host = h
    asyncio.run(m.reconcile())
    assert a.store.load("v").role == "primary"


def test_destroy_does_not_claim_success_when_libvirt_is_down(monkeypatch):
    h = Host()

    def down():
        raise KvmftError("libvirt_down", "libvirt does not answer.", "")

    monkeypatch.setattr(h, "_libvirt", down)
    with pytest.raises(KvmftError):
        h.destroy("v")


def test_reconcile_waits_until_a_workers_end_is_settled(tmp_path):
    a = agent(tmp_path)
    m = managed(a, may_start=False)
    m._regain = False
    paired = []

    async def pair():
        paired.append(1)

    m._pair = pair

    async def run():
        w = FakeWorker(m, "fenced")
        m.worker = w
        m._outcome = ("fenced", "lost")
        first = asyncio.create_task(m.reconcile())  # queued before the end, as _keep_moving may
        m._worker_ended(w)
        await first
        await asyncio.sleep(0.2)

    asyncio.run(run())
    assert not paired, "asked for a standby after LOST, before being fenced"


def test_one_damaged_state_file_does_not_stop_the_agent_for_all(tmp_path):
    s = Store(str(tmp_path))
    s.save(VmState("good", "u"))
    os.makedirs(tmp_path / "bad")
    (tmp_path / "bad" / "state.json").write_text("{")
    assert [x.vm for x in s.all()] == ["good"]


def test_an_event_after_a_torn_line_is_not_lost(tmp_path):
    p = str(tmp_path / "e.jsonl")
    EventLog(p, "a").add(None, "one", "x")
    with open(p, "a") as f:
        f.write('{"seq": 2, "ti')
    log = EventLog(p, "a")
    log.add(None, "two", "y")
    assert [e["event"] for e in log.read(None, 0, 10)] == ["one", "two"]


@pytest.mark.parametrize(
    "change",
    [
        {"arbiter": ["etcd"]},
        {"arbiter": "etcd"},
        {"ft_log_ports": [7499, 7411]},
        {"addresses": {**BASE["addresses"], "ft": 10}},
        {"addresses": {**BASE["addresses"], "ft": True}},
        {"ft_port": 7450},
        {"intervall": 3},
        {"peers": {"b": BASE["peers"]["b"], "c": BASE["peers"]["b"]}},
        {"defaults": {"min_interval_ms": 1000}},
    ],
    ids=str,
)
def test_wrong_configuration_is_refused(change):
    with pytest.raises(KvmftError):
        parse({**BASE, **change})


def test_a_token_left_by_a_killed_agent_lets_nothing_start(tmp_path):
    """kill -9 between writing the token and the finally; the next agent start must clean up."""
    a = agent(tmp_path)
    managed(a, role="secondary", session="s" * 32, may_start=False)
    os.makedirs(tmp_path / "tokens")
    (tmp_path / "tokens" / "v").write_text("s" * 32)
    from unittest import mock

    from kvmft.agent import host as h

    with mock.patch.object(h, "TOKEN_DIRECTORY", str(tmp_path / "tokens")):
        clear = getattr(Host, "clear_tokens", lambda: None)
        clear()
    assert hook(a, tmp_path)


XML = """<domain type='qemu'><name>v</name><uuid>11111111-1111-1111-1111-111111111111</uuid>
<memory unit='KiB'>65536</memory><vcpu>1</vcpu><os><type machine='pc-q35-7.2'>hvm</type></os>
<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{p}'/><target dev='vda'/></disk></devices></domain>"""


def test_a_file_of_somebody_else_at_the_replicas_path_is_not_touched(tmp_path, monkeypatch):
    p = tmp_path / "disk.raw"
    p.write_bytes(b"PRECIOUS" * 1024)
    monkeypatch.setattr(host_mod, "QMP_DIRECTORY", str(tmp_path / "q"))
    monkeypatch.setattr(host_mod, "TOKEN_DIRECTORY", str(tmp_path / "t"))
    monkeypatch.setattr(host_mod, "RUN_DIRECTORY", str(tmp_path / "r"))
    h = Host()

    class C:
        def lookupByUUIDString(self, u):
            e = libvirt.libvirtError("none")
            e.err = (libvirt.VIR_ERR_NO_DOMAIN,) + (0,) * 8
            raise e

        def createXML(self, *x):
            raise libvirt.libvirtError("domain 'v' already exists with uuid")

        def getDomainCapabilities(self, *x):
            return "<domainCapabilities/>"

        def listAllDomains(self):
            return []

    monkeypatch.setattr(h, "_libvirt", C)
    domain, disks = describe(XML.format(p=p)), [{"target": "vda", "path": str(p), "size": 4096}]
    if not h.admit(domain, disks, str(tmp_path)):
        with pytest.raises(KvmftError):
            h.start_standby(XML.format(p=p), domain, disks, str(tmp_path), "0" * 32)
    assert p.read_bytes() == b"PRECIOUS" * 1024
