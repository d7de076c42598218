"""A page of what was measured: plots and tables, in one file without anything from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM, RIGHT, TOP = 640, 300, 60, 40, 170, 16
COLOURS = ("#1b6ca8", "#c8553d", "#2a9d5c", "#7b4fa3", "#b8860b", "#444444", "#d0458b", "#118ab2")
STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #ffffff; --faint: #8a94a3; --rule: #dde2e8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ecf1; --paper: #151a21; --faint: #97a1b0; --rule: #333c48 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0 }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--rule) }
th:first-child, td:first-child, .prose th, .prose td { text-align: left }
.plot { overflow-x: auto } svg { font: 12px system-ui, sans-serif } .note { color: var(--faint) }
"""


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], prose: bool = False) -> str:
    """An HTML table; numbers as they are, None as a dash. `prose`: it has more words than numbers."""
    cells = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(shown(each))}</td>" for each in row) + "</tr>" for row in rows)
    opening = '<table class="prose">' if prose else "<table>"
    return f"{opening}<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def shown(value: Any) -> str:
    """A figure as people read it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def distributions(title: str, unit: str, series: Mapping[str, Sequence[float]]) -> str:
    """How many of the values are at most x, for each series, with x on a logarithmic axis."""
    series = {name: values for name, values in series.items() if len(values)}
    if not series:
        return ""
    low = min(max(min(values), 1e-3) for values in series.values())
    high = max(max(values) for values in series.values())
    first, last = math.floor(math.log10(low)), max(math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1)

    def x(value: float) -> float:
        place = (math.log10(max(value, 10.0**first)) - first) / (last - first)
        return LEFT + place * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    parts = [_tick_x(x(10.0**power), f"{10.0**power:g}") for power in range(first, last + 1)]
    parts += [_tick_y(y(share), f"{share * 100:.0f} %") for share in (0, 0.25, 0.5, 0.75, 1)]
    for number, (name, values) in enumerate(series.items()):
        ordered = np.sort(np.asarray(values, dtype=float))
        steps = np.unique(np.linspace(0, len(ordered) - 1, 200).astype(int))
        path = " ".join(f"{x(float(ordered[at])):.1f},{y((at + 1) / len(ordered)):.1f}" for at in steps)
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_legend(number, colour, name))
    return _figure(title, f"{unit}, logarithmic", parts)


def _tick_x(at: float, text: str) -> str:
    return (f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="currentColor" opacity=".12"/>'
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle" fill="currentColor">{text}</text>')  # fmt: skip


def _tick_y(at: float, text: str) -> str:
    return (f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="currentColor" opacity=".12"/>'
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" fill="currentColor">{text}</text>')  # fmt: skip


def _legend(number: int, colour: str, name: str) -> str:
    at = TOP + 14 + number * 18
    return (f'<rect x="{WIDTH - RIGHT + 12}" y="{at - 9}" width="12" height="10" fill="{colour}"/>'
            f'<text x="{WIDTH - RIGHT + 30}" y="{at}" fill="currentColor">{escape(name)}</text>')  # fmt: skip


def _figure(title: str, axis: str, parts: Sequence[str]) -> str:
    middle = (LEFT + WIDTH - RIGHT) / 2
    return (f'<div class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{escape(title)}">'
            f'{"".join(parts)}<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle" fill="currentColor">{escape(axis)}'
            "</text></svg></div>")  # fmt: skip


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page: `sections` are headings with their HTML."""
    body = "".join(f"<h2>{escape(heading)}</h2>{html}" for heading, html in sections)
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title><style>{STYLE}</style></head>'
            f"<body><h1>{escape(title)}</h1><p>{escape(lead)}</p>{body}</body></html>\n")  # fmt: skip
