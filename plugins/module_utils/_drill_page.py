# SPDX-License-Identifier: GPL-3.0-or-later
"""A report as one HTML page that needs nothing else: style and pictures are in it. Pure.

Every text is escaped. The page has no script and asks nobody for anything; a policy in it says so to the
browser too.
"""

from __future__ import annotations

import html
import typing as t

from ansible_collections.kvmft.core.plugins.module_utils import _drill_svg as svg
from ansible_collections.kvmft.core.plugins.module_utils._drill_style import CSS
from ansible_collections.kvmft.core.plugins.module_utils._drill_text import (
    duration,
    milliseconds,
    moment,
)

TITLES = {
    "planned": "Planned failover drill",
    "unplanned": "Unplanned failover drill",
    "test": "Test failover drill",
}
COLOURS = {"passed": "good", "failed": "bad", "aborted": "bad", "refused": "warn"}
FIGURES = (
    ("rto_ms", "Recovery time (RTO)", "longest time without an answer"),
    ("rpo_ms", "Recovery point (RPO)", "acknowledged work that is gone"),
    ("reprotect_ms", "Protected again", "from the order on"),
)
SOURCES = {"probe": "measured outside", "runtime": "by the hosts", "none": "not measured"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: dict[str, t.Any]) -> str:
    """The whole page."""
    title = f"{TITLES[report['mode']]} {report['id']}"
    parts = [_head(report), _tiles(report), _results(report), _pictures(report)]
    parts += [_vm(report, vm) for vm in report["vms"]]
    parts += [_versions(report), _measured(report)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_t(title)}: {_t(report['outcome'])}</title>\n<style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + f"\n<footer>{_t(title)}, written by kvmft.core {_t(report['controller']['collection'])}. "
        "The same as data is in the JSON file beside this page.</footer>\n</main></body></html>\n"
    )


def _head(report: dict[str, t.Any]) -> str:
    facts = [
        ("Begun (UTC)", report["started"].replace("T", " ").split(".")[0]),
        ("Took", milliseconds(report["duration_ms"])),
        ("VMs", str(len(report["vms"]))),
        ("Watched from", report["prober"] or "nowhere"),
    ]
    order = [each["name"] for each in report["groups"] if each["name"]]
    if len(order) > 1:
        facts.append(("Start order", " → ".join(order)))
    rows = "".join(f"<div><dt>{_t(name)}</dt><dd>{_t(value)}</dd></div>" for name, value in facts)
    remarks = "".join(f'<p class="lead warn">{_t(each)}</p>' for each in report["remarks"])
    return (
        f'<header class="card"><div class="brand">kvmft fault tolerance</div><h1>{_t(TITLES[report["mode"]])}</h1>'
        f'<p class="lead"><span class="verdict {COLOURS[report["outcome"]]}">{_t(report["outcome"])}</span>'
        f"{_t(report['reason'])}</p>{remarks}<dl>{rows}</dl></header>"
    )


def _tiles(report: dict[str, t.Any]) -> str:
    """The worst figure of all VMs, each with what it was measured against."""
    made = []
    for name, label, meaning in FIGURES:
        figures = [vm["results"][name] for vm in report["vms"] if vm["legs"]]
        if not figures:
            continue
        worst = max(figures, key=lambda each: float("inf") if each["value_ms"] is None else each["value_ms"])
        limits = [each for vm in report["vms"] for each in vm["objectives"] if each["name"] == name]
        verdict = f"<small>{meaning}; no objective</small>"
        if limits:
            met = all(each["met"] for each in limits)
            strictest = min(each["objective_ms"] for each in limits)
            verdict = (f'<span class="{"good" if met else "bad"}">{"objective met" if met else "objective missed"}'
                       f"</span> <small>({milliseconds(strictest)})</small>")  # fmt: skip
        made.append(f'<div class="card"><small>{label}</small><b>{_t(duration(worst))}</b>{verdict}</div>')
    return f'<section class="tiles" aria-label="Worst figures">{"".join(made)}</section>' if made else ""


