"""ft_vm: create, repeat, modify, repeat, delete, repeat, each in check mode too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import FakeAgent

Run = Callable[..., dict[str, Any]]


STEPS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("create", {"options": {"interval_ms": 20}},
     {"desired": "enabled", "options": {"interval_ms": 20}, "secondary": "node-b"}),
    ("modify", {"options": {"interval_ms": 10}}, {"options": {"interval_ms": 10}}),
    ("add options", {"options": {"detection_ms": 500, "sync_mib_s": 50}},
     {"options": {"interval_ms": 10, "detection_ms": 500, "sync_mib_s": 50}}),
    ("unbind the sync", {"options": {"sync_mib_s": 0}},
     {"options": {"interval_ms": 10, "detection_ms": 500, "sync_mib_s": 0}}),
    ("limit the hosts", {"allowed_hosts": ["node-b", "node-a"]},
     {"allowed_hosts": ["node-a", "node-b"], "secondary": "node-b"}),
    ("allow another host, and move there",
     {"allowed_hosts": ["node-c", "node-a"], "secondary": "node-c", "options": {"interval_ms": 10}},
     {"allowed_hosts": ["node-a", "node-c"], "secondary": "node-c"}),
    ("suspend", {"state": "suspended"}, {"desired": "suspended", "allowed_hosts": ["node-a", "node-c"]}),
    ("resume", {"state": "enabled"}, {"desired": "enabled", "allowed_hosts": ["node-a", "node-c"]}),
    ("allow all hosts", {"allowed_hosts": []}, {"allowed_hosts": [], "secondary": "node-c"}),
    ("move the secondary", {"secondary": "node-b"}, {"allowed_hosts": [], "secondary": "node-b"}),
    ("delete", {"state": "disabled"}, {"desired": "disabled", "options": {}, "allowed_hosts": []}),
]  # fmt: skip


def test_every_step_predicts_then_changes_then_changes_nothing(agent: FakeAgent, module: Run) -> None:
    for what, params, want in STEPS:
        before, asked = copy.deepcopy(agent.vm), len(agent.changes())
        predicted = module("ft_vm", check=True, diff=True, name="db1", **params)
        assert predicted["changed"], what
        assert agent.vm == before and len(agent.changes()) == asked, what
        assert predicted["protected"] == (before["state"] == "protected"), what
        done = module("ft_vm", diff=True, name="db1", **params)
        assert done["changed"] and done["diff"] == predicted["diff"], (what, done)
        assert {name: agent.vm[name] for name in want} == want, what
        for name, value in predicted["diff"]["after"].items():
            assert agent.vm[{"state": "desired"}.get(name, name)] == value, (what, name)
        state = agent.vm["desired"]
        assert done["status"]["state"] == {"enabled": "protected"}.get(state, state), what
        assert done["protected"] == (state == "enabled"), what
        asked = len(agent.changes())
        for check in (False, True):
            again = module("ft_vm", check=check, diff=True, name="db1", **params)
            assert not again["changed"] and again["diff"]["before"] == again["diff"]["after"], what
        assert len(agent.changes()) == asked, what


def test_the_secondary_moves_with_one_request_and_is_waited_for(agent: FakeAgent, module: Run) -> None:
    module("ft_vm", name="db1", options={"interval_ms": 10})
    agent.requests.clear()
    done = module("ft_vm", diff=True, name="db1", secondary="node-c")
    assert done["diff"]["before"]["secondary"] == "node-b"
    assert done["diff"]["after"]["secondary"] == "node-c"
    assert done["status"]["secondary"] == "node-c" and done["protected"]
    asked = [(op, args) for op, args in agent.requests if op != "vm_status"]
    assert asked == [("vm_enable", {"vm": "db1", "check": False, "secondary": "node-c",
                                    "options": {"interval_ms": 10}})]  # fmt: skip


def test_the_allowed_hosts_hold_on_after_a_failover(cluster: dict[str, FakeAgent], module: Run) -> None:
    here, there = (str(cluster[host].path) for host in ("node-a", "node-b"))
    wanted = {"name": "db1", "allowed_hosts": ["node-a", "node-b"]}
    assert module("ft_vm", socket_path=here, **wanted)["changed"]
    module("ft_failover", socket_path=there, name="db1", target="node-b", wait_protected=True)
    assert not module("ft_vm", socket_path=there, **wanted)["changed"]
    result = module("ft_vm", socket_path=here, name="db1", allowed_hosts=[])
    assert result["failed"] and "it runs on node-b" in result["msg"]
    assert cluster["node-a"].changes() == ["vm_enable"]


@pytest.mark.parametrize("desired", ["disabled", "suspended"])
def test_a_vm_that_is_off_is_enabled_without_a_wait(
    agent: FakeAgent, module: Run, desired: str
) -> None:
    agent.vm.update(switched_off=True, desired=desired, state=desired)
    predicted = module("ft_vm", check=True, diff=True, name="db1", secondary="node-b", timeout=1)
    done = module("ft_vm", diff=True, name="db1", secondary="node-b", timeout=1)
    assert predicted["changed"] and done["changed"] and predicted["diff"] == done["diff"]
    assert done["protected"] is False and "begins when it is started" in done["reason"]
    assert done["status"]["switched_off"] and done["status"]["state"] == "need_secondary"
    again = module("ft_vm", name="db1", secondary="node-b", timeout=1)
    assert not again["changed"] and not again["protected"]
    moved = module("ft_vm", name="db1", secondary="node-c", timeout=1)
    assert moved["changed"] and moved["status"]["secondary"] == "node-c" and not moved["protected"]
    agent.vm.update(switched_off=False, state="starting")
    assert module("ft_vm", name="db1")["protected"]
    agent.vm.update(switched_off=True, state="need_secondary")
    for changed in (True, False):
        gone = module("ft_vm", name="db1", state="disabled", timeout=1)
        assert gone["changed"] is changed and agent.vm["desired"] == "disabled"


def test_a_vm_that_is_forgotten_with_the_request_is_not_asked_for_again(
    agent: FakeAgent, module: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a host whose definition of a VM that runs elsewhere was removed."""
    module("ft_vm", name="db1")
    answer = agent.answer

    def forgets(op: str, args: dict[str, Any]) -> dict[str, Any]:
        given = answer(op, args)
        if op == "vm_disable" and not args.get("check"):
            agent.refusals["vm_status"] = {"code": "vm_not_found", "message": "VM db1 does not exist.", "remedy": ""}
        return given

    monkeypatch.setattr(agent, "answer", forgets)
    gone = module("ft_vm", name="db1", state="disabled", timeout=1)
    assert gone["changed"] and gone["status"]["state"] == "disabled", gone


