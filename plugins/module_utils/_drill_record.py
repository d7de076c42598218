# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a drill as data, from what the playbook, the prober and the hosts said. Pure.

Its form is docs/drill-report.schema.json. Only fields that are named here get into it: what a check
sends, and any header, argument or variable, does not.
"""

from __future__ import annotations

import datetime
import re
import typing as t

from ansible_collections.kvmft.core.plugins.module_utils import _drill_timeline as timeline
from ansible_collections.kvmft.core.plugins.module_utils._drill_plan import OBJECTIVES

SCHEMA = 1
"""Rises when a field changes its meaning or goes; new fields may come without it."""
KIND = "kvmft-drill-report"
LEAD = 0.5  # seconds before an order in which a silence of it may have begun, and clocks differ
OF_HOST = ("host", "version", "qemu", "libvirt", "kernel", "python", "accelerator")
OF_FAILOVER = ("kind", "epoch", "activation_ms", "since_loss_ms", "outage_ms", "carried_packets")
OF_CHECK = ("when", "name", "type", "ok", "attempts", "seconds", "detail")
OF_STATUS = ("state", "reason", "primary", "secondary", "generation")
OF_PROBE = ("type", "name", "interval_ms", "timeout_ms")
_LOGIN = re.compile(r"//[^/\s@]*@")
_SECRET = re.compile(r"(?i)\b(\w*(?:passw(?:or)?d|token|secret|authorization)\w*)(\s*[=:]\s*)(\S+(?: \S+)?)")
BY_RUNTIME = {
    "planned": "Not measured: the runtime hands the VM over after a last commit, so that nothing is lost.",
    "unplanned": "Not measured: output leaves a host only after the commit that it belongs to, so that nothing "
    "acknowledged is lost. What the guest did after its last commit is gone, and nobody outside has seen it.",
    "test": "Not measured: a test failover takes nothing from the VM.",
}


def report(raw: dict[str, t.Any]) -> dict[str, t.Any]:
    """The whole report. `raw` is the option `drill` of the module drill_report."""
    begin, end = float(raw["started"]), float(raw["ended"])
    legs = list(raw.get("legs") or [])
    vms = [_vm(step, raw, [leg for leg in legs if leg["vm"] == step["name"]]) for step in raw["steps"]]
    outcome, reason = _outcome(vms, legs, clean(raw.get("stopped")))
    clocks = raw.get("clocks") or {}
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "id": str(raw["id"]),
        "mode": raw["mode"],
        "started": _stamp(begin),
        "ended": _stamp(end),
        "duration_ms": _ms(end - begin),
        "outcome": outcome,
        "reason": reason,
        "remarks": [clean(each) for each in raw.get("remarks") or []],
        "groups": _groups(raw["steps"]),
        "vms": vms,
        "hosts": [_host(each) for each in raw.get("hosts") or []],
        "controller": {"ansible": str(raw.get("ansible") or ""), "collection": str(raw.get("collection") or "")},
        "clocks": {"hosts_ahead_ms": _ms(ahead(clocks.get("hosts"))), "prober_ahead_ms": _ms(ahead(clocks.get("prober")))},
        "prober": str(raw.get("prober") or ""),
    }  # fmt: skip


def ahead(seen: t.Any) -> float:
    """By how many seconds a clock is ahead that showed `now` between `sent` and `received`. 0 when the
    way there and back explains all of it."""
    if not seen or seen.get("now") is None:
        return 0.0
    low, high = seen["now"] - seen["received"], seen["now"] - seen["sent"]
    return 0.0 if low <= 0.0 <= high else (low + high) / 2


def clean(text: t.Any) -> str:
    """Without logins in addresses, and without what follows a word such as password."""
    return _SECRET.sub(r"\1\2***", _LOGIN.sub("//", str(text or "")))


def _vm(step: dict[str, t.Any], raw: dict[str, t.Any], legs: list[dict[str, t.Any]]) -> dict[str, t.Any]:
    name, begin, end = step["name"], float(raw["started"]), float(raw["ended"])
    clocks = raw.get("clocks") or {}
    events = _moved((raw.get("events") or {}).get(name), ahead(clocks.get("hosts")))
    seen = _seen((raw.get("probes") or {}).get(name), ahead(clocks.get("prober")))
    before = (raw.get("before") or {}).get(name) or {}
    told = [_leg(leg, number, legs, raw, events, seen, begin, end) for number, leg in enumerate(legs, 1)]
    home = str(before.get("primary") or "")
    if events or not legs:
        spans = timeline.segments(events, begin, end, home)
    else:
        spans = timeline.observed(_marks(legs), begin, end, home)
    results = {
        "rto_ms": _worst([leg["rto"] for leg in told]),
        "rpo_ms": _rpo(seen, raw["mode"], told),
        "reprotect_ms": _worst([leg["reprotect"] for leg in told]),
    }
    return {
        "name": name,
        "group": step["group"],
        "before": _some(before, OF_STATUS),
        "after": _some((raw.get("final") or {}).get(name) or {}, OF_STATUS),
        "legs": told,
        "results": results,
        "objectives": [
            _judged(which, float(limit), results[which]) for which, limit in step["objectives"].items()
        ],
        "segments": [
            {"state": each["state"], "host": each["host"], "from_ms": _ms(each["from"] - begin),
             "to_ms": _ms(each["to"] - begin)} for each in spans
        ],
        "probe": _probe(step, seen, begin),
        "checks": [_check(each, begin) for each in (raw.get("checks") or {}).get(name) or []],
        "receipts": [
            {"at_ms": _ms(each.pop("at") - begin), **each, "reason": clean(each["reason"])}
            for each in timeline.receipts(events, begin, end)
        ],
        "events_missing_of": sorted(
            host for host, each in ((raw.get("events") or {}).get(name) or {}).get("hosts", {}).items()
            if not each.get("ok")
        ),
    }  # fmt: skip


def _leg(
    leg: dict[str, t.Any],
    number: int,
    legs: list[dict[str, t.Any]],
    raw: dict[str, t.Any],
    events: list[dict[str, t.Any]],
    seen: dict[str, t.Any] | None,
    begin: float,
    end: float,
) -> dict[str, t.Any]:
    """One way, there or back. Its time lasts until the next one's order, or the drill's end."""
    ordered = float(leg["ordered"])
    until = float(legs[number]["ordered"]) if number < len(legs) else end
    running = timeline.moment(events, "activated", ordered - LEAD, until, host=leg["to"])
    protected = None
    if running is not None:
        protected = timeline.moment(events, "state", running, until, state="protected", host=leg["to"])
    if running is None and leg.get("running"):
        running = float(leg["running"])
    if protected is None and leg.get("protected"):
        protected = float(leg["protected"])
    figures = _some(leg.get("failover") or {}, OF_FAILOVER)
    return {
        "number": number,
        "back": bool(leg.get("back")),
        "from": leg["from"],
        "to": leg["to"],
        "outcome": leg["outcome"],
        "reason": clean(leg.get("reason")),
        "ordered_ms": _ms(ordered - begin),
        "running_ms": None if running is None else _ms(running - begin),
        "protected_ms": None if protected is None else _ms(protected - begin),
        # A silence that begins right at the next order is the next one's.
        "rto": _rto(seen, ordered, running, until - LEAD if number < len(legs) else until, figures),
        "reprotect": _figure(None if protected is None else protected - ordered, "runtime",
                             "from the order until it was protected again"),
        "runtime": figures,
        "secondary": leg.get("secondary") or "",
        "generation": leg.get("generation"),
        "network": [clean(each) for each in leg.get("network") or []],
    }  # fmt: skip


def _rto(
    seen: dict[str, t.Any] | None,
    ordered: float,
    running: float | None,
    until: float,
    figures: dict[str, t.Any],
) -> dict[str, t.Any]:
    """The longest time without an answer from the order on; else what the hosts say."""
    if seen is not None and seen["first"] is not None and seen["first"] <= ordered:
        longest: list[float | None] | None = None
        for silence in seen["silences"]:
            a, b = silence[0], silence[1]
            inside = a < until and (b is None or b > ordered)
            if inside and b is None:
                return _figure(None, "probe", "it did not answer again before the drill's end")
            if inside and (longest is None or b - a > longest[1] - longest[0]):
                longest = silence
        if longest is None:
            made = _figure(seen["floor"], "probe", "no silence was longer than the prober can tell")
            made["at_most"] = True
            return made
        return _figure(longest[1] - longest[0], "probe", "longest time between two answers, from outside")
    for name, detail in (("outage_ms", "from the order to a running VM, by the hosts' events; not measured from outside"),
                         ("since_loss_ms", "from the loss to a running VM, by the hosts' events; not measured from outside")):  # fmt: skip
        if figures.get(name) is not None:
            return _figure(float(figures[name]) / 1000, "runtime", detail)
    took = None if running is None else running - ordered
    return _figure(took, "runtime", "from the order to a running VM, by the hosts' events; not measured from outside")


def _rpo(seen: dict[str, t.Any] | None, mode: str, legs: list[dict[str, t.Any]]) -> dict[str, t.Any]:
    found = (seen or {}).get("markers")
    if found and found["read_back"]:
        made = _figure(found["lost_ms"] / 1000, "probe",
                       f"{found['acknowledged']} markers acknowledged, {found['lost']} lost"
                       + (f", {found['unknown']} could not be read back" if found["unknown"] else "") + ".")  # fmt: skip
        if found["unknown"]:
            made["value_ms"] = None
        return made
    if not any(leg["outcome"] == "done" for leg in legs):
        return _figure(None, "none", "no failover was completed")
    return _figure(0.0, "runtime", BY_RUNTIME[mode])


def _worst(figures: list[dict[str, t.Any]]) -> dict[str, t.Any]:
    """Of several ways the longest; one that never ended is longer than all."""
    if not figures:
        return _figure(None, "none", "it was not begun")
    return max(figures, key=lambda each: float("inf") if each["value_ms"] is None else each["value_ms"])


def _figure(seconds: float | None, source: str, detail: str) -> dict[str, t.Any]:
    value = None if seconds is None else _ms(seconds)
    return {"value_ms": value, "at_most": False, "source": source, "detail": detail}


def _judged(name: str, limit: float, figure: dict[str, t.Any]) -> dict[str, t.Any]:
    """Objective against result. A result that is not known does not meet any objective."""
    value = figure["value_ms"]
    return {
        "name": name,
        "meaning": OBJECTIVES[name],
        "objective_ms": limit,
        "result_ms": value,
        "met": value is not None and value <= limit,
        "source": figure["source"],
    }


def _outcome(
    vms: list[dict[str, t.Any]], legs: list[dict[str, t.Any]], stopped: str
) -> tuple[str, str]:
    """`refused`: nothing was touched; `aborted`: stopped on the way; else `failed` or `passed`."""
    loose = [vm for vm in vms if vm["after"].get("state") != "protected"]
    left = " ".join(
        f"VM {vm['name']} is {vm['after'].get('state') or 'not seen on any host'}, not protected"
        + (f": {vm['after']['reason']}." if vm["after"].get("reason") else ".")
        for vm in loose
    )
    if stopped:
        rest = left or "All VMs of the drill are protected."
        return ("aborted" if legs else "refused"), f"{stopped} {rest}" if legs else stopped
    missed = [
        f"{vm['name']}: {each['name']} {_said(each['result_ms'])}, the objective is {each['objective_ms']:g} ms."
        for vm in vms for each in vm["objectives"] if not each["met"]
    ]  # fmt: skip
    if loose or missed:
        return "failed", " ".join([*([left] if left else []), *missed])
    return "passed", "Every VM was failed over in its order, answered its checks and is protected."


def _said(value: float | None) -> str:
    return "is not known" if value is None else f"was {value:g} ms"


def _groups(steps: list[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    groups: list[dict[str, t.Any]] = []
    for step in steps:
        if not groups or groups[-1]["name"] != step["group"]:
            groups.append({"name": step["group"], "vms": []})
        groups[-1]["vms"].append(step["name"])
    return groups


def _host(each: dict[str, t.Any]) -> dict[str, t.Any]:
    arbiter = each.get("arbiter") or {}
    return {
        **_some(each, OF_HOST),
        "arbiter": {"type": arbiter.get("type"), "ok": arbiter.get("ok"), "reason": clean(arbiter.get("reason"))},
    }


def _probe(step: dict[str, t.Any], seen: dict[str, t.Any] | None, begin: float) -> dict[str, t.Any] | None:
    if step.get("probe") is None:
        return None
    made: dict[str, t.Any] = {name: step["probe"].get(name) for name in OF_PROBE}
    made["name"] = clean(made["name"])
    seen = seen or {"attempts": 0, "answers": 0, "failure": "", "silences": [], "answer_ms": {}}
    made.update({
        "attempts": seen["attempts"],
        "answers": seen["answers"],
        "failure": clean(seen["failure"]),
        "answer_ms": {name: seen["answer_ms"].get(name) for name in ("p50", "p99")},
        "silences": [
            {"from_ms": _ms(a - begin), "to_ms": None if b is None else _ms(b - begin)}
            for a, b in seen["silences"]
        ],
        "markers": seen.get("markers"),
        "connections_broken": seen.get("broken"),
    })  # fmt: skip
    return made


def _check(each: dict[str, t.Any], begin: float) -> dict[str, t.Any]:
    made = _some(each, OF_CHECK)
    made["name"], made["detail"] = clean(made["name"]), clean(made["detail"])
    made["at_ms"] = _ms(float(each["at"]) - begin)
    return made


def _moved(found: dict[str, t.Any] | None, by: float) -> list[dict[str, t.Any]]:
    """The events, with their times on the controller's clock."""
    return [
        {**each, "at": float(each.get("at", each.get("time", 0.0))) - by}
        for each in (found or {}).get("events") or []
    ]


def _seen(found: dict[str, t.Any] | None, by: float) -> dict[str, t.Any] | None:
    if not found:
        return None
    made = dict(found)
    for name in ("first", "last", "until"):
        made[name] = None if found.get(name) is None else found[name] - by
    made["silences"] = [[a - by, None if b is None else b - by] for a, b in found["silences"]]
    return made


def _marks(legs: list[dict[str, t.Any]]) -> list[tuple[float, str, str]]:
    marks = []
    for leg in legs:
        marks.append((float(leg["ordered"]), "failing_over", leg["from"]))
        if leg.get("running"):
            marks.append((float(leg["running"]), "running", leg["to"]))
        if leg.get("protected"):
            marks.append((float(leg["protected"]), "protected", leg["to"]))
    return marks


def _some(given: dict[str, t.Any], names: tuple[str, ...]) -> dict[str, t.Any]:
    made = {name: given.get(name) for name in names}
    if "reason" in made:
        made["reason"] = clean(made["reason"])
    return made


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _stamp(at: float) -> str:
    stamp = datetime.datetime.fromtimestamp(at, tz=datetime.timezone.utc)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
