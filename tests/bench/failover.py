"""The gap that a client sees when the primary dies, with its input put in again and without, in alternating runs.

Kinds: `process` is kill -9 of QEMU, which is known at once; `host` is a power cut, which only silence tells. Beside
them `restart` (tests/bench/restart.py), planned switchovers, and how soon the VM is protected again when a host returns.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

from tests.bench import restart
from tests.lab import demo, measure, switch
from tests.lab.lab import Lab

LOAD = 1.5
"""Seconds of load before and after each fault."""
REQUEST_EVERY = 0.005
"""The least seconds from one request to the next on the client's open connection. A protected guest answers later than that,
so that a request is always under way, also when the primary dies."""
KINDS = (("process", True), ("process", False), ("host", True))
"""What dies, and whether input is replayed then."""


class Campaign:
    """The runs of one part: where the VM is now, and what was measured."""

    def __init__(self, lab: Lab, client: demo.Client) -> None:
        self.lab, self.client = lab, client
        self.source, self.target = "node-a", "node-b"
        self.gaps: dict[str, list[float]] = {}
        self.resyncs: list[dict[str, Any]] = []
        self.switches: list[switch.Switch] = []

    def fault(self, kind: str, replay: bool) -> dict[str, float]:
        """One fault; the VM runs on the other host afterwards. Milliseconds of the gaps."""
        _protect(self.lab, self.source, replay)
        time.sleep(LOAD)
        name = f"{kind}, input {'' if replay else 'not '}replayed"
        gaps = _fault(self.lab, self.client, kind, self.source)
        for of, gap in gaps.items():
            self.gaps.setdefault(f"{name}: {of}", []).append(gap)
        if kind == "host":
            self.resyncs.append(_resync(self.lab, self.source, self.target))
        self.source, self.target = self.target, self.source
        return gaps

    def switchover(self) -> switch.Switch:
        """One planned switchover."""
        demo.wait_protected(self.lab, self.source)
        time.sleep(LOAD)
        done = switch.once(self.lab, self.client, self.source, self.target)
        self.switches.append(done)
        self.source, self.target = self.target, self.source
        return done


def run(release: str, runs: int) -> dict[str, Any]:
    """Milliseconds of each gap, by kind; `lost` rows and `resets` over all of them must be 0."""
    lab = Lab(os.environ.get("KVMFT_LAB", "bench"), release)
    try:
        demo.prepare(lab)
        restarts = restart.measure(lab)
        client = demo.Client(lab, REQUEST_EVERY)
        try:
            done = _campaign(lab, client, runs)
            log = client.stop()
        except BaseException:
            client.kill()
            raise
        lost = len(measure.lost(log.commits, demo.stored_rows(lab)))
    finally:
        if "KVMFT_KEEP" not in os.environ:
            lab.down()
    return {"gaps_ms": {**done.gaps, "restart": restarts}, "restart_detection_s": restart.DETECTION,
            "resyncs": done.resyncs, "switches": [asdict(each) for each in done.switches],
            "lost": lost, "resets": len(log.resets), "acknowledged": len(log.commits)}  # fmt: skip


def _campaign(lab: Lab, client: demo.Client, runs: int) -> Campaign:
    client.wait_answers(0.0, demo.ANSWER_SECONDS)
    lab.run("node-a", f"kvmft enable {demo.VM} --wait 120")
    campaign = Campaign(lab, client)
    for number in range(1, runs + 1):
        for kind, replay in KINDS:
            gaps = ", ".join(f"{of} {gap:.0f}" for of, gap in campaign.fault(kind, replay).items())
            demo.say(f"  {number:3d} {kind}, input {'' if replay else 'not '}replayed: {gaps} ms")
        done = campaign.switchover()
        demo.say(f"  {number:3d} planned switchover: {done.outage_ms:.0f} ms, client {done.echo_gap_ms:.0f} ms")
    return campaign


def _resync(lab: Lab, killed: str, survivor: str) -> dict[str, Any]:
    """The host returns: how soon the VM is protected again, and what of that the sync itself took."""
    wall = time.time()
    found = demo.reprotect(lab, killed, survivor)
    return {**found, "sync_seconds": sync_seconds(demo.events(lab, survivor), wall)}


def sync_seconds(events: list[dict[str, Any]], since: float) -> float | None:
    """Seconds from the last beginning of a sync to its end, after the time `since`; None without both."""
    began = None
    for event in events:
        if event["time"] < since:
            continue
        if event["event"] == "state" and event["data"].get("state") == "starting":
            began = began or event["time"]
        elif event["event"] == "state" and event["data"].get("state") == "need_secondary":
            began = None  # that attempt came to nothing
        elif event["event"] == "synced" and began is not None:
            return round(float(event["time"] - began), 3)
    return None


def _protect(lab: Lab, host: str, replay: bool) -> None:
    """The VM is protected, with the option as it shall be: it counts from a pairing on."""
    status = demo.wait_protected(lab, host)
    if status["options"].get("replay_input", True) != replay:
        lab.run(host, f"kvmft suspend {demo.VM}")
        lab.run(host, f"kvmft resume {demo.VM} --set replay_input={str(replay).lower()} --wait 120")
        demo.wait_protected(lab, host)


def _fault(lab: Lab, client: demo.Client, kind: str, host: str) -> dict[str, float]:
    """Do it; the longest time without an answer of any kind, to a request, and to a commit."""
    if kind == "host":
        when = lab.power_off(host)
    else:
        when = time.monotonic()
        lab.run(host, f"kill -9 $(cat /run/libvirt/qemu/{demo.VM}.pid)")
    client.wait_answers(time.monotonic(), demo.ANSWER_SECONDS)
    time.sleep(LOAD)
    log = client.log()
    now, commits = time.monotonic(), log.commits.values()
    parts = {"any answer": [*commits, *log.echoes], "requests": log.echoes, "commits": commits}
    return {of: 1000 * (measure.longest_gap(times, when, now) or 0.0) for of, times in parts.items()}