def test_a_vm_that_ended_and_may_be_taken_over_does_not_count_as_off(
    agent: FakeAgent, module: Run
) -> None:
    module("ft_vm", name="db1")
    agent.vm.update(state="failing_over", reason="the VM ended here; node-b may be taking over")
    result = module("ft_vm", name="db1", timeout=0)
    assert result["failed"] and result["code"] == "timeout" and "may be taking over" in result["msg"]
    assert result["protected"] is False and result["reason"] == agent.vm["reason"]


def test_diff_shows_before_and_after(module: Run) -> None:
    result = module("ft_vm", check=True, diff=True, name="db1", secondary="node-b",
                    options={"interval_ms": 10})  # fmt: skip
    assert result["diff"]["before"] == {"state": "disabled", "secondary": None, "options": {}}
    assert result["diff"]["after"] == {
        "state": "enabled", "secondary": "node-b", "options": {"interval_ms": 10},
    }  # fmt: skip


def test_a_refusal_shows_every_reason_with_its_remedy(agent: FakeAgent, module: Run) -> None:
    agent.refusals["vm_enable"] = {
        "code": "not_compliant", "message": "VM db1 cannot be protected now: a. b.",
        "remedy": "Mend every reason; the VM was not touched.",
        "reasons": [{"code": "vhost", "message": "NIC 1 uses vhost.", "remedy": "Set driver qemu."},
                    {"code": "hostdev", "message": "It has a host device.", "remedy": "Remove it."}],
    }  # fmt: skip
    result = module("ft_vm", name="db1")
    assert result["failed"] and result["code"] == "not_compliant" and len(result["reasons"]) == 2
    for sentence in ("NIC 1 uses vhost.", "Set driver qemu.", "It has a host device.", "Remove it."):
        assert sentence in result["msg"]
    assert agent.vm["desired"] == "disabled"


