"""Which QEMU can take over from which. Pure.

Device state and the blocks of firmware and tables that are not carried (see adapters/ramblocks.py)
are alike on both hosts because QEMU is of the same version there.
"""

from __future__ import annotations

from kvmft.errors import KvmftError


def other_version(primary: str, here: str, host: str) -> list[KvmftError]:
    """Why `host`, with QEMU `here`, takes no standby of a host with QEMU `primary`; none: it does."""
    if primary == here:
        return []
    return [KvmftError(
        "qemu_version", f"QEMU is {primary} on the primary and {here} on {host}.",
        "Upgrade both hosts to the same version.")]  # fmt: skip


def older_process(vm: str, running: str, installed: str) -> list[KvmftError]:
    """Why a VM that was started before its host got a new QEMU release cannot be protected.

    `running` and `installed` are versions such as 7.2.22; an update within a release is no reason.
    """
    if running.split(".")[:2] == installed.split(".")[:2]:
        return []
    return [KvmftError(
        "qemu_version",
        f"VM {vm} still runs in QEMU {running}; QEMU {installed} was installed on its host since then.",
        "Shut the VM down and start it again.")]  # fmt: skip
