"""`python -m kvmft.worker.forecast FD`: measures one VM for the agent, and tells what protection would cost it.

FD is one end of a socketpair: the agent writes the start line, gets one line back, and ends this process before by writing
or by going away.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from kvmft.adapters.qmp import LibvirtMonitor, Monitor, SocketMonitor
from kvmft.adapters.reactor import Reactor
from kvmft.core.forecast import (
    LIKELY_LOG_RATE,
    LONE_REQUESTS,
    STATE,
    Costs,
    Measured,
    Prediction,
    bursts,
    by_length,
    costs,
    predict,
)
from kvmft.core.pacing import Pace
from kvmft.errors import KvmftError
from kvmft.worker.stats import quantiles
from kvmft.worker.survey import Survey, Task, Watch


def report(measured: Measured, pace: Pace) -> dict[str, Any]:
    """The forecast, in the names and units of status, with what it was made from."""
    prediction, cost = predict(measured, pace), costs(measured)
    return {**_figures(prediction), "output": _output(measured), "dirty_pages": _dirty(measured),
            "disk_bytes_s": round(measured.disk_rate), "memory_mib": measured.ram >> 20, "costs": _costs(measured, cost),
            "asked": {"interval_ms": pace.interval * 1000, "min_interval_ms": pace.min_interval * 1000,
                      "max_added_latency_ms": pace.max_added_latency * 1000, "max_pause_share": pace.max_pause_share},
            "assumed": _assumed(measured)}  # fmt: skip


def _milliseconds(seconds: tuple[float, ...]) -> dict[str, float | None]:
    return quantiles(deque(each * 1000 for each in seconds))


def _figures(prediction: Prediction) -> dict[str, Any]:
    gaps = tuple(ran + pause for ran, pause in zip(prediction.ran, prediction.pauses, strict=True))
    return {
        "interval_ms": _milliseconds(gaps), "pause_ms": _milliseconds(prediction.pauses),
        "added_latency_ms": _milliseconds(prediction.waits), "commit_ms": _milliseconds(prediction.commits),
        "pages_per_epoch": quantiles(deque(round(each) for each in prediction.pages)),
        "pause_share": round(prediction.pause_share, 4), "log_bandwidth_bytes_s": round(prediction.log_rate),
        "objective_missed": prediction.missed,
    }  # fmt: skip


def _output(measured: Measured) -> dict[str, Any]:
    packets = sum(each.packets for each in measured.intervals)
    return {"seen": measured.sees_output, "packets": packets, "bursts_s": round(bursts(measured), 2)}


def _dirty(measured: Measured) -> list[dict[str, Any]]:
    """For each length of interval: how many were measured, their usual true length, and the pages written."""
    return [
        {"asked_ms": round(group[0].length * 1000), "n": len(group),
         "interval_ms": _milliseconds(tuple(each.seconds for each in group))["p50"],
         "pages": quantiles(deque(each.pages for each in group)),
         "scan_ms": _milliseconds(tuple(each.scan for each in group))["p50"],
         "with_output": round(sum(1 for each in group if each.packets) / len(group), 4)}
        for group in by_length(measured.intervals)
    ]  # fmt: skip


def _costs(measured: Measured, cost: Costs) -> dict[str, Any]:
    return {"pause_without_pages_ms": round(cost.pause(0) * 1000, 3), "page_ns": round(cost.page * 1e9),
            "scan_ms": round(cost.scan * 1000, 4),
            "monitor_ms": _milliseconds(measured.round_trips), "stops_ms": [round(each * 1000, 3) for each in measured.stops],
            "log_bytes_s": round(cost.log_rate)}  # fmt: skip


def _assumed(measured: Measured) -> list[str]:
    """What was not measured of this VM and this host, in sentences."""
    found = [] if measured.stops else [
        "What QEMU takes to stop, to save its devices and to go on is that of an ordinary VM; --stop measures it."]
    if measured.log_rate is None:
        found.append(f"The FT network was not measured and counts as {LIKELY_LOG_RATE / 1e6:.0f} MB/s; --log-mb-s says "
                     "what it carries.")  # fmt: skip
    if not measured.sees_output:
        found.append("The packets that the VM sends cannot all be counted here.")
    if not bursts(measured):
        found.append(f"The VM sent nothing that was seen: the added latency is that of {LONE_REQUESTS:.0f} request a second.")
    found.append(f"The devices' state counts as {STATE >> 10} KiB in each checkpoint.")
    return found


def _domain(uuid: str) -> Any:
    import libvirt

    return libvirt.open("qemu:///system").lookupByUUIDString(uuid)


def run(sock: socket.socket, line: dict[str, Any]) -> dict[str, Any]:
    """Measure and forecast; KvmftError says why not."""
    task = Task.parse(line)
    try:
        watch = Watch(sock, task)
    except ProcessLookupError as error:
        raise KvmftError("vm_gone", f"The QEMU process of VM {task.vm} ended.", "Start the VM.") from error
    reactor = Reactor()
    monitor: Monitor
    if task.own_monitor:
        monitor = SocketMonitor(reactor, task.own_monitor)
    else:
        monitor = LibvirtMonitor(reactor, _domain(task.uuid))
    try:
        measured = Survey(task, watch, monitor).measure()
    finally:
        monitor.close()
    return {"seconds": task.seconds, **report(measured, task.pace)}


def answer(sock: socket.socket, work: Callable[[], dict[str, Any]]) -> int:
    """Tell the agent what came of `work`, as one line; the exit code."""
    try:
        message = {"msg": "forecast", "result": work()}
    except KvmftError as error:
        message = {"msg": "failed", "error": error.to_dict()}
    except Exception as error:
        traceback.print_exc()
        broken = KvmftError("forecast_broke", f"The forecast broke: {error!r}.", "See `journalctl -u kvmft-agent`.")
        message = {"msg": "failed", "error": broken.to_dict()}
    try:
        sock.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        pass  # the agent is gone
    return 0 if message["msg"] == "forecast" else 1


def main() -> int:
    """One forecast. SIGTERM, as the service's stop sends it, ends it in order."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sock = socket.socket(fileno=int(sys.argv[1]))
    line = b""
    while not line.endswith(b"\n"):
        piece = sock.recv(1)
        if not piece:
            return 1
        line += piece
    return answer(sock, lambda: run(sock, json.loads(line)))


if __name__ == "__main__":
    sys.exit(main())
