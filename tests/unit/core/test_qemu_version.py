"""Which QEMU may take over from which."""

from __future__ import annotations

import pytest

from kvmft.core.qemu_version import older_process, other_version


@pytest.mark.parametrize("here", ["10.0.13", "7.2.21"])
def test_a_standby_is_of_the_very_same_version(here: str) -> None:
    (reason,) = other_version("7.2.22", here, "node-b")
    assert reason.code == "qemu_version"
    assert reason.message == f"QEMU is 7.2.22 on the primary and {here} on node-b."
    assert other_version(here, here, "node-b") == []


def test_a_vm_in_the_qemu_of_an_older_release_is_named() -> None:
    (reason,) = older_process("db1", "7.2.22", "10.0.13")
    assert reason.code == "qemu_version"
    assert "VM db1 still runs in QEMU 7.2.22" in reason.message
    assert older_process("db1", "10.0.11", "10.0.13") == []
