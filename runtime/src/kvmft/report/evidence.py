"""Everything that `kvmft bench` measures of one VM that is in use. Nothing of it changes the VM or its protection,
but for the two switchovers, which are made on request.

What goes into the result is named here field by field: an agent that says more, of a newer version, adds nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvmft.errors import KvmftError
from kvmft.report import bounds, hostfacts, pings, switchover
from kvmft.report.epochs import Epochs
from kvmft.report.figures import summary

FORMAT = 1
"""Rises when a field's meaning changes."""
POLL = 1.0
"""Seconds between two questions for new epochs; a worker keeps the last 2000."""
PING_SECONDS, LOG_SECONDS = 20.0, 5.0
COPIES = 50
MOST_PAGES = 25_000
"""Pages (100 MiB) that are copied at most: the VMs need the host's memory."""
NICE = 10
"""Of the cipher, which takes a core for two seconds: the VMs' work goes first."""
EVENTS = 2000
STATUS = (
    "vm", "state", "reason", "role", "primary", "secondary", "allowed_hosts", "generation", "accelerator", "options",
    "interval_ms", "pause_ms", "commit_ms", "pages_per_epoch", "log_bandwidth_bytes_s", "guest_clock_loss_ppm",
    "objective_missed", "sync", "unprotected_seconds", "unprotected_seconds_month",
)  # fmt: skip
HOST = ("host", "version", "qemu", "libvirt", "python", "accelerator")
EVENT = ("seq", "time", "host", "vm", "event", "reason", "data")
PRIVATE = re.compile(r"nonce|session|token|secret|password|key|cert", re.IGNORECASE)
"""Names of figures of events that are left out."""

Ask = Callable[..., Any]
"""`ask(op, **args)`: a request to the agent; KvmftError when it refuses."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for beside the epochs; `ping` is an address and a port or None. `switch`: move the VM to its
    secondary's host and back."""

    vm: str
    seconds: float = 60.0
    ping: tuple[str, int | None] | None = None
    log: bool = False
    switch: bool = False


def measure(ask: Ask, wanted: Wanted, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure; the result as it is written down. `say` is told what goes on. Takes about `seconds`, and what
    the rest that is wanted takes. `after` is of before the switchovers. KvmftError when there is nothing to measure."""
    status = ask("vm_status", vm=wanted.vm)
    protected = status["state"] == "protected"
    if status["role"] == "secondary":
        raise KvmftError("runs_elsewhere", f"VM {wanted.vm} runs on {status['primary']}; its secondary is here.",
                         f"Measure on {status['primary']}.")  # fmt: skip
    if not protected and wanted.ping is None and not wanted.log:
        raise KvmftError("not_protected", f"VM {wanted.vm} is {status['state']} ({status['reason']}).",
                         "Wait for `protected`; unprotected, only --ping and --log can be measured.")  # fmt: skip
    begun = time.time()
    epochs = None
    if protected:
        say(f"its epochs, for {wanted.seconds:.0f} s")
        epochs = _epochs(ask, wanted)
    ping = log = None
    if (target := wanted.ping) is not None:
        seconds = min(wanted.seconds, PING_SECONDS)
        say(f"how long it takes to answer, for {seconds:.0f} s")
        ping = _or_reason(lambda: pings.ping(*target, seconds))
    if wanted.log:
        say(f"the FT network, for {LOG_SECONDS:.0f} s")
        peer = status["secondary"] or _only_peer(ask)
        log = _or_reason(lambda: ask("log_speed", peer=peer, seconds=LOG_SECONDS))
    after, switch = ask("vm_status", vm=wanted.vm), None
    if wanted.switch and protected:
        say("a planned switchover and the one back")
        switch = switchover.there_and_back(ask, wanted.vm)
    say("what this host can do at best")
    events = ask("events", vm=wanted.vm, limit=EVENTS)
    return {
        "format": FORMAT, "vm": wanted.vm, "begun": round(begun, 3), "seconds": wanted.seconds,
        "host": _some(ask("host_info"), HOST) | hostfacts.facts(),
        "before": _some(status, STATUS), "after": _some(after, STATUS),
        "epochs": epochs, "ping": ping, "log": log, "switch": switch, **_bounds(epochs), "events": [_event(each) for each in events],
    }  # fmt: skip


def _epochs(ask: Ask, wanted: Wanted) -> dict[str, Any]:
    found = Epochs()
    until = time.monotonic() + wanted.seconds
    while True:
        try:
            found.take(ask("vm_epochs", vm=wanted.vm, since=found.since))
        except KvmftError as error:
            if error.code == "unknown_op":
                raise
            found.interrupted(str(error))
        left = until - time.monotonic()
        if left <= 0:
            return found.to_dict()
        time.sleep(min(POLL, left))


def _bounds(epochs: dict[str, Any] | None) -> dict[str, Any]:
    """The cipher, and copying as many pages as the median epoch has."""
    result: dict[str, Any] = {"cipher": _or_reason(lambda: {"bytes_s": bounds.cipher(NICE)}), "memcpy": None}
    median = summary(epochs["pages"])["p50"] if epochs else None
    if median:
        pages = min(MOST_PAGES, max(1, round(median)))
        result["memcpy"] = {"pages": pages, "ms": [round(each, 4) for each in bounds.memcpy(pages, COPIES)]}
    return result


def _or_reason(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is measured, or why it is not: the rest is worth having without it."""
    try:
        return call()
    except KvmftError as error:
        return {"error": str(error)}


def _only_peer(ask: Ask) -> str:
    return min(ask("host_info")["peers"], default="")


def _some(value: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value.get(name) for name in names}


def _event(event: dict[str, Any]) -> dict[str, Any]:
    found = _some(event, EVENT)
    found["data"] = {key: value for key, value in (found["data"] or {}).items() if not PRIVATE.search(key)}
    return found
