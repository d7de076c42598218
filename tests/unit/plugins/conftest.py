"""A fake agent on a real control socket, and modules run as Ansible runs them: as processes."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


class FakeAgent:
    """What modules see of an agent: one VM `db1` on node-a, and every request that came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.refusals: dict[str, dict[str, Any]] = {}
        self.vm: dict[str, Any] = {
            "vm": "db1", "state": "disabled", "reason": "not turned on", "desired": "disabled",
            "role": "none", "primary": "node-a", "secondary": None, "options": {}, "running": True,
        }  # fmt: skip
        self.becomes = "protected"
        self.raw: bytes | None = None

    def changes(self) -> list[str]:
        """The requests that ask for a change, and mean it."""
        asking = ("vm_enable", "vm_disable", "vm_suspend", "vm_resume", "vm_failover")
        return [op for op, args in self.requests if op in asking and not args.get("check")]

    def answer(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request."""
        self.requests.append((op, args))
        if op in self.refusals:
            return {"ok": False, "error": self.refusals[op]}
        if args.get("vm", "db1") != "db1":
            return {"ok": False, "error": {
                "code": "vm_not_found", "message": f"VM {args['vm']} does not exist on this host.",
                "remedy": "See `virsh list --all` for the names."}}  # fmt: skip
        return {"ok": True, "result": self._result(op, args)}

    def _result(self, op: str, args: dict[str, Any]) -> Any:
        before = dict(self.vm)
        match op:
            case "vm_status":
                if self.vm["state"] == "starting":
                    self.vm["state"] = self.becomes
                return before
            case "vm_list":
                return [before] if before["desired"] != "disabled" else []
            case "vm_check":
                return {"findings": []}
            case "host_info":
                return {"host": "node-a", "version": "0.1.0", "peers": {}, "vms": []}
            case "doctor":
                return [{"probe": "kernel", "ok": True, "detail": "", "remedy": ""}]
            case "vm_enable" | "vm_resume":
                after = {**before, "desired": "enabled", "role": "primary", "state": "starting",
                         "secondary": args.get("secondary") or "node-b",
                         "options": args["options"]}  # fmt: skip
            case "vm_suspend":
                after = {**before, "desired": "suspended", "state": "suspended"}
            case "vm_disable":
                after = {**before, "desired": "disabled", "state": "disabled", "secondary": None,
                         "options": {}}  # fmt: skip
            case "vm_failover":
                after = before
                if args["target"] != before["primary"]:
                    after = {**before, "primary": args["target"], "secondary": before["primary"]}
            case _:
                raise AssertionError(op)
        changed = after != before
        if not args.get("check"):
            self.vm = after
        return {"changed": changed, "status": dict(self.vm)}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    """A fake agent that listens."""
    fake = FakeAgent(tmp_path / "control.sock")

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
        yield fake
        server.shutdown()
        thread.join()


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
