"""`kvmft forecast`: what protection would cost a VM, before anybody turns it on."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kvmft.cli.client import ask


def add_verb(verbs: Any, pace: dict[str, str]) -> None:
    """Add the verb to the command's parser; `pace` are the options of a VM that can be tried out, with their help."""
    text = "measure a running VM that is not protected, and foretell what protection would cost"
    added = verbs.add_parser("forecast", help=text, description=text)
    added.add_argument("vm", help="the VM's name in libvirt")
    added.add_argument("--seconds", type=float, default=10, help="how long to measure, 2 to 60 (default: 10)")
    added.add_argument("--stop", action="store_true",
                       help="stop the VM five times for a few milliseconds, as checkpoints do, for exact pauses")  # fmt: skip
    added.add_argument("--log-mb-s", type=float, metavar="RATE",
                       help="what the FT network carries, in MB/s (default: it is measured)")  # fmt: skip
    for name, what in pace.items():
        added.add_argument(f"--{name.replace('_', '-')}", type=float, help=what)
    added.add_argument("--json", action="store_true", help="print JSON")


def forecast(options: argparse.Namespace, pace: dict[str, str]) -> int:
    """`kvmft forecast`."""
    asked = {name: getattr(options, name) for name in pace if getattr(options, name) is not None}
    found = ask(options.socket, "vm_forecast", vm=options.vm, seconds=options.seconds, stops=options.stop,
                log_mb_s=options.log_mb_s, options=asked)  # fmt: skip
    print(json.dumps(found, indent=1) if options.json else render(found))
    return 0


def _spread(figures: dict[str, float | None], digits: int = 1) -> str:
    p50, p99 = figures["p50"], figures["p99"]
    return "-" if p50 is None or p99 is None else f"p50 {p50:,.{digits}f}   p99 {p99:,.{digits}f}"


def render(found: dict[str, Any]) -> str:
    """A forecast as people read it."""
    output, cost = found["output"], found["costs"]
    seen = f"{output['bursts_s']:g} times a second" if output["packets"] else "none seen"
    dirty = "   ".join(f"{each['pages']['p50']:,.0f} in {each['asked_ms']} ms" for each in found["dirty_pages"])
    lines = [
        f"{found['vm']}: what protection would cost, from {found['seconds']:g} s of what it does now ({found['accelerator']}, "
        f"{found['memory_mib']:,} MiB)",
        f"  pause          ms   {_spread(found['pause_ms'])}   the VM stands still {100 * found['pause_share']:.1f} % of the time",
        f"  added latency  ms   {_spread(found['added_latency_ms'])}",
        f"  interval       ms   {_spread(found['interval_ms'], 0)}",
        f"  pages per epoch     {_spread(found['pages_per_epoch'], 0)}",
        f"  FT log         {found['log_bandwidth_bytes_s'] / 1e6:.2f} MB/s",
        f"  the VM writes pages {dirty}; disks {found['disk_bytes_s'] / 1e6:.2f} MB/s; output: {seen}",
        f"  a pause has {cost['pause_without_pages_ms']:.2f} ms and {cost['page_ns'] / 1000:.2f} us a page; the FT network carries "
        f"{cost['log_bytes_s'] / 1e6:,.0f} MB/s",
    ]
    lines += [f"  {each}" for each in (found["objective_missed"], *found["assumed"]) if each]
    return "\n".join(lines)
