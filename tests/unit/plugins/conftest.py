"""A fake agent on a real control socket, and modules run as Ansible runs them: as processes."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmft.agent.maintenance import Maintenance

ROOT = Path(__file__).parents[3]

HOSTS = ("node-a", "node-b", "node-c")
ASKING = (
    "vm_enable", "vm_disable", "vm_suspend", "vm_resume", "vm_failover", "vm_move_secondary",
    "vm_restart_secondary",
)  # fmt: skip


class Refused(Exception):
    """An error as an agent answers it."""

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "remedy": remedy}


class World:
    """One VM `db1`, which all agents of a cluster see, and what they logged."""

    def __init__(self) -> None:
        self.vm: dict[str, Any] = {
            "vm": "db1", "state": "disabled", "reason": "not turned on", "desired": "disabled",
            "primary": "node-a", "secondary": None, "options": {}, "allowed_hosts": [],
            "switched_off": False, "generation": None,
        }  # fmt: skip
        self.becomes = "protected"
        self.unnoticed = 0
        self.events: list[dict[str, Any]] = []

    def pair(self) -> None:
        """A new standby is on its way, if the VM runs."""
        if self.vm["switched_off"]:
            reason = "the VM is off; protection begins when it is started"
            self.vm.update(state="need_secondary", reason=reason)
        else:
            self.vm.update(state="starting", reason="is in sync soon")

    def move(self) -> None:
        """Time goes by between two looks."""
        if self.unnoticed:
            self.unnoticed -= 1
            if not self.unnoticed:
                self.pair()
        elif self.vm["state"] == "starting" and self.becomes != "starting":
            self.vm.update(state=self.becomes, reason=f"became {self.becomes}",
                           generation=(self.vm["generation"] or 0) + 1)  # fmt: skip

    def log(self, host: str, event: str, **data: Any) -> None:
        """One event, now."""
        now = time.time()
        self.events.append({"host": host, "vm": "db1", "event": event, "time": now, "at": now,
                            "data": data})  # fmt: skip


class FakeAgent:
    """What modules see of the agent of `host`, and every request that came."""

    def __init__(self, path: Path, host: str = "node-a", world: World | None = None) -> None:
        self.path = path
        self.host = host
        self.world = world or World()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.refusals: dict[str, dict[str, Any]] = {}
        self.raw: bytes | None = None
        self.version = "0.1.0"
        self.maintenance = Maintenance(str(path.with_suffix(".maintenance")), host)
        self.probes = [{"probe": "kernel", "ok": True, "detail": "", "remedy": ""}]

    @property
    def vm(self) -> dict[str, Any]:
        """The VM as the world has it."""
        return self.world.vm

    def changes(self) -> list[str]:
        """The requests that ask for a change, and mean it."""
        return [op for op, args in self.requests if op in ASKING and not args.get("check")]

    def status(self) -> dict[str, Any]:
        """The VM as this host tells of it."""
        vm = self.vm
        role = "none"
        if vm["desired"] != "disabled":
            sides = {vm["secondary"]: "secondary", vm["primary"]: "primary"}
            role = sides.get(self.host, "stale")
        running = vm["primary"] == self.host and not vm["switched_off"]
        return {**copy.deepcopy(vm), "role": role, "running": running}

    def answer(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request."""
        self.requests.append((op, args))
        if op in self.refusals:
            return {"ok": False, "error": self.refusals[op]}
        if (args.get("vm") or "db1") != "db1":
            return {"ok": False, "error": {
                "code": "vm_not_found", "message": f"VM {args['vm']} does not exist on this host.",
                "remedy": "See `virsh list --all` for the names."}}  # fmt: skip
        try:
            return {"ok": True, "result": self._result(op, args)}
        except Refused as refused:
            return {"ok": False, "error": refused.error}

    def _result(self, op: str, args: dict[str, Any]) -> Any:
        match op:
            case "vm_status":
                before = self.status()
                self.world.move()
                return before
            case "vm_list":
                return [self.status()] if self.vm["desired"] != "disabled" else []
            case "vm_check":
                return {"findings": []}
            case "host_info":
                return {"host": self.host, "version": self.version, "peers": {}, "vms": [],
                        "maintenance": self.maintenance.to_dict()}  # fmt: skip
            case "host_maintenance":
                changed = self.maintenance.change(args["on"], args.get("reason"), bool(args.get("check")))
                return {"changed": changed, "maintenance": self.maintenance.to_dict()}
            case "doctor":
                return self.probes
            case "events_cluster":
                return {"events": self.world.events, "hosts": {}}
        kept = copy.deepcopy(vars(self.world))
        changed = getattr(self, "_" + op)(args)
        if args.get("check"):
            self.vm.clear()
            self.vm.update(kept.pop("vm"))
            vars(self.world).update(kept)
        return {"changed": changed, "status": self.status()}

    def _vm_enable(self, args: dict[str, Any]) -> bool:
        vm, wanted, allowed = self.vm, args.get("secondary"), args.get("allowed_hosts")
        others = [host for host in HOSTS if host != self.host]
        for host in [*(allowed or []), *([wanted] if wanted else [])]:
            if host not in others:
                raise Refused("peer_unknown", f"Host {host} is not another host of this cluster.",
                              f"Known: {', '.join(others)}.")  # fmt: skip
        if self.status()["role"] == "secondary":
            raise Refused("runs_elsewhere", f"VM db1 runs on {vm['primary']}.")
        if self.status()["role"] == "stale":
            raise Refused("stale", f"What {self.host} has of VM db1 is of the past.",
                          f"Turn it on where it runs, probably {vm['primary']}.")  # fmt: skip
        all_allowed = sorted({*allowed, self.host}) if allowed else []
        options = args.get("options") or {}
        enabled = vm["desired"] == "enabled"
        moves = bool(wanted) and wanted != vm["secondary"]
        limits = allowed is not None and all_allowed != vm["allowed_hosts"]
        if enabled and not moves and not limits and options in ({}, vm["options"]):
            return False
        vm["desired"] = "enabled"
        vm["options"] = options or vm["options"]
        if limits:
            vm["allowed_hosts"] = all_allowed
        vm["secondary"] = wanted or vm["secondary"] or (None if vm["switched_off"] else "node-b")
        if moves or not enabled:
            self.world.pair()
        return True

    _vm_resume = _vm_enable

    def _vm_suspend(self, _args: dict[str, Any]) -> bool:
        changed = self.vm["desired"] != "suspended"
        self.vm.update(desired="suspended", state="suspended")
        return changed

    def _vm_disable(self, _args: dict[str, Any]) -> bool:
        changed = self.vm["desired"] != "disabled"
        self.vm.update(desired="disabled", state="disabled", secondary=None, options={},
                       allowed_hosts=[], generation=None)  # fmt: skip
        return changed

    def _vm_restart_secondary(self, _args: dict[str, Any]) -> bool:
        self._must_be_protected()
        self.world.unnoticed = 3  # looks until the end of the standby is noticed
        return True

    def _vm_failover(self, args: dict[str, Any]) -> bool:
        vm, target, planned = self.vm, args["target"], args["mode"] == "planned"
        if args["mode"] == "test":
            raise Refused("not_offered", "This version does not offer test failovers yet.",
                          "Use mode planned or unplanned.")  # fmt: skip
        if target == vm["primary"]:
            return False
        if target != vm["secondary"]:
            raise Refused("not_the_secondary",
                          f"The secondary of VM db1 is on {vm['secondary']}, not on {target}.",
                          f"Move it there first: kvmft secondary move db1 {target}.")  # fmt: skip
        if planned and not args.get("check"):
            self._must_be_protected()
            self.world.log(vm["primary"], "state", state="failing_over")
        self.world.log(target, "activated", epoch=7, activation_ms=30.5, carried_packets=2,
                       since_loss_ms=None, kind="planned" if planned else "ordered")  # fmt: skip
        vm.update(primary=target, secondary=vm["primary"], generation=(vm["generation"] or 0) + 1)
        self.world.pair()
        return True

    def _must_be_protected(self) -> None:
        vm = self.vm
        if vm["state"] != "protected":
            raise Refused("not_protected", f"VM db1 is {vm['state']} ({vm['reason']}).",
                          "Wait for `protected`.")  # fmt: skip


