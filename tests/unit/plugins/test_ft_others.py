"""ft_failover and the info modules against the fake agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from .conftest import ROOT, FakeAgent

Run = Callable[..., dict[str, Any]]


def test_failover_is_idempotent_by_its_target(agent: FakeAgent, module: Run) -> None:
    module("ft_vm", name="db1")
    agent.requests.clear()
    predicted = module("ft_failover", check=True, diff=True, name="db1", target="node-b")
    assert predicted["changed"] and agent.vm["primary"] == "node-a" and not agent.changes()
    assert predicted["diff"] == {"before": {"primary": "node-a"}, "after": {"primary": "node-b"}}
    done = module("ft_failover", name="db1", target="node-b")
    assert done["changed"] and done["status"]["primary"] == "node-b"
    again = module("ft_failover", name="db1", target="node-b")
    assert not again["changed"] and agent.vm["primary"] == "node-b"


@pytest.mark.parametrize("mode", ["planned", "test"])
def test_modes_that_are_not_offered_are_refused(agent: FakeAgent, module: Run, mode: str) -> None:
    agent.refusals["vm_failover"] = {
        "code": "not_offered", "message": f"This version does not offer {mode} failovers yet.",
        "remedy": "Use mode unplanned, or wait for the next release.",
    }  # fmt: skip
    result = module("ft_failover", name="db1", target="node-b", mode=mode)
    assert result["failed"] and result["code"] == "not_offered"
    assert mode in result["msg"] and "Use mode unplanned" in result["msg"]


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
