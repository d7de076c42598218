"""The pure parts of the drills, imported as from an installed collection, and a drill to report."""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
from typing import Any

from .conftest import ROOT

_HOME = ROOT / "build" / "collections"
_LINK = _HOME / "ansible_collections" / "kvmft" / "core"
_LINK.parent.mkdir(parents=True, exist_ok=True)
with contextlib.suppress(FileExistsError):
    _LINK.symlink_to(ROOT)
if str(_HOME) not in sys.path:
    sys.path.append(str(_HOME))


def util(name: str) -> Any:
    """A file of plugins/module_utils."""
    return importlib.import_module(f"ansible_collections.kvmft.core.plugins.module_utils.{name}")


BEGIN = 1_795_000_000.0


def event(at: float, host: str, name: str, reason: str = "", **data: Any) -> dict[str, Any]:
    """An event at seconds after BEGIN."""
    return {"at": BEGIN + at, "time": BEGIN + at, "host": host, "vm": "x", "event": name,
            "reason": reason, "data": data, "seq": int(at * 1000)}  # fmt: skip


def failover(at: float, source: str, target: str, base: int) -> list[dict[str, Any]]:
    """The events of an ordered failover at `at`, protected again 6 s later."""
    return [
        event(at, target, "failover_asked", "asked by a person"),
        event(at + 0.001, target, "state", state="failing_over", role="secondary"),
        event(at + 0.002, target, "claim", "asks the arbiter whether it may run alone", purpose="solo"),
        event(at + 0.004, target, "claim_sent", f"asks to replace generation {base} by {base + 1}",
              base=base, asked=base + 1, nonce="9f3a61c2"),
        event(at + 0.030, target, "verdict", "the arbiter swapped the record", won=True,
              generation=base + 1, base=base, asked=base + 1, nonce="9f3a61c2"),
        event(at + 0.110, target, "activated", "runs from commit 812", kind="ordered", epoch=812),
        event(at + 0.112, target, "state", state="need_secondary", role="secondary"),
        event(at + 2.0, target, "state", state="starting", role="primary"),
        event(at + 5.9, source, "state", state="protected", role="secondary"),
        event(at + 6.0, target, "state", state="protected", role="primary"),
    ]  # fmt: skip


def step(name: str, group: str, port: int, **objectives: float) -> dict[str, Any]:
    """One VM of a plan, watched on a port."""
    made: dict[str, Any] = util("_drill_plan").plan(groups=[{
        "name": group,
        "vms": [{"name": name, "address": "192.0.2.10", "health": [{"type": "tcp", "port": port}],
                 "objectives": objectives}],
    }])[0]  # fmt: skip
    return made


def check(at: float, when: str, **more: Any) -> dict[str, Any]:
    """A health check that was answered."""
    return {"at": BEGIN + at, "when": when, "name": "tcp 192.0.2.10:5432", "type": "tcp", "ok": True,
            "attempts": 1, "seconds": 0.01, "detail": "192.0.2.10:5432 accepts connections", **more}  # fmt: skip


def leg(vm: str, at: float, source: str, target: str, generation: int, **more: Any) -> dict[str, Any]:
    """One way that was completed, as the playbook notes it."""
    return {
        "vm": vm, "back": False, "from": source, "to": target, "ordered": BEGIN + at,
        "running": BEGIN + at + 0.9, "protected": BEGIN + at + 6.8, "outcome": "done", "reason": "",
        "generation": generation, "secondary": source, "network": [],
        "failover": {"kind": "ordered", "epoch": 812, "activation_ms": 71.4, "since_loss_ms": None,
                     "outage_ms": None, "carried_packets": 0},
        **more,
    }  # fmt: skip


def seen(silences: list[list[float | None]], until: float = 34.0, **more: Any) -> dict[str, Any]:
    """What the prober saw of one VM; silences in seconds after BEGIN."""
    return {
        "attempts": 640, "answers": 632, "first": BEGIN + 0.3, "last": BEGIN + until, "until": BEGIN + until,
        "failure": "192.0.2.10: Connection refused", "floor": 0.1,
        "silences": [[None if each is None else BEGIN + each for each in pair] for pair in silences],
        "answer_ms": {"p50": 3.1, "p99": 21.0}, "markers": None, "broken": None, **more,
    }  # fmt: skip


def status(state: str = "protected", primary: str = "node-b", secondary: str = "node-a") -> dict[str, Any]:
    """What a host shows of a VM."""
    return {"state": state, "reason": "the secondary holds a commit and the arbiter knows",
            "primary": primary, "secondary": secondary, "generation": 5}  # fmt: skip


def raw(**changes: Any) -> dict[str, Any]:
    """Two VMs of two groups, both failed over, one after the other, in 34 s."""
    steps = [step("dir1", "directory", 389, rto_ms=1000, reprotect_ms=30_000),
             step("db1", "database", 5432, rto_ms=1000, rpo_ms=0)]  # fmt: skip
    for number, each in enumerate(steps, 1):
        each["number"] = number
    host = {"version": "0.1.0", "qemu": "7.2.22", "libvirt": "9.0.0", "kernel": "6.12.9+bpo-amd64",
            "python": "3.11.2", "accelerator": "kvm",
            "arbiter": {"type": "etcd", "ok": True, "reason": "etcd 3.4.23"}}  # fmt: skip
    answering = {"node-a": {"ok": True}, "node-b": {"ok": True}}
    kept = {"acknowledged": 588, "read_back": 588, "lost": 0, "unknown": 0, "lost_ms": 0.0}
    made: dict[str, Any] = {
        "id": "drill-unplanned-20261118T201320Z", "mode": "unplanned", "started": BEGIN,
        "ended": BEGIN + 34.0, "steps": steps, "stopped": "", "prober": "localhost",
        "ansible": "2.19.14", "collection": "0.1.0", "remarks": [],
        "before": {name: status(primary="node-a", secondary="node-b") for name in ("dir1", "db1")},
        "final": {"dir1": status(), "db1": status()},
        "legs": [leg("dir1", 4.0, "node-a", "node-b", 5), leg("db1", 18.0, "node-a", "node-b", 9)],
        "checks": {
            "dir1": [check(2.0, "before"), check(11.0, "running"), check(12.0, "protected")],
            "db1": [check(2.5, "before"), check(25.0, "running", attempts=3), check(26.0, "protected")],
        },
        "hosts": [{"host": "node-a", **host}, {"host": "node-b", **host}],
        "events": {
            "dir1": {"events": failover(4.0, "node-a", "node-b", 4), "hosts": answering},
            "db1": {"events": failover(18.0, "node-a", "node-b", 8), "hosts": answering},
        },
        "probes": {"dir1": seen([[3.98, 4.34], [9.0, 9.14]]),
                   "db1": seen([[17.99, 18.45]], markers=kept, broken=0)},
        "clocks": {
            "hosts": {"sent": BEGIN + 33.0, "received": BEGIN + 33.9, "now": BEGIN + 33.5},
            "prober": {"sent": BEGIN + 32.0, "received": BEGIN + 32.9, "now": BEGIN + 32.4},
        },
    }  # fmt: skip
    made = copy.deepcopy(made)
    made.update(changes)
    return made
