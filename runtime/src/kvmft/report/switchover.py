"""A planned switchover and the one back, as the hosts' events tell them. Only on request: it moves the VM twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from kvmft.errors import KvmftError

PROTECTED_WITHIN = 180.0
"""Seconds for the pair to be whole again after a switchover."""
LOOK = 0.5
EVENTS = 1000


def there_and_back(ask: Callable[..., Any], vm: str) -> dict[str, Any]:
    """Switch the protected `vm` to its secondary's host and, once it is protected again, back.

    `switches` has source, target, `outage_ms` from the order to the moment at which it ran there, and `protected_s`.
    `error` says why there are not two; the VM then stays where it is.
    """
    switches: list[dict[str, Any]] = []
    try:
        switches.append(_once(ask, vm))
        switches.append(_once(ask, vm))
    except KvmftError as error:
        return {"switches": switches, "error": str(error)}
    return {"switches": switches}


def _once(ask: Callable[..., Any], vm: str) -> dict[str, Any]:
    status = ask("vm_status", vm=vm)
    source, target = status["primary"], status["secondary"]
    before = _newest(ask("events_cluster", vm=vm, limit=EVENTS)["events"])
    begun = time.monotonic()
    ask("vm_failover", vm=vm, mode="planned", target=target)
    while not (status["state"] == "protected" and status["primary"] == target):
        if time.monotonic() > begun + PROTECTED_WITHIN:
            raise KvmftError("switch_unprotected", f"VM {vm} is not protected {PROTECTED_WITHIN:.0f} s after it went to "
                             f"{target}: {status['state']} ({status['reason']}).", "See `kvmft status` there.")  # fmt: skip
        time.sleep(LOOK)
        status = ask("vm_status", vm=vm)
    taken = time.monotonic() - begun
    events = ask("events_cluster", vm=vm, limit=EVENTS)["events"]
    new = [each for each in events if each["seq"] > before.get(each["host"], 0)]
    return {"source": source, "target": target, "outage_ms": outage(new, source, target), "protected_s": round(taken, 2)}


def _newest(events: Iterable[dict[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in events:
        found[each["host"]] = max(found.get(each["host"], 0), each["seq"])
    return found


def outage(events: Iterable[dict[str, Any]], source: str, target: str) -> float | None:
    """Milliseconds from the order on `source` to the VM's first moment on `target`; None when the events of all
    hosts in one order do not have both. Clocks of two hosts are known to 5 ms at best (see agent/history)."""
    ordered = None
    for each in events:
        if each["host"] == source and each["event"] == "state" and each["data"].get("state") == "failing_over":
            ordered = each["at"]
        if each["host"] == target and each["event"] == "activated" and ordered is not None:
            return round((each["at"] - ordered) * 1000, 1)
    return None
