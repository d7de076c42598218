"""Scrapes both nodes' metrics during a failover, from outside, and judges what was seen.

`python -m tests.lab.scrape SECONDS NAME=URL...` prints one JSON line per round. In a round the nodes
are asked one after the other, forth and back (a, b, a): two nodes count as active at once only when
the first was active before and after the second was, so a switch between two answers is no finding.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Iterable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

Scrape = dict[str, float]
"""Samples by name and labels, such as `kvmft_vm_running_here{vm="db1"}`."""
Round = list[tuple[str, Scrape | None]]
"""(node, samples), in the order of asking; None: it did not answer."""
TIMEOUT = 1.0
PAUSE = 0.1


def samples(text: str) -> Scrape:
    """Read an exposition."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = float(sample.value)
    return found


def active(scrape: Scrape | None, vm: str) -> bool:
    """True when this node let out the output of `vm` then. A node that is silent shows nothing."""
    return bool(scrape and scrape.get(f'kvmft_vm_running_here{{vm="{vm}"}}'))


def double_active(rounds: Iterable[Round], vm: str) -> list[int]:
    """Numbers of the rounds in which more than one node was active at the same moment."""
    found = []
    for number, round_ in enumerate(rounds):
        first, second, again = (active(scrape, vm) for __, scrape in round_)
        if first and second and again:
            found.append(number)
    return found


def backward(rounds: Iterable[Round], nodes_restarted: Iterable[str] = ()) -> list[str]:
    """Counters that went back, on nodes whose agents were not restarted meanwhile."""
    last: dict[tuple[str, str], float] = {}
    found = []
    for round_ in rounds:
        for node, scrape in round_:
            for name, value in (scrape or {}).items():
                counts = name.split("{")[0].endswith(("_total", "_count", "_bucket", "_sum"))
                if not counts or node in nodes_restarted:
                    continue
                if value < last.get((node, name), value):
                    found.append(f"{node}: {name} went from {last[node, name]} to {value}")
                last[node, name] = value
    return found


def ever_active(rounds: Iterable[Round], vm: str) -> set[str]:
    """Nodes that were active at least once."""
    return {node for round_ in rounds for node, scrape in round_ if active(scrape, vm)}


def _ask(url: str) -> Scrape | None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            return samples(answer.read().decode())
    except OSError:
        return None


def main(arguments: list[str]) -> None:
    """Scrape two nodes for so many seconds."""
    until = time.monotonic() + float(arguments[0])
    (first, one), (second, two) = (each.split("=", 1) for each in arguments[1:])
    while time.monotonic() < until:
        round_: list[Any] = [(first, _ask(one)), (second, _ask(two)), (first, _ask(one))]
        print(json.dumps(round_), flush=True)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main(sys.argv[1:])
