"""libvirt's hook: what is of the past never starts (I5)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmft.agent.store import Store, VmState
from kvmft.cli.hook import refusal


@pytest.mark.parametrize(
    ("role", "may_start", "token", "allowed"),
    [
        ("primary", True, False, True),
        ("primary", False, False, False),
        ("secondary", False, False, False),
        ("secondary", False, True, True),
        ("stale", False, False, False),
        ("stale", True, True, False),
    ],
)
def test_only_the_rightful_side_starts(
    tmp_path: Path, role: str, may_start: bool, token: bool, allowed: bool
) -> None:
    root, tokens = tmp_path / "vm", tmp_path / "tokens"
    tokens.mkdir()
    Store(str(root)).save(VmState("db1", "uuid", role=role, peer="node-b", may_start=may_start))
    if token:
        (tokens / "db1").touch()
    reason = refusal("db1", "prepare", str(root), str(tokens))
    assert (reason is None) is allowed
    if reason is not None:
        assert "node-b" in reason and "not started here" in reason
    assert refusal("db1", "stopped", str(root), str(tokens)) is None


def test_other_vms_start_as_ever(tmp_path: Path) -> None:
    assert refusal("web1", "prepare", str(tmp_path / "vm"), str(tmp_path)) is None
    Store(str(tmp_path / "vm"))
    assert refusal("web1", "prepare", str(tmp_path / "vm"), str(tmp_path)) is None


def test_a_damaged_state_starts_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    Path(store.directory("db1"), "state.json").write_text("{")
    reason = refusal("db1", "prepare", str(tmp_path), str(tmp_path))
    assert reason is not None and "damaged" in reason