@contextlib.contextmanager
def serving(fake: FakeAgent) -> Iterator[FakeAgent]:
    """`fake` answers at its path meanwhile."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                if fake.raw is not None:
                    self.wfile.write(fake.raw)
                    return
                request = json.loads(line)
                reply = fake.answer(request["op"], request["args"])
                self.wfile.write(json.dumps(reply).encode() + b"\n")

    with socketserver.ThreadingUnixStreamServer(str(fake.path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    """A fake agent that listens."""
    with serving(FakeAgent(tmp_path / "control.sock")) as fake:
        yield fake


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, FakeAgent]]:
    """An agent per host of HOSTS, all of one world."""
    world = World()
    with contextlib.ExitStack() as stack:
        yield {host: stack.enter_context(serving(FakeAgent(tmp_path / f"{host}.sock", host, world)))
               for host in HOSTS}  # fmt: skip


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which this checkout is the collection kvmft.core."""
    path = tmp_path_factory.mktemp("collections")
    (path / "ansible_collections" / "kvmft").mkdir(parents=True)
    (path / "ansible_collections" / "kvmft" / "core").symlink_to(ROOT)
    return path


@pytest.fixture
def module(agent: FakeAgent, collections: Path) -> Callable[..., dict[str, Any]]:
    """Run a module against the fake agent; its result."""

    def run(name: str, /, *, check: bool = False, diff: bool = False, **params: Any) -> dict[str, Any]:
        params.setdefault("socket_path", str(agent.path))
        given = {**params, "_ansible_check_mode": check, "_ansible_diff": diff,
                 "_ansible_remote_tmp": str(agent.path.parent), "_ansible_keep_remote_files": False}  # fmt: skip
        starter = (
            "import sys, json\n"
            "from ansible.module_utils import basic\n"
            "basic._ANSIBLE_ARGS = sys.argv[1].encode()\n"
            "basic._ANSIBLE_PROFILE = 'legacy'\n"
            f"from ansible_collections.kvmft.core.plugins.modules import {name}\n"
            f"{name}.main()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", starter, json.dumps({"ANSIBLE_MODULE_ARGS": given})],
            capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "PYTHONPATH": str(collections)},
        )  # fmt: skip
        assert done.stdout, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        assert bool(result.get("failed")) == (done.returncode != 0)
        return result

    return run
