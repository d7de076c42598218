"""What the FT log carries clear of any guest: one TLS connection and the log's own frames, for a few seconds.

`python -m kvmft.report.logspeed` is started by the agent, with the orders as one JSON object on standard input and
the figures as JSON lines on standard output.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from typing import Any

from kvmft.adapters import ftlog
from kvmft.adapters.reactor import Reactor
from kvmft.core.wire import Frame, FrameType, Header, encode, encode_header, encode_json
from kvmft.errors import KvmftError

FRAME = 1 << 20
"""Bytes of each frame that is sent."""
AT_ONCE = 8
"""Frames that are queued before the reactor gets its turn."""
ANSWER = 10.0
"""Seconds beyond the measurement within which both sides end, whatever the other does."""
NICE = 10
"""The VMs' work goes first."""


def receive(listener: socket.socket, peer: str, files: ftlog.TlsFiles) -> float:
    """Take what `peer` sends until it says that it is done, and tell it the figure: bytes a second.

    The first tenth of the frames is not counted. KvmftError when `peer` is another host or breaks off.
    """
    listener.setblocking(True)
    sock = ftlog.accept(listener, peer, files)
    reactor, buffer = Reactor(), bytearray(FRAME)
    times: list[tuple[float, int]] = []
    lost: list[str] = []

    def took(frame: Frame) -> None:
        times.append((time.perf_counter(), stream.received_bytes))
        if frame.type is FrameType.BYE:
            reactor.stop()

    def gone(_closed: bool, reason: str) -> None:
        lost.append(reason)
        reactor.stop()

    stream = ftlog.LogStream(reactor, sock, lambda header: memoryview(buffer)[: header.length], took, gone)
    reactor.run()
    if lost:
        raise _broken(peer, lost[0])
    (first, start), (last, end) = times[len(times) // 10], times[-1]
    found = (end - start) / (last - first)
    stream.send(encode_json(FrameType.WELCOME, {"bytes_s": found}))
    stream.flush_and_close(ANSWER)
    return found


def send(peer: str, address: tuple[str, int], files: ftlog.TlsFiles, seconds: float) -> float:
    """Send as fast as it goes to `receive` at `address`; bytes a second, as they arrived there."""
    reactor = Reactor()
    sock = ftlog.connect(peer, address, files)
    body, head = memoryview(bytes(range(256)) * (FRAME // 256)), encode_header(FrameType.MEMORY, 0, FRAME)
    told: list[float] = []
    lost: list[str] = []

    def answered(frame: Frame) -> None:
        told.append(float(frame.json()["bytes_s"]))
        reactor.stop()

    def gone(_closed: bool, reason: str) -> None:
        lost.append(reason)
        reactor.stop()

    def room(header: Header) -> memoryview:
        return memoryview(bytearray(header.length))

    stream = ftlog.LogStream(reactor, sock, room, answered, gone)
    until = time.perf_counter() + seconds

    def pump() -> None:
        if time.perf_counter() >= until:
            stream.send(encode(FrameType.BYE))
            reactor.call_later(ANSWER, lambda: gone(False, f"no answer within {ANSWER:.0f} s"))
            return
        for __ in range(AT_ONCE):
            stream.send(head, body)
        stream.on_drained = pump
        if not stream.queued:
            reactor.call_later(0, pump)

    pump()
    reactor.run()
    stream.close()
    if not told:
        raise _broken(peer, lost[0])
    return told[0]


def _broken(peer: str, why: str) -> KvmftError:
    return KvmftError("log_speed_failed", f"The measurement of the FT log with {peer} broke off: {why}.",
                      "Check the FT network with `kvmft doctor`, and measure again.")  # fmt: skip


def main() -> int:
    """Do as the orders say; 0 when there is a figure."""
    os.nice(NICE)
    orders: dict[str, Any] = json.loads(sys.stdin.readline())
    signal.alarm(int(orders["seconds"] + ANSWER + 2 * ftlog.HANDSHAKE_TIMEOUT))  # whatever the other side does
    files = ftlog.TlsFiles(**orders["tls"])
    try:
        if orders["role"] == "receive":
            first, last = orders["ports"]
            listener = ftlog.listen(orders["address"], (first, last))
            print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
            figure = receive(listener, orders["peer"], files)
        else:
            figure = send(orders["peer"], (orders["address"], int(orders["port"])), files, float(orders["seconds"]))
    except KvmftError as error:
        print(json.dumps({"error": error.to_dict()}), flush=True)
        return 1
    print(json.dumps({"bytes_s": figure}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
