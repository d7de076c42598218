"""Prometheus' text exposition format 0.0.4, as far as kvmft needs it; pure.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """Collects samples; a family's samples are kept together, in the order of first use."""

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}

    def gauge(self, name: str, text: str, value: float | None, **labels: str) -> None:
        """One sample of a gauge; None leaves it out, because a figure that is unknown is not 0."""
        self._sample("gauge", name, text, value, labels)

    def counter(self, name: str, text: str, value: float | None, **labels: str) -> None:
        """One sample of a counter; `name` ends in _total."""
        self._sample("counter", name, text, value, labels)

    def histogram(self, name: str, text: str, value: Mapping[str, Any], **labels: str) -> None:
        """`value`: bounds (upper, ascending), counts (per bucket, one more than bounds), sum."""
        lines = self._family("histogram", name, text)
        total = 0
        bounds = [*(_number(bound) for bound in value["bounds"]), "+Inf"]
        for bound, count in zip(bounds, value["counts"], strict=True):
            total += count
            lines.append(_line(f"{name}_bucket", {**labels, "le": bound}, total))
        lines.append(_line(f"{name}_sum", labels, value["sum"]))
        lines.append(_line(f"{name}_count", labels, total))

    def text(self) -> str:
        """The whole exposition."""
        return "\n".join(line for lines in self._families.values() for line in lines) + "\n"

    def _sample(
        self, kind: str, name: str, text: str, value: float | None, labels: Mapping[str, str]
    ) -> None:
        if value is not None:
            self._family(kind, name, text).append(_line(name, labels, value))

    def _family(self, kind: str, name: str, text: str) -> list[str]:
        if name not in self._families:
            self._families[name] = [f"# HELP {name} {_escaped(text)}", f"# TYPE {name} {kind}"]
        return self._families[name]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _pairs(labels: Mapping[str, str]) -> Iterable[str]:
    for key, value in labels.items():
        escaped = _escaped(value).replace('"', '\\"')
        yield f'{key}="{escaped}"'


def _number(value: float) -> str:
    return repr(float(value)) if not float(value).is_integer() else str(int(value))


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(_pairs(labels))
    return f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}"
