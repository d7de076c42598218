"""ft_secondary: move, repeat, move on, restart, and what is refused, each in check mode too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import FakeAgent

Run = Callable[..., dict[str, Any]]


def test_each_move_predicts_then_changes_then_changes_nothing(agent: FakeAgent, module: Run) -> None:
    module("ft_vm", name="db1", secondary="node-b")
    now = "node-b"
    for host in ("node-c", "node-b"):
        before, asked = copy.deepcopy(agent.vm), len(agent.changes())
        predicted = module("ft_secondary", check=True, diff=True, name="db1", host=host)
        assert agent.vm == before and len(agent.changes()) == asked
        done = module("ft_secondary", diff=True, name="db1", host=host)
        assert predicted["changed"] and done["changed"]
        assert done["diff"] == predicted["diff"]
        assert done["diff"] == {"before": {"secondary": now}, "after": {"secondary": host}}
        assert done["protected"] and done["status"]["secondary"] == host == agent.vm["secondary"]
        assert len(agent.changes()) == asked + 1
        for check in (False, True):
            assert not module("ft_secondary", check=check, name="db1", host=host)["changed"]
        assert len(agent.changes()) == asked + 1
        now = host


def test_a_move_keeps_options_and_allowed_hosts(agent: FakeAgent, module: Run) -> None:
    kept = {"options": {"interval_ms": 10}, "allowed_hosts": ["node-a", "node-b", "node-c"]}
    module("ft_vm", name="db1", **kept)
    module("ft_secondary", name="db1", host="node-c")
    assert {name: agent.vm[name] for name in kept} == kept


def test_a_restart_is_a_change_each_time_and_waits_for_a_new_pair(agent: FakeAgent, module: Run) -> None:
    module("ft_vm", name="db1")
    for generation in (2, 3):
        before = copy.deepcopy(agent.vm)
        predicted = module("ft_secondary", check=True, diff=True, name="db1", state="restarted")
        assert predicted["changed"] and agent.vm == before
        done = module("ft_secondary", diff=True, name="db1", state="restarted")
        assert done["changed"] and done["protected"] and done["diff"] == predicted["diff"]
        assert done["status"]["generation"] == generation == agent.vm["generation"]
        assert done["status"]["secondary"] == before["secondary"]
    assert agent.changes() == ["vm_enable", "vm_restart_secondary", "vm_restart_secondary"]


def test_protection_that_does_not_come_back_is_told(agent: FakeAgent, module: Run) -> None:
    module("ft_vm", name="db1")
    agent.world.becomes = "need_secondary"
    for params in ({"state": "restarted"}, {"host": "node-c"}):
        agent.vm.update(state="protected")
        result = module("ft_secondary", name="db1", timeout=2, **params)
        assert result["failed"] and result["code"] == "timeout" and result["changed"]
        assert "need_secondary" in result["msg"] and result["protected"] is False


def test_without_wait_it_returns_at_once(agent: FakeAgent, module: Run) -> None:
    module("ft_vm", name="db1")
    result = module("ft_secondary", name="db1", host="node-c", wait=False)
    assert result["changed"] and result["status"]["state"] == "starting" and not result["protected"]


def test_a_vm_that_is_off_has_its_secondary_noted(agent: FakeAgent, module: Run) -> None:
    agent.vm.update(switched_off=True)
    module("ft_vm", name="db1", secondary="node-b")
    result = module("ft_secondary", name="db1", host="node-c", timeout=1)
    assert result["changed"] and result["status"]["secondary"] == "node-c"
    assert result["protected"] is False and "when it is started" in result["reason"]
    assert not module("ft_secondary", name="db1", host="node-c", timeout=1)["changed"]


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({}, "host"),
        ({"host": "node-a"}, "it runs on node-a, so that its secondary cannot be there"),
        ({"host": "node-z"}, "node-z is not another host"),
        ({"host": "node-c", "state": "restarted"}, "Leave host out"),
        ({"host": "node-c", "name": "nope"}, "does not exist"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_bad_input_is_one_clear_error(
    agent: FakeAgent, module: Run, params: dict[str, Any], word: str, check: bool
) -> None:
    module("ft_vm", name="db1")
    before = copy.deepcopy(agent.vm)
    result = module("ft_secondary", check=check, **{"name": "db1", **params})
    assert result["failed"] and word in result["msg"], result
    assert agent.vm == before


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("desired", ["disabled", "suspended"])
def test_only_the_secondary_of_an_enabled_vm_is_moved_or_restarted(
    agent: FakeAgent, module: Run, desired: str, check: bool
) -> None:
    agent.vm.update(desired=desired, state=desired, secondary="node-b")
    for params in ({"host": "node-c"}, {"state": "restarted"}):
        result = module("ft_secondary", check=check, name="db1", **params)
        assert result["failed"] and f"fault tolerance is {desired}" in result["msg"]
    assert not agent.changes()


@pytest.mark.parametrize("check", [False, True])
def test_a_restart_of_a_vm_that_is_not_protected_is_refused(
    agent: FakeAgent, module: Run, check: bool
) -> None:
    module("ft_vm", name="db1")
    agent.vm.update(state="need_secondary", reason="node-b is away")
    result = module("ft_secondary", check=check, name="db1", state="restarted")
    assert result["failed"] and result["code"] == "not_protected" and "node-b is away" in result["msg"]


def test_the_host_of_the_secondary_names_the_one_to_ask(
    cluster: dict[str, FakeAgent], module: Run
) -> None:
    module("ft_vm", socket_path=str(cluster["node-a"].path), name="db1")
    for params in ({"host": "node-c"}, {"state": "restarted"}):
        result = module("ft_secondary", socket_path=str(cluster["node-b"].path), name="db1", **params)
        assert result["failed"] and "run the module on node-a" in result["msg"]
    assert not cluster["node-b"].changes()


def test_a_host_that_cannot_take_it_costs_nothing(agent: FakeAgent, module: Run) -> None:
    module("ft_vm", name="db1")
    agent.refusals["vm_enable"] = {
        "code": "not_compliant", "message": "VM db1 cannot be protected now: no.",
        "remedy": "Mend every reason; the VM was not touched.",
        "reasons": [{"code": "memory", "message": "node-c has 1 GiB free.", "remedy": "Stop VMs."}],
    }  # fmt: skip
    for check in (True, False):
        result = module("ft_secondary", check=check, name="db1", host="node-c")
        assert result["failed"] and "node-c has 1 GiB free." in result["msg"]
    assert agent.vm["secondary"] == "node-b" and agent.vm["state"] == "protected"
