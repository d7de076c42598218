# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures of a report: the drill's timeline, and a close-up of each failover. Pure.

Every bar is drawn to scale: its place and width follow from its times alone, so that a short state is
a thin line. Colours are classes of the page's style sheet.
"""

from __future__ import annotations

import html
import typing as t

from ansible_collections.kvmft.core.plugins.module_utils._drill_text import milliseconds

WIDTH = 940.0
LEFT, RIGHT = 150.0, 14.0
NAMES = {
    "protected": "protected",
    "failing_over": "failing over",
    "running": "running, not protected",
    "off": "protection off",
}
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 15_000, 30_000, 60_000, 120_000,
         300_000, 600_000, 1_200_000, 1_800_000, 3_600_000)  # fmt: skip
"""Distances in milliseconds that two marks of an axis may have."""


class Scale:
    """From milliseconds since the drill's begin to a place in the picture."""

    def __init__(self, begin: float, end: float) -> None:
        self.begin, self.end = begin, max(end, begin + 1.0)
        self._factor = (WIDTH - LEFT - RIGHT) / (self.end - self.begin)

    def x(self, at: float) -> float:
        """The place of a time; outside of the picture it is at its edge."""
        return round(LEFT + (min(max(at, self.begin), self.end) - self.begin) * self._factor, 2)

    def marks(self) -> list[float]:
        """Times of the axis, at most 9 of them."""
        span = self.end - self.begin
        step = next((each for each in STEPS if span / each <= 8), span / 8)
        first = -(-self.begin // step) * step
        return [first + number * step for number in range(int((self.end - first) // step) + 1)]


def timeline(report: dict[str, t.Any]) -> str:
    """All VMs over the whole drill, in their start order."""
    scale = Scale(0.0, report["duration_ms"])
    lanes, y = [], 30.0
    group = None
    for vm in report["vms"]:
        if vm["group"] and vm["group"] != group:
            group = vm["group"]
            lanes.append(f'<text class="group" x="0" y="{y + 9:g}">{_text(group)}</text>')
            y += 18
        lanes.append(_label(vm["name"], y + 13))
        lanes += _bars(vm["segments"], scale, y, 18)
        if vm["probe"]:
            lanes += _answers(vm, scale, y + 21, 5)
        for leg in vm["legs"]:
            lanes.append(_pointer(scale.x(leg["ordered_ms"]), y, f"ordered: {leg['from']} to {leg['to']}"))
        y += 38
    return _svg("timeline", "Timeline of the drill", y + 4, [*_axis(scale, y - 4), *lanes])


def close_up(vm: dict[str, t.Any], leg: dict[str, t.Any]) -> str:
    """One failover from shortly before its order until shortly after the VM answered again."""
    begin = leg["ordered_ms"]
    ends = [leg["running_ms"] or begin]
    silences = (vm["probe"] or {}).get("silences") or []
    near = [each for each in silences if each["to_ms"] is not None
            and each["to_ms"] >= begin - 500 and each["from_ms"] <= ends[0] + 1000]  # fmt: skip
    ends += [each["to_ms"] for each in near]
    first = min([begin, *(each["from_ms"] for each in near)])
    margin = max((max(ends) - first) * 0.35, 100.0)
    scale = Scale(first - margin, max(ends) + margin)
    made = [_label("state", 43), *_bars(vm["segments"], scale, 30, 18)]
    height = 56.0
    if vm["probe"]:
        made += [_label("answers", 68), *_answers(vm, scale, 57, 15, label=True)]
        height = 78.0
    made.append(_pointer(scale.x(begin), 30, "ordered"))
    if leg["running_ms"] is not None:
        made.append(_pointer(scale.x(leg["running_ms"]), 30, "running"))
    title = f"{vm['name']}: {leg['from']} to {leg['to']}, close-up"
    return _svg("close-up", title, height + 6, [*_axis(scale, height - 2, begin), *made])


def legend(report: dict[str, t.Any]) -> str:
    """What the colours mean; only those that are in the picture."""
    used = {each["state"] for vm in report["vms"] for each in vm["segments"]}
    items = [
        f'<li><svg class="key" viewBox="0 0 22 12" aria-hidden="true"><rect class="seg {state}" '
        f'width="22" height="12" rx="2"/></svg>{NAMES[state]}</li>'
        for state in NAMES if state in used
    ]  # fmt: skip
    if any(vm["probe"] for vm in report["vms"]):
        items.append('<li><svg class="key" viewBox="0 0 22 12" aria-hidden="true"><rect class="answers" '
                     'y="3.5" width="22" height="5"/></svg>answers outside</li>')  # fmt: skip
        items.append('<li><svg class="key" viewBox="0 0 22 12" aria-hidden="true"><rect class="silence" '
                     'y="3.5" width="22" height="5"/></svg>no answer outside</li>')  # fmt: skip
    items.append('<li><svg class="key" viewBox="0 0 22 12" aria-hidden="true"><path class="order" '
                 'd="M6 1h10l-5 9z"/></svg>order to fail over</li>')  # fmt: skip
    return f'<ul class="legend">{"".join(items)}</ul>'


def _bars(segments: list[dict[str, t.Any]], scale: Scale, y: float, height: float) -> list[str]:
    made = []
    for each in segments:
        if each["to_ms"] <= scale.begin or each["from_ms"] >= scale.end:
            continue
        x, end = scale.x(each["from_ms"]), scale.x(each["to_ms"])
        took = milliseconds(each["to_ms"] - each["from_ms"])
        told = f"{NAMES[each['state']]} on {each['host']}, {took}"
        made.append(
            f'<rect class="seg {each["state"]}" x="{x:g}" y="{y:g}" width="{end - x:.2f}" height="{height:g}" '
            f'data-from="{each["from_ms"]:g}" data-to="{each["to_ms"]:g}"><title>{_text(told)}</title></rect>'
        )
        if end - x > 14 + 7 * len(each["host"]):
            made.append(f'<text class="on {each["state"]}" x="{x + 6:g}" y="{y + height - 5:g}">'
                        f'{_text(each["host"])}</text>')  # fmt: skip
    return made


def _answers(
    vm: dict[str, t.Any], scale: Scale, y: float, height: float, label: bool = False
) -> list[str]:
    """The prober's lane: answers, with its silences over them. Nothing when it asked nothing."""
    if not vm["probe"]["attempts"]:
        return []
    begin, end = scale.x(scale.begin), scale.x(scale.end)
    made = [f'<rect class="answers" x="{begin:g}" y="{y:g}" width="{end - begin:.2f}" height="{height:g}"/>']
    if not vm["probe"]["answers"]:
        return [made[0].replace('"answers"', '"silence"')]
    for each in vm["probe"]["silences"]:
        stop = scale.end if each["to_ms"] is None else each["to_ms"]
        if stop <= scale.begin or each["from_ms"] >= scale.end:
            continue
        x, right = scale.x(each["from_ms"]), scale.x(stop)
        took = "no answer any more"
        if each["to_ms"] is not None:
            took = f"no answer for {milliseconds(stop - each['from_ms'])}"
        made.append(
            f'<rect class="silence" x="{x:g}" y="{y:g}" width="{right - x:.2f}" height="{height:g}" '
            f'data-from="{each["from_ms"]:g}" data-to="{stop:g}"><title>{took}</title></rect>'
        )
        if label and right - x > 130:
            made.append(f'<text class="in-silence" x="{(x + right) / 2:.2f}" y="{y + 11.5:g}">{took}</text>')
    return made


def _pointer(x: float, y: float, told: str) -> str:
    return (f'<path class="order" d="M{x - 4:g} {y - 6:g}h8l-4 6z"><title>{_text(told)}</title></path>')


def _label(text: str, y: float) -> str:
    # Names of one kind often differ at their end alone.
    shown = text if len(text) <= 20 else text[:8] + "\u2026" + text[-10:]
    return f'<text class="lane" x="0" y="{y:g}">{_text(shown)}<title>{_text(text)}</title></text>'


def _axis(scale: Scale, height: float, zero: float = 0.0) -> list[str]:
    made = []
    for at in Scale(scale.begin - zero, scale.end - zero).marks():
        x = scale.x(at + zero)
        place = "end" if x > WIDTH - 40 else "middle"
        shown = "0" if at == 0 else milliseconds(at)
        made.append(f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="18" y2="{height:g}"/>'
                    f'<text class="tick" x="{x:g}" y="12" text-anchor="{place}">{shown}</text>')  # fmt: skip
    return made


def _svg(kind: str, title: str, height: float, parts: list[str]) -> str:
    return (
        f'<div class="picture"><svg class="{kind}" role="img" viewBox="0 0 {WIDTH:g} {height:g}">'
        f"<title>{_text(title)}</title>{''.join(parts)}</svg></div>"
    )


def _text(text: t.Any) -> str:
    return html.escape(str(text))
