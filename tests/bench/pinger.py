"""`python -m tests.bench.pinger ADDRESS PORT RATE SECONDS`: request and answer over one TCP connection.

Lines are sent at a fixed rate whatever the answers do, and each latency counts from the moment at which its line
was due, so that a stall is seen by all requests that it delays. Prints a JSON list of milliseconds.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

PATIENCE = 30.0


def ping(address: str, port: int, rate: float, seconds: float) -> list[float]:
    """The latencies in milliseconds, in the order of the requests."""
    sock = socket.create_connection((address, port), timeout=PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    count = max(1, int(rate * seconds))
    begun = time.monotonic() + 0.05
    due = [begun + number / rate for number in range(count)]

    def send() -> None:
        for number, when in enumerate(due):
            time.sleep(max(0.0, when - time.monotonic()))
            sock.sendall(b"%d\n" % number)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    found = []
    with sock.makefile("rb") as answers:
        for number, when in enumerate(due):
            answer = answers.readline()
            if answer != b"%d\n" % number:
                raise ConnectionError(f"sent {number}, was answered {answer!r}")
            found.append((time.monotonic() - when) * 1000)
    sock.close()
    return found


if __name__ == "__main__":
    print(json.dumps(ping(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))))