def _results(report: dict[str, t.Any]) -> str:
    rows = []
    for vm in report["vms"]:
        cells = [f"<td{_any(vm['name'])}><b>{_t(vm['name'])}</b></td>",
                 f"<td{_any(vm['group'])}>{_t(vm['group'] or '–')}</td>", f"<td>{_way(vm)}</td>"]  # fmt: skip
        cells += [f'<td class="num">{_figure(vm, name)}</td>' for name, __, __ in FIGURES]
        after = vm["after"]
        colour = "good" if after["state"] == "protected" else "bad"
        cells.append(f'<td class="any"><span class="{colour} nowrap">{_t(after["state"] or "not seen")}</span>'
                     f"<br><small>{_where(after)}</small></td>")  # fmt: skip
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f'<th class="num">{each}</th>' for each in ("RTO", "RPO", "Protected again"))
    return (
        '<section class="card"><h2>Objectives and results</h2><div class="wide"><table class="results"><thead><tr>'
        f"<th>VM</th><th>Group</th><th>Way</th>{head}<th>Afterwards</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _way(vm: dict[str, t.Any]) -> str:
    if not vm["legs"]:
        return '<span class="warn">not begun</span>'
    made = []
    for leg in vm["legs"]:
        way = f'<span class="nowrap">{_t(leg["from"])} → {_t(leg["to"])}</span>'
        made.append(way if leg["outcome"] == "done" else f'{way} <span class="bad">{_t(leg["outcome"])}</span>')
    return "<br>".join(made)


def _figure(vm: dict[str, t.Any], name: str) -> str:
    figure = vm["results"][name]
    if not vm["legs"]:
        return "–"
    made = _t(duration(figure))
    limit = next((each for each in vm["objectives"] if each["name"] == name), None)
    if limit is not None:
        colour, said = ("good", "met") if limit["met"] else ("bad", "missed")
        made = f'<span class="{colour}">{made}</span>'
        return f"{made}<br><small>{said}: {milliseconds(limit['objective_ms'])}</small><br><small>{SOURCES[figure['source']]}</small>"
    return f"{made}<br><small>{SOURCES[figure['source']]}</small>"


def _where(status: dict[str, t.Any]) -> str:
    if not status["primary"]:
        return _t(status["reason"])
    second = f", secondary on {_t(status['secondary'])}" if status["secondary"] else ", no secondary"
    return f"on {_t(status['primary'])}{second}"


def _pictures(report: dict[str, t.Any]) -> str:
    if not any(vm["legs"] for vm in report["vms"]):
        return ""
    return (f'<section class="card"><h2>Timeline</h2>{svg.timeline(report)}{svg.legend(report)}</section>')


def _vm(report: dict[str, t.Any], vm: dict[str, t.Any]) -> str:
    made = [f"<h2>{_t(vm['name'])}</h2>"]
    for leg in vm["legs"]:
        made.append(f"<h3>{_t(leg['from'])} → {_t(leg['to'])}</h3>")
        if leg["reason"]:
            made.append(f'<p class="lead bad">{_t(leg["reason"])}</p>')
        if leg["running_ms"] is not None:
            made.append(svg.close_up(vm, leg))
        made.append(f"<p>{_leg_text(leg)}</p>")
    made += [_checks(vm), _receipts(vm)]
    if not vm["legs"]:
        made.insert(1, '<p class="lead soft">The drill stopped before this VM; it was not touched.</p>')
    return f'<section class="card vm">{"".join(made)}</section>'


def _leg_text(leg: dict[str, t.Any]) -> str:
    figures = leg["runtime"]
    told = [f"RTO {duration(leg['rto'])}: {leg['rto']['detail']}"]
    for name, text in (
        ("epoch", "it runs on from commit {}"),
        ("activation_ms", "loading the devices and starting it took {:g} ms"),
        ("outage_ms", "it stood still for at most {:g} ms by the clocks of the hosts"),
        ("carried_packets", "{} packets were carried over"),
    ):
        if figures.get(name) is not None:
            told.append(text.format(figures[name]))
    told += leg["network"]
    return _t("; ".join(told) + ".")


def _checks(vm: dict[str, t.Any]) -> str:
    rows = [
        f'<tr><td class="num">{moment(each["at_ms"])}</td><td>{_t(each["when"])}</td><td class="any">{_t(each["name"])}</td>'
        f'<td class="{"good" if each["ok"] else "bad"}">{"healthy" if each["ok"] else "failed"}</td>'
        f'<td class="num">{each["attempts"]}</td><td class="any">{_t(each["detail"])}</td></tr>'
        for each in vm["checks"]
    ]
    if not rows:
        return '<h3>Health checks</h3><p class="soft">None were given for this VM.</p>'
    return (
        '<h3>Health checks</h3><div class="wide"><table class="checks"><thead><tr><th class="num">At</th><th>When</th>'
        '<th>Check</th><th>Result</th><th class="num">Tries</th><th>Detail</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _receipts(vm: dict[str, t.Any]) -> str:
    """Who asked the arbiter for which generation, and what it said."""
    missing = ""
    if vm["events_missing_of"]:
        missing = (f'<p class="lead warn">{_t(", ".join(vm["events_missing_of"]))} did not answer, so that its events '
                   "are missing here.</p>")  # fmt: skip
    rows = []
    for each in vm["receipts"]:
        change = "" if each["base"] is None else f"{each['base']} → {each['asked']}"
        said = {True: '<span class="good">won</span>', False: '<span class="bad">not won</span>'}.get(each["won"], "")
        nonce = f"<code>{_t(each['nonce'])}</code>" if each["nonce"] else ""
        rows.append(
            f'<tr><td class="num">{moment(each["at_ms"])}</td><td class="nowrap">{_t(each["host"])}</td>'
            f'<td class="nowrap">{_t(each["event"].replace("_", " "))} {said}</td><td class="nowrap">{_t(change)}</td>'
            f'<td>{nonce}</td><td class="any">{_t(each["reason"])}</td></tr>'
        )
    if not rows:
        return f'<h3>Arbiter receipts</h3>{missing or "<p class=soft>No claim was made for this VM.</p>"}'
    return (
        f'<h3>Arbiter receipts</h3>{missing}<div class="wide"><table class="receipts"><thead><tr><th class="num">At</th>'
        "<th>Host</th><th>Receipt</th><th>Generation</th><th>Nonce</th><th>What was said</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _versions(report: dict[str, t.Any]) -> str:
    head = "".join(f"<th>{each}</th>" for each in
                   ("Host", "kvmft", "QEMU", "libvirt", "Kernel", "Python", "Accelerator", "Arbiter"))  # fmt: skip
    rows = []
    for host in report["hosts"]:
        cells = [host[name] for name in ("host", "version", "qemu", "libvirt", "kernel", "python", "accelerator")]
        arbiter = host["arbiter"]
        cells.append(arbiter["reason"] or arbiter["type"])
        rows.append("<tr>" + "".join(f"<td>{_t(each or '?')}</td>" for each in cells) + "</tr>")
    controller = report["controller"]
    return (
        f'<section class="card"><h2>Versions</h2><div class="wide"><table class="versions"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div><p><small>Controller: ansible-core {_t(controller['ansible'])}, "
        f"collection kvmft.core {_t(controller['collection'])}.</small></p></section>"
    )


def _measured(report: dict[str, t.Any]) -> str:
    told = []
    for vm in report["vms"]:
        probe = vm["probe"]
        if probe is None:
            told.append(f"{vm['name']} was not watched from outside: it has no address and no check that asks from there.")
            continue
        rhythm = f"every {probe['interval_ms']:g} ms, each try at most {probe['timeout_ms']:g} ms"
        answers = f"{probe['answers']} of {probe['attempts']} tries were answered"
        median = probe["answer_ms"]["p50"]
        speed = "" if median is None else f", half of them within {median:g} ms"
        told.append(f"{vm['name']}: {probe['name']} {rhythm}; {answers}{speed}.")
        if vm["legs"]:
            told.append(f"{vm['name']}, RPO: {vm['results']['rpo_ms']['detail']}")
    clocks = report["clocks"]
    off = clocks["hosts_ahead_ms"]
    told.append("The clocks of the hosts agree with that of the controller, as far as a request to them can tell." if not off
                else f"The clocks of the hosts were {milliseconds(abs(off))} {'ahead' if off > 0 else 'behind'}; "
                "their times are corrected here.")  # fmt: skip
    told.append("RTO is the longest time between two answers to the prober from the order to fail over until the VM was "
                "protected again. By the hosts means that a figure was not seen from outside.")  # fmt: skip
    items = "".join(f"<li>{_t(each)}</li>" for each in told)
    return f'<section class="card"><h2>How it was measured</h2><ul>{items}</ul></section>'


def _any(name: str) -> str:
    """Short names stay whole; long ones may be broken where the paper is too narrow."""
    return ' class="any"' if len(name) > 20 else ""


def _t(text: t.Any) -> str:
    return html.escape(str("" if text is None else text))