def test_a_wait_that_ends_too_early_says_what_was_reached(agent: FakeAgent, module: Run) -> None:
    agent.world.becomes = "need_secondary"
    result = module("ft_vm", name="db1", timeout=1)
    assert result["failed"] and result["code"] == "timeout"
    assert result["status"]["state"] == "need_secondary" and "need_secondary" in result["msg"]


def test_without_wait_it_returns_at_once(agent: FakeAgent, module: Run) -> None:
    agent.world.becomes = "starting"
    assert module("ft_vm", name="db1", wait=False)["status"]["state"] == "starting"


@pytest.mark.parametrize("check", [False, True])
def test_a_host_that_has_only_the_past_of_it_is_told_at_once(
    cluster: dict[str, FakeAgent], module: Run, check: bool
) -> None:
    module("ft_vm", socket_path=str(cluster["node-a"].path), name="db1")
    result = module("ft_vm", socket_path=str(cluster["node-c"].path), check=check, name="db1")
    assert result["failed"] and result["code"] == "stale" and "probably node-a" in result["msg"]


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"name": "nope"}, "does not exist"),
        ({"name": "db1", "state": "suspended"}, "enable it first"),
        ({"name": "db1", "state": "on"}, "enabled"),
        ({"name": "db1", "options": {"interval": 1}}, "interval"),
        ({"name": "db1", "socket_path": "/nonexistent/control.sock"}, "systemctl start kvmft-agent"),
    ],
)
def test_bad_input_is_one_clear_error(
    agent: FakeAgent, module: Run, params: dict[str, Any], word: str
) -> None:
    result = module("ft_vm", **params)
    assert result["failed"] and word in result["msg"], result
    assert not agent.changes()


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"secondary": "node-a"}, "it runs on node-a, so that its secondary cannot be there"),
        ({"secondary": "node-z"}, "node-z is not another host"),
        ({"allowed_hosts": ["node-b"]}, "it runs on node-a, which is not among allowed_hosts (node-b)"),
        ({"allowed_hosts": ["node-a"]}, "add a host for the secondary"),
        ({"allowed_hosts": ["node-a", "node-z"]}, "node-z is not another host"),
        ({"allowed_hosts": ["node-a", "node-b"], "secondary": "node-c"},
         "its secondary shall be on node-c, which is not among allowed_hosts (node-a, node-b)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_hosts_that_cannot_be_had_are_one_clear_error(
    agent: FakeAgent, module: Run, params: dict[str, Any], word: str, check: bool, enabled: bool
) -> None:
    if enabled:
        module("ft_vm", name="db1")
    before = copy.deepcopy(agent.vm)
    result = module("ft_vm", check=check, name="db1", **params)
    assert result["failed"] and word in result["msg"] and agent.vm == before


def test_the_secondary_is_not_moved_out_of_the_hosts_that_were_allowed_before(
    agent: FakeAgent, module: Run
) -> None:
    module("ft_vm", name="db1", allowed_hosts=["node-a", "node-b"])
    result = module("ft_vm", name="db1", secondary="node-c")
    assert result["failed"] and "not among allowed_hosts" in result["msg"]
    assert agent.changes() == ["vm_enable"]


@pytest.mark.parametrize("raw", [b"", b"hello\n", b"{}\n", b'{"ok": false}\n', b"[1]\n"])
def test_an_answer_that_is_none_is_an_error(agent: FakeAgent, module: Run, raw: bytes) -> None:
    agent.raw = raw
    result = module("ft_vm", name="db1")
    assert result["failed"] and result["code"] == "agent_reply"
