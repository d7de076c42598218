"""`python -m tests.bench.stream ADDRESS PORT SECONDS to|from`: bytes a second of one TCP connection; prints JSON.

`to` sends to a service that throws away what it gets and closes once it has all; its closing ends the time, so
nothing that only lies in a buffer is counted as carried. `from` reads from one that sends without end.
"""

from __future__ import annotations

import json
import socket
import sys
import time

PATIENCE = 120.0
PIECE = 1 << 18


def to(address: str, port: int, seconds: float) -> float:
    """Bytes a second that arrive there."""
    data, sent = bytes(range(256)) * (PIECE // 256), 0
    with socket.create_connection((address, port), PATIENCE) as sock:
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            sent += sock.send(data)
        sock.shutdown(socket.SHUT_WR)
        if sock.recv(1):
            raise ConnectionError("the service answered, but it should throw everything away")
        return sent / (time.monotonic() - begun)


def from_(address: str, port: int, seconds: float) -> float:
    """Bytes a second that arrive here."""
    got = 0
    with socket.create_connection((address, port), PATIENCE) as sock:
        sock.recv(1)
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            count = len(sock.recv(PIECE))
            if count == 0:
                raise ConnectionError("the service closed the connection")
            got += count
        return got / (time.monotonic() - begun)


if __name__ == "__main__":
    direction = {"to": to, "from": from_}[sys.argv[4]]
    print(json.dumps(direction(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
