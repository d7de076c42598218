"""Requests to tests/guest/bench.pl over one connection; prints JSON.

    python -m tests.bench.httpget ADDRESS PORT SECONDS     each request's milliseconds, one after the other
    python -m tests.bench.httpget ADDRESS PORT clock       this machine's clock, the guest's, and what they may differ by, in seconds
"""

from __future__ import annotations

import http.client
import json
import sys
import time

PATIENCE = 60.0
LOOKS = 30
"""At the guest's clock; the quickest one counts."""


def get(connection: http.client.HTTPConnection, path: str) -> bytes:
    """One request and its whole answer."""
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise ConnectionError(f"{path} was answered {answer.status}")
    return body


def latencies(address: str, port: int, seconds: float) -> list[float]:
    """Milliseconds of each request, for so long."""
    connection = http.client.HTTPConnection(address, port, timeout=PATIENCE)
    get(connection, "/")  # the handshake is not counted
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.monotonic()
        get(connection, "/")
        found.append((time.monotonic() - begun) * 1000)
    connection.close()
    return found


def clock(address: str, port: int) -> tuple[float, float, float]:
    """CLOCK_MONOTONIC here and in the guest at one moment, and the most that this moment can differ by; seconds."""
    connection = http.client.HTTPConnection(address, port, timeout=PATIENCE)
    best = (0.0, 0.0, float("inf"))
    for __ in range(LOOKS):
        begun = time.monotonic()
        theirs = float(get(connection, "/clock"))
        ended = time.monotonic()
        if (ended - begun) / 2 < best[2]:
            best = ((begun + ended) / 2, theirs, (ended - begun) / 2)
    connection.close()
    return best


if __name__ == "__main__":
    where = sys.argv[1], int(sys.argv[2])
    print(json.dumps(clock(*where) if sys.argv[3] == "clock" else latencies(*where, float(sys.argv[3]))))
