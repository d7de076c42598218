"""The gap that a client sees when the primary dies, with its input put in again and without, in alternating runs.

Kinds: `process` is kill -9 of QEMU, which is known at once; `host` is a power cut, which only silence tells. Beside
them `restart`: what a cluster manager does, the same VM started again from the same disk.
"""

from __future__ import annotations

import os
import time
from typing import Any

from tests.lab import demo, guests, measure
from tests.lab.lab import Lab

LOAD = 1.5
"""Seconds of load before and after each fault."""
RESTARTS = 3


def run(release: str, runs: int) -> dict[str, Any]:
    """Milliseconds of each gap, by kind; `lost` rows and `resets` over all of them must be 0."""
    lab = Lab(os.environ.get("KVMFT_LAB", "bench"), release)
    try:
        demo.prepare(lab)
        restart = [_restart(lab) for __ in range(RESTARTS)]
        client = demo.Client(lab)
        try:
            found = _faults(lab, client, runs)
            log = client.stop()
        except BaseException:
            client.kill()
            raise
        lost = len(measure.lost(log.commits, demo.stored_rows(lab)))
    finally:
        if "KVMFT_KEEP" not in os.environ:
            lab.down()
    return {"gaps_ms": {**found, "restart": restart}, "lost": lost, "resets": len(log.resets),
            "acknowledged": len(log.commits)}  # fmt: skip


def _restart(lab: Lab) -> float:
    begun = time.monotonic()
    lab.run("node-a", f"virsh destroy {demo.VM} && virsh start {demo.VM}")
    guests.wait_up(lab, guests.POSTGRES)
    return (time.monotonic() - begun) * 1000


def _faults(lab: Lab, client: demo.Client, runs: int) -> dict[str, list[float]]:
    client.wait_answers(0.0, demo.ANSWER_SECONDS)
    lab.run("node-a", f"kvmft enable {demo.VM} --wait 120")
    found: dict[str, list[float]] = {"process, input replayed": [], "process, input not replayed": [], "host, input replayed": []}
    source, target = "node-a", "node-b"
    for number in range(runs):
        for kind, replay in (("process", True), ("process", False), ("host", True)):
            _protect(lab, source, replay)
            time.sleep(LOAD)
            gap = _fault(lab, client, kind, source)
            name = f"{kind}, input {'' if replay else 'not '}replayed"
            found[name].append(gap)
            demo.say(f"  {number + 1:3d} {name}: {gap:.0f} ms")
            if kind == "host":
                lab.power_on(source)
            source, target = target, source
    return found


def _protect(lab: Lab, host: str, replay: bool) -> None:
    """The VM is protected, with the option as it shall be: it counts from a pairing on."""
    status = demo.wait_protected(lab, host)
    if status["options"].get("replay_input", True) != replay:
        lab.run(host, f"kvmft suspend {demo.VM}")
        lab.run(host, f"kvmft resume {demo.VM} --set replay_input={str(replay).lower()} --wait 120")
        demo.wait_protected(lab, host)


def _fault(lab: Lab, client: demo.Client, kind: str, host: str) -> float:
    """Do it; the longest time without an answer."""
    if kind == "host":
        when = lab.power_off(host)
    else:
        when = time.monotonic()
        lab.run(host, f"kill -9 $(cat /run/libvirt/qemu/{demo.VM}.pid)")
    client.wait_answers(time.monotonic(), demo.ANSWER_SECONDS)
    time.sleep(LOAD)
    log = client.log()
    times = [*log.commits.values(), *log.echoes]
    return 1000 * (measure.longest_gap(times, when, time.monotonic()) or 0.0)
