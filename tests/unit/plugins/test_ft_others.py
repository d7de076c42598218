"""ft_failover and the info modules against the fake agent."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvmft.agent.config import DEFAULTS
from kvmft.agent.vm_status import status_of
from tests.unit.agent.test_agent_safety import agent as agent_of_a_host
from tests.unit.agent.test_agent_safety import managed

from .conftest import ROOT, FakeAgent

Run = Callable[..., dict[str, Any]]


def _load(path: str) -> Any:
    """A file of plugins/ that imports no other of them."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "plugins" / path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


takeover = _load("module_utils/_takeover.py").takeover


FIGURES = {"epoch": 7, "activation_ms": 30.5, "carried_packets": 2, "since_loss_ms": None}


@pytest.mark.parametrize(("mode", "kind"), [("unplanned", "ordered"), ("planned", "planned")])
def test_failover_is_idempotent_by_its_target(
    agent: FakeAgent, module: Run, mode: str, kind: str
) -> None:
    module("ft_vm", name="db1")
    for source, target in (("node-a", "node-b"), ("node-b", "node-a")):
        before, asked = copy.deepcopy(agent.vm), len(agent.changes())
        params = {"name": "db1", "target": target, "mode": mode, "wait_protected": True}
        predicted = module("ft_failover", check=True, diff=True, **params)
        assert predicted["changed"] and agent.vm == before and len(agent.changes()) == asked
        assert predicted["diff"] == {"before": {"primary": source}, "after": {"primary": target}}
        assert "failover" not in predicted
        done = module("ft_failover", diff=True, **params)
        assert done["changed"] and done["diff"] == predicted["diff"] and done["protected"]
        assert done["status"]["primary"] == target and done["status"]["secondary"] == source
        assert done["status"]["generation"] > before["generation"]
        figures = done["failover"]
        assert {name: figures[name] for name in FIGURES} == FIGURES and figures["kind"] == kind
        assert (figures["outage_ms"] is not None) == (mode == "planned")
        asked = len(agent.changes())
        for check in (True, False):
            again = module("ft_failover", check=check, **params)
            assert not again["changed"] and again["protected"] and "failover" not in again
        assert len(agent.changes()) == asked + 1, "only the real one asks, and changes nothing"


def test_without_wait_protected_it_returns_when_the_vm_runs_there(
    agent: FakeAgent, module: Run
) -> None:
    module("ft_vm", name="db1")
    agent.world.becomes = "starting"
    done = module("ft_failover", name="db1", target="node-b", mode="planned")
    assert done["changed"] and done["status"]["primary"] == "node-b" and done["protected"] is False
    waited = module("ft_failover", name="db1", target="node-b", wait_protected=True, timeout=1)
    assert waited["failed"] and waited["code"] == "timeout" and not waited["changed"]
    assert "is not protected again on node-b" in waited["msg"]


def test_a_failover_that_does_not_get_there_says_where_it_is(agent: FakeAgent, module: Run) -> None:
    module("ft_vm", name="db1")
    agent._vm_failover = lambda args: True
    result = module("ft_failover", name="db1", target="node-b", timeout=1)
    assert result["failed"] and result["code"] == "timeout"
    assert "does not run on node-b" in result["msg"] and "on node-a" in result["msg"]
    assert "failover" not in result


def test_the_protection_of_before_does_not_count_for_wait_protected(
    agent: FakeAgent, module: Run
) -> None:
    module("ft_vm", name="db1")
    stale = agent.vm["generation"]

    def slow(args: dict[str, Any]) -> bool:
        agent.vm.update(primary="node-b", secondary="node-a")
        agent.world.unnoticed = 3  # the old pair is shown for three looks
        return True

    agent._vm_failover = slow
    done = module("ft_failover", name="db1", target="node-b", wait_protected=True)
    assert done["protected"] and done["status"]["generation"] > stale


def test_events_that_cannot_be_read_do_not_fail_a_failover(agent: FakeAgent, module: Run) -> None:
    module("ft_vm", name="db1")
    agent.refusals["events_cluster"] = {"code": "x", "message": "x", "remedy": ""}
    done = module("ft_failover", name="db1", target="node-b")
    assert done["changed"] and done["status"]["primary"] == "node-b" and "failover" not in done


@pytest.mark.parametrize("check", [False, True])
def test_a_mode_that_is_not_offered_is_refused(agent: FakeAgent, module: Run, check: bool) -> None:
    module("ft_vm", name="db1")
    result = module("ft_failover", check=check, name="db1", target="node-b", mode="test")
    assert result["failed"] and result["code"] == "not_offered"
    assert "test failovers" in result["msg"] and "Use mode planned" in result["msg"]
    assert agent.vm["primary"] == "node-a"


