"""What `kvmft forecast` says of a guest, beside what its protection then is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from kvmft.report.figures import summary
from tests.bench import engine, log
from tests.pair.harness import RUNTIME, VM_UUID, Pair, Qemu

PAGES = (100, 1_000, 10_000)
PATIENT = {"detection_ms": 5000, "agent_grace_ms": 5000}
PACES = {"every 20 ms": engine.OPTIONS, "default pace": PATIENT}
LOG_SECONDS = 2.0
FIGURES = ("pause median ms", "pause p99 ms", "pages per epoch", "interval median ms", "stands still %", "FT log MB/s")


def start(vm: Qemu, options: dict[str, Any], seconds: float, nics: Sequence[str] = (), stops: bool = False,
          log_rate: float | None = None) -> tuple[subprocess.Popen[bytes], socket.socket]:  # fmt: skip
    """The measuring process of the guest in `vm`, and the agent's end of the line to it."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "kvmft.worker.forecast", str(theirs.fileno())],
        pass_fds=(theirs.fileno(),), env={**os.environ, "PYTHONPATH": str(RUNTIME)},
    )  # fmt: skip
    theirs.close()
    line = {"cmd": "start", "vm": "counter", "uuid": VM_UUID, "qemu_pid": vm.process.pid, "own_monitor": str(vm.monitor),
            "nics": list(nics), "seconds": seconds, "stops": stops, "log_rate": log_rate, "options": options}  # fmt: skip
    ours.sendall(json.dumps(line).encode() + b"\n")
    return process, ours


def ask(vm: Qemu, options: dict[str, Any], seconds: float, **more: Any) -> dict[str, Any]:
    """The forecast, or what it was refused with as RuntimeError."""
    process, line = start(vm, options, seconds, **more)
    with line, line.makefile("rb") as lines:
        answer = json.loads(lines.readline() or b"{}")
    process.wait(10)
    if "result" not in answer:
        raise RuntimeError(f"no forecast: {answer.get('error')}")
    return dict(answer["result"])


def measure(accelerator: str, seconds: float) -> list[dict[str, Any]]:
    """Each guest and pace: the forecast, then the result; in the form of `engine.measure`."""
    rate = log.throughput(LOG_SECONDS)
    found = []
    for name, options in PACES.items():
        for pages in PAGES:
            first = partial(_foretell, options=options, seconds=seconds, rate=rate)
            found.append({"pace": name, **engine.measure(accelerator, pages, seconds, options=options, first=first)})
    return found


def _foretell(pair: Pair, options: dict[str, Any], seconds: float, rate: float) -> dict[str, Any]:
    return ask(pair.primary_vm, options, seconds, stops=True, log_rate=rate)


def compare(each: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Name, foretold and measured, of each of FIGURES."""
    told, pause = each["forecast"], summary(each["pause_ms"])
    foretold = (told["pause_ms"]["p50"], told["pause_ms"]["p99"], told["pages_per_epoch"]["p50"], told["interval_ms"]["p50"],
                100 * told["pause_share"], told["log_bandwidth_bytes_s"] / 1e6)  # fmt: skip
    measured = (pause["p50"], pause["p99"], summary(each["pages"])["p50"], summary(each["interval_ms"])["p50"],
                100 * each["stood_still_share"], each["log_bytes_s"] / 1e6)  # fmt: skip
    return list(zip(FIGURES, foretold, measured, strict=True))
