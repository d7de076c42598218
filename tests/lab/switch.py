"""`./dev switch`: planned switchovers back and forth while the database is written to, measured.

The outage of a switchover is seen twice: by the client (longest time between two answers) and by the
hosts (from the last checkpoint's stop to the moment at which the VM runs again). An emulated guest
runs slowly for a while after it moved, because its code is translated anew; the client sees that too.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

from tests.lab import demo, measure
from tests.lab.lab import ROOT, Lab

REPORT = ROOT / "build" / "switch.json"
LOAD = 1.5
"""Seconds of load before and after each switchover."""


@dataclass
class Switch:
    """One switchover; times in milliseconds, sizes in bytes, `protected_s` in seconds."""

    source: str
    target: str
    outage_ms: float | None
    commit_gap_ms: float
    echo_gap_ms: float
    carried_packets: int
    protected_s: float
    memory_bytes: int
    disk_bytes: int


def _stopped_to_running(lab: Lab, source: str, target: str, since: float) -> tuple[float, int]:
    """From the order on the one host to `activated` on the other: the hosts share a clock here."""
    ordered = [event for event in demo.events(lab, source) if event["time"] >= since
               and event["event"] == "state" and event["reason"] == "planned switchover"]  # fmt: skip
    running = [event for event in demo.events(lab, target) if event["time"] >= since
               and event["event"] == "activated"]  # fmt: skip
    if not ordered or not running:
        raise RuntimeError(f"no switchover from {source} to {target} is in the events")
    outage = (running[-1]["time"] - ordered[-1]["time"]) * 1000
    return outage, int(running[-1]["data"].get("carried_packets") or 0)


def once(lab: Lab, client: demo.Client, source: str, target: str) -> Switch:
    """Switch over and wait until the VM is protected again."""
    wall, begun = time.time(), time.monotonic()
    lab.run(source, f"kvmft failover {demo.VM} --mode planned")
    status = demo.wait_protected(lab, target)
    protected = time.monotonic() - begun
    time.sleep(LOAD)
    outage, carried = _stopped_to_running(lab, source, target, wall - 0.5)
    log = client.log()
    end = begun + 3.0
    sync = status["sync"]
    return Switch(
        source, target, round(outage, 1),
        round(1000 * (measure.longest_gap(log.commits.values(), begun, end) or 0.0), 1),
        round(1000 * (measure.longest_gap(log.echoes, begun, end) or 0.0), 1),
        carried, round(protected, 1), int(sync["memory_bytes"]), int(sync["disk_bytes"]),
    )  # fmt: skip


def run(lab: Lab, runs: int) -> dict[str, Any]:
    """All switchovers; the report."""
    demo.prepare(lab)
    client = demo.Client(lab)
    switches: list[Switch] = []
    try:
        client.wait_answers(0.0, demo.ANSWER_SECONDS)
        lab.run("node-a", f"kvmft enable {demo.VM} --wait 120")
        source, target = "node-a", "node-b"
        for number in range(1, runs + 1):
            demo.wait_protected(lab, source)
            time.sleep(LOAD)
            switches.append(once(lab, client, source, target))
            last = switches[-1]
            demo.say(
                f"  {number:3d} {source} -> {target}: outage {last.outage_ms:.0f} ms, client "
                f"{last.echo_gap_ms:.0f} (echo) and {last.commit_gap_ms:.0f} ms (commit), protected "
                f"after {last.protected_s} s, {last.memory_bytes >> 10} KiB of memory and "
                f"{last.disk_bytes >> 10} KiB of disk sent"
            )
            source, target = target, source
        log = client.stop()
    except BaseException:
        client.kill()
        raise
    lost = len(measure.lost(log.commits, demo.stored_rows(lab)))
    figures = {
        name: {"p50": measure.percentile(values, 0.5), "p99": measure.percentile(values, 0.99),
               "max": max(values)}
        for name, values in (
            ("outage_ms", [each.outage_ms or 0.0 for each in switches]),
            ("echo_gap_ms", [each.echo_gap_ms for each in switches]),
            ("commit_gap_ms", [each.commit_gap_ms for each in switches]),
            ("protected_s", [each.protected_s for each in switches]),
            ("memory_bytes", [float(each.memory_bytes) for each in switches]),
            ("disk_bytes", [float(each.disk_bytes) for each in switches]),
        )
    }  # fmt: skip
    return {"runs": runs, "acknowledged": len(log.commits), "lost": lost,
            "tcp_resets": len(log.resets), **figures,
            "switches": [asdict(each) for each in switches]}  # fmt: skip


def main(runs: int, release: str) -> int:
    """Run in a lab of its own and write build/switch.json."""
    lab = Lab(os.environ.get("KVMFT_LAB", "switch"), release)
    try:
        report = run(lab, runs)
    finally:
        if "KVMFT_KEEP" not in os.environ:
            lab.down()
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    for name in ("outage_ms", "echo_gap_ms", "commit_gap_ms", "protected_s", "memory_bytes",
                 "disk_bytes"):  # fmt: skip
        demo.say(f"  {name:14s} " + "  ".join(f"{k} {v:.0f}" for k, v in report[name].items()))
    demo.say(f"  {report['acknowledged']} rows acknowledged, {report['lost']} lost, "
             f"{report['tcp_resets']} connections broken, {runs} switchovers")  # fmt: skip
    return 0 if report["lost"] == 0 and report["tcp_resets"] == 0 else 1
