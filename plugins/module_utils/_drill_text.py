# SPDX-License-Identifier: GPL-3.0-or-later
"""A report for a terminal: a few lines, one per way of each VM and one per objective. Pure."""

from __future__ import annotations

import typing as t


def lines(report: dict[str, t.Any]) -> list[str]:
    """At most about 120 characters each."""
    made = [f"{report['mode']} drill {report['id']}: {report['outcome']}. {report['reason']}"]
    for vm in report["vms"]:
        made += [f"{vm['name']}: {_way(report['mode'], leg)}" for leg in vm["legs"]]
        for name, label in (("rto_ms", "RTO"), ("rpo_ms", "RPO")):
            figure = vm["results"][name]
            if vm["legs"]:
                made.append(f"{vm['name']}: {label} {duration(figure)} ({figure['source']}: {figure['detail']})")
        for each in vm["objectives"] if vm["legs"] else ():
            made.append(
                f"{vm['name']}: objective {each['name']} {each['objective_ms']:g}: "
                f"{'met' if each['met'] else 'MISSED'}, {_known(each['result_ms'])}"
            )
    return made + [f"Remark: {each}" for each in report["remarks"]]


def _way(mode: str, leg: dict[str, t.Any]) -> str:
    if leg["outcome"] != "done":
        return f"{leg['from']} -> {leg['to']}: {leg['outcome']}. {leg['reason']}"
    figures = leg["runtime"]
    if mode == "planned":
        still = "?" if figures["outage_ms"] is None else f"{figures['outage_ms']:g}"
        carried = "?" if figures["carried_packets"] is None else figures["carried_packets"]
        return (
            f"{leg['from']} -> {leg['to']}, stood still for at most {still} ms, {carried} packets "
            f"carried over, protected again by {leg['secondary']}, generation {leg['generation']}"
        )
    if mode == "test":
        return f"its secondary on {leg['to']} was tested; it runs on {leg['from']}"
    return (
        f"ran on {leg['from']}, runs on {leg['to']} now and is protected by {leg['secondary']}, "
        f"generation {leg['generation']}"
    )


def duration(figure: dict[str, t.Any]) -> str:
    """`250 ms`, `12.3 s`, `at most 100 ms`, or `not known`."""
    if figure["value_ms"] is None:
        return "not known"
    return ("at most " if figure["at_most"] else "") + milliseconds(figure["value_ms"])


def milliseconds(value: float) -> str:
    """A time that people read: ms below a second, seconds below 2 min, then minutes."""
    if abs(value) < 1000:
        return f"{value:.0f} ms" if abs(value) >= 100 else f"{round(value, 1):g} ms"
    if abs(value) < 120_000:
        return f"{round(value / 1000, 2 if abs(value) < 10_000 else 1):g} s"
    return f"{round(value / 60_000, 1):g} min"


def moment(value: float) -> str:
    """A point in time in seconds since the drill's begin, to the millisecond."""
    return f"{value / 1000:.3f} s"


def _known(value: float | None) -> str:
    return "not known" if value is None else milliseconds(value)
