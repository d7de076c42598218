"""`kvmft hook`: libvirt asks before it starts a VM; what is of the past never starts (I5).

libvirt calls /etc/libvirt/hooks/qemu.d/kvmft with the VM's name, an operation and a sub-operation. Only
files are read here: a hook that called libvirt would wait for itself.
"""

from __future__ import annotations

import os
import sys

from kvmft.agent.store import ROOT, Store
from kvmft.errors import KvmftError

TOKENS = "/run/kvmft/starting"


def refusal(vm: str, operation: str, root: str = ROOT, tokens: str = TOKENS) -> str | None:
    """Why libvirt may not do this, or None."""
    if operation not in ("prepare", "start", "restore", "migrate"):
        return None
    if not os.path.isdir(root):
        return None
    try:
        state = Store(root).load(vm)
    except KvmftError as error:
        return str(error)
    if state is None:
        return None
    if state.role == "secondary" and os.path.exists(os.path.join(tokens, vm)):
        return None
    if state.role == "primary" and state.may_start:
        return None
    if state.role == "primary":
        return (
            f"VM {vm} was protected and its secondary on {state.peer} may have taken over. It is "
            f"not started here; ask `kvmft status {vm}` on {state.peer}."
        )
    return (
        f"What this host has of VM {vm} is a {state.role} replica. The VM runs, or ran last, on "
        f"{state.peer}; it is not started here."
    )


def main(arguments: list[str]) -> int:
    """Exit code 1, with a sentence for libvirt's log, when the VM must not start."""
    if len(arguments) < 2:
        return 0
    reason = refusal(arguments[0], arguments[1])
    if reason is None:
        return 0
    print(reason, file=sys.stderr)
    return 1