@pytest.mark.parametrize("check", [False, True])
def test_a_planned_failover_without_a_standby_is_refused_and_predicted_so(
    agent: FakeAgent, module: Run, check: bool
) -> None:
    module("ft_vm", name="db1")
    agent.vm.update(state="need_secondary", reason="node-b is away")
    result = module("ft_failover", check=check, name="db1", target="node-b", mode="planned")
    assert result["failed"] and result["code"] == "not_protected" and "node-b is away" in result["msg"]
    assert agent.vm["primary"] == "node-a"


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("mode", ["planned", "unplanned"])
def test_a_failover_during_the_first_sync_is_refused_at_once(
    agent: FakeAgent, module: Run, mode: str, check: bool
) -> None:
    agent.world.becomes = "starting"
    module("ft_vm", name="db1", wait=False)
    result = module("ft_failover", check=check, name="db1", target="node-b", mode=mode)
    assert result["failed"] and result["code"] == "not_protected" and "is in sync soon" in result["msg"]
    assert agent.vm["primary"] == "node-a"


def test_a_takeover_that_is_under_way_already_is_waited_for(agent: FakeAgent, module: Run) -> None:
    module("ft_vm", name="db1")
    agent.vm.update(state="failing_over", reason="node-a is silent")
    assert module("ft_failover", check=True, name="db1", target="node-b")["changed"]
    assert module("ft_failover", name="db1", target="node-b")["status"]["primary"] == "node-b"


@pytest.mark.parametrize("check", [False, True])
def test_a_target_without_the_secondary_is_refused(agent: FakeAgent, module: Run, check: bool) -> None:
    module("ft_vm", name="db1")
    result = module("ft_failover", check=check, name="db1", target="node-c")
    assert result["failed"] and result["code"] == "not_the_secondary" and "node-b" in result["msg"]


def _event(host: str, name: str, at: float, **data: Any) -> dict[str, Any]:
    return {"host": host, "event": name, "at": at, "time": 0.0, "data": data}


def test_the_figures_are_those_of_this_failover() -> None:
    old = [_event("a", "state", 10.0, state="failing_over"),
           _event("b", "activated", 10.2, kind="planned", epoch=1)]  # fmt: skip
    new = [_event("a", "state", 90.0, state="failing_over"),
           _event("b", "state", 90.05, state="failing_over"),
           _event("b", "activated", 90.08, kind="planned", epoch=9, activation_ms=20.0)]  # fmt: skip
    found = takeover([*old, *new], "b", 89.9)
    assert found == {"kind": "planned", "epoch": 9, "activation_ms": 20.0, "since_loss_ms": None,
                     "carried_packets": None, "outage_ms": 80.0}  # fmt: skip
    assert takeover(old, "b", 89.9) is None and takeover(new, "a", 89.9) is None
    assert takeover(new[2:], "b", 89.9)["outage_ms"] is None, "the old primary did not answer"
    lost = [_event("b", "activated", 90.0, kind="unplanned", since_loss_ms=410.0)]
    assert takeover(lost, "b", 89.9)["since_loss_ms"] == 410.0


@pytest.mark.parametrize("check", [False, True])
def test_info_modules_change_nothing(agent: FakeAgent, module: Run, check: bool) -> None:
    one = module("ft_vm_info", check=check, name="db1")
    assert one["vms"][0]["state"] == "disabled" and not one["changed"]
    assert module("ft_vm_info", check=check)["vms"] == []
    host = module("ft_host_info", check=check, probe=True)
    assert host["host"]["host"] == "node-a" and host["probes"][0]["ok"] and not host["changed"]
    assert not agent.changes()


def test_the_action_group_lists_all_modules() -> None:
    groups = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())["action_groups"]
    modules = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("ft_*.py"))
    assert groups["ft"] == modules


def _documented(name: str, block: str = "RETURN") -> dict[str, Any]:
    """A block of a module; read as text, because the module imports from its collection."""
    text = (ROOT / "plugins" / "modules" / f"{name}.py").read_text()
    found: dict[str, Any] = yaml.safe_load(text.split(f'{block} = r"""')[1].split('"""')[0])
    return found


def test_ft_vm_takes_every_option_that_the_agent_knows() -> None:
    options = _documented("ft_vm", "DOCUMENTATION")["options"]["options"]["suboptions"]
    assert set(options) == set(DEFAULTS)


def test_ft_vm_info_documents_what_the_agent_returns(tmp_path: Path) -> None:
    fields = _documented("ft_vm_info")["vms"]["contains"]
    made = agent_of_a_host(tmp_path)
    status = status_of(made, managed(made), True)
    assert set(fields) == set(status)
    assert set(fields["arbiter"]["contains"]) == set(status["arbiter"])
    assert set(_documented("ft_vm")["status"]["contains"]) < set(fields)
    for name in ("ft_vm", "ft_failover", "ft_secondary"):
        assert set(_documented(name)["status"]["sample"]) <= set(fields), name


def test_ft_host_info_documents_what_the_agent_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = agent_of_a_host(tmp_path)
    made.host.versions = lambda: {"qemu": "7.2.22", "libvirt": "9.0.0"}
    monkeypatch.setattr("kvmft.agent.doctor.accelerator", lambda: "tcg")

    async def ping(peer: str, op: str, **args: Any) -> dict[str, Any]:
        return {"version": "0.1.0"}

    made.peers.call = ping
    found = asyncio.run(made.requests.host_info())
    fields = _documented("ft_host_info")["host"]["contains"]
    assert set(fields) == set(found)
    assert set(fields["arbiter"]["contains"]) == set(found["arbiter"])
