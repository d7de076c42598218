"""ft_vm: create, repeat, modify, repeat, delete, repeat, each in check mode too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import FakeAgent

Run = Callable[..., dict[str, Any]]


def _state(agent: FakeAgent) -> tuple[str, dict[str, Any]]:
    return agent.vm["desired"], agent.vm["options"]


STEPS: list[tuple[str, dict[str, Any], tuple[str, dict[str, Any]]]] = [
    ("create", {"options": {"interval_ms": 20}}, ("enabled", {"interval_ms": 20})),
    ("modify", {"options": {"interval_ms": 10}}, ("enabled", {"interval_ms": 10})),
    ("add an option", {"options": {"detection_ms": 500}},
     ("enabled", {"interval_ms": 10, "detection_ms": 500})),
    ("suspend", {"state": "suspended"}, ("suspended", {"interval_ms": 10, "detection_ms": 500})),
    ("resume", {"state": "enabled"}, ("enabled", {"interval_ms": 10, "detection_ms": 500})),
    ("delete", {"state": "disabled"}, ("disabled", {})),
]  # fmt: skip


def test_every_step_predicts_then_changes_then_changes_nothing(agent: FakeAgent, module: Run) -> None:
    for what, params, want in STEPS:
        before, asked = _state(agent), len(agent.changes())
        predicted = module("ft_vm", check=True, name="db1", **params)
        assert predicted["changed"], what
        assert _state(agent) == before and len(agent.changes()) == asked, what
        done = module("ft_vm", name="db1", **params)
        assert done["changed"] and _state(agent) == want, (what, done)
        assert done["status"]["state"] == {"enabled": "protected"}.get(want[0], want[0]), what
        asked = len(agent.changes())
        assert not module("ft_vm", name="db1", **params)["changed"], what
        assert not module("ft_vm", check=True, name="db1", **params)["changed"], what
        assert len(agent.changes()) == asked, what


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
    agent.becomes = "need_secondary"
    result = module("ft_vm", name="db1", timeout=1)
    assert result["failed"] and result["code"] == "timeout"
    assert result["status"]["state"] == "need_secondary" and "need_secondary" in result["msg"]


def test_without_wait_it_returns_at_once(agent: FakeAgent, module: Run) -> None:
    agent.becomes = "starting"
    assert module("ft_vm", name="db1", wait=False)["status"]["state"] == "starting"


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


def test_the_secondary_is_not_moved_in_silence(agent: FakeAgent, module: Run) -> None:
    assert module("ft_vm", name="db1")["changed"]
    result = module("ft_vm", name="db1", secondary="node-c")
    assert result["failed"] and "does not move it to node-c" in result["msg"]


@pytest.mark.parametrize("raw", [b"", b"hello\n", b"{}\n", b'{"ok": false}\n', b"[1]\n"])
def test_an_answer_that_is_none_is_an_error(agent: FakeAgent, module: Run, raw: bytes) -> None:
    agent.raw = raw
    result = module("ft_vm", name="db1")
    assert result["failed"] and result["code"] == "agent_reply"
