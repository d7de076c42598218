"""The status of one VM that people and modules see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmft.agent.service import Agent
    from kvmft.agent.vm import ManagedVm

FIGURES = (
    "generation", "epoch", "epochs", "interval_ms", "last_commit_age_ms", "sync_percent",
    "pause_ms", "pages_per_epoch", "log_bandwidth_bytes_s", "held_bytes", "guest_clock_loss_ppm",
    "sync", "commit_ms", "objective_missed", "beacons_missed",
)  # fmt: skip


def status_of(agent: Agent, vm: ManagedVm, running: bool) -> dict[str, Any]:
    """What is known of `vm` on the host of `agent`; `running` says whether it runs there now."""
    state, host = vm.state, agent.config.host
    shown = vm.shown
    if vm.worker is None and state.desired == "suspended":
        shown = ("suspended", "suspended on request")
    primary = host if state.role == "primary" else state.peer
    # The same list on every host: those that may run the VM or have its standby.
    allowed = sorted({*state.allowed, host}) if state.allowed else []
    return {
        "vm": state.vm, "uuid": state.uuid, "state": shown[0], "reason": shown[1],
        "desired": state.desired, "role": state.role, "primary": primary,
        "secondary": state.peer if state.role == "primary" else host,
        **{name: vm.figures.get(name) for name in FIGURES},
        "unprotected_seconds": round(vm.exposure.seconds, 1),
        "unprotected_seconds_month": round(vm.exposure.this_month, 1),
        "accelerator": vm.accelerator, "running": running,
        "switched_off": vm.is_off and not running, "options": state.options,
        "allowed_hosts": allowed,
        "arbiter": {"type": agent.config.arbiter["type"], "ok": agent.arbiter_ok},
    }  # fmt: skip
