# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be asked of the agent so that a VM becomes as desired. Pure: no socket, no clock."""

from __future__ import annotations

import dataclasses
import typing as t

OPTIONS = ("interval_ms", "min_interval_ms", "detection_ms", "hold_bound_ms", "agent_grace_ms")
DESIRED = ("enabled", "suspended", "disabled")


@dataclasses.dataclass(frozen=True)
class Plan:
    """`requests` are (op, args) in order; `before` and `after` are for the diff."""

    requests: tuple[tuple[str, dict[str, t.Any]], ...]
    before: dict[str, t.Any]
    after: dict[str, t.Any]

    @property
    def changed(self) -> bool:
        """True when there is anything to ask."""
        return bool(self.requests)


def plan(
    status: dict[str, t.Any],
    state: str,
    secondary: str | None = None,
    options: dict[str, float] | None = None,
) -> Plan:
    """From the agent's `status` of the VM to `state`; None for what is left as it is.

    ValueError for a combination that cannot be had.
    """
    if state not in DESIRED:
        raise ValueError("state is {!r}; it must be one of {}".format(state, ", ".join(DESIRED)))
    desired = status.get("desired") or "disabled"
    have = dict(status.get("options") or {})
    before: dict[str, t.Any] = {"state": desired}
    after: dict[str, t.Any] = {"state": state}
    requests: list[tuple[str, dict[str, t.Any]]] = []
    wanted = {name: value for name, value in (options or {}).items() if value is not None}
    if state == "enabled":
        # Options that are not given keep their value: the agent takes the whole set.
        merged = {**have, **wanted}
        before.update(secondary=status.get("secondary"), options=have)
        after.update(secondary=secondary or status.get("secondary"), options=merged)
        moves = bool(secondary) and status.get("secondary") not in (None, secondary)
        if moves and desired != "disabled":
            raise ValueError(
                "the secondary is on {} already and this version does not move it to {}; disable the "
                "VM's fault tolerance first".format(status.get("secondary"), secondary)
            )
        if desired != "enabled" or merged != have:
            op = "vm_resume" if desired == "suspended" else "vm_enable"
            requests.append((op, {"secondary": secondary, "options": merged}))
    elif state == "suspended" and desired == "disabled":
        raise ValueError("fault tolerance is not on, so that it cannot be suspended; enable it first")
    elif desired != state:
        requests.append(("vm_suspend" if state == "suspended" else "vm_disable", {}))
    return Plan(tuple(requests), before, after)


def reached(status: dict[str, t.Any], state: str) -> bool:
    """True when a VM with this `status` is in the state that `state` asks for."""
    return status.get("state") == {"enabled": "protected"}.get(state, state)


def hopeless(status: dict[str, t.Any]) -> bool:
    """True when no waiting helps: only a person can go on from here."""
    return status.get("state") == "fenced"
