"""The client outside both servers: commits rows one by one and keeps one TCP connection open.

`python -m tests.lab.client ADDRESS LOG [EVERY]` runs until its standard input closes. On the open connection it begins a
request EVERY seconds after the one before, or at once when that was answered later. It writes one JSON object per line to
LOG: `{"kind": "commit"|"echo", "seq": n, "sent": t, "answered": t}` for every answer and
`{"kind": "reset", "of": "commit"|"echo", "at": t, "reason": text}` for every connection that broke. Times are
CLOCK_MONOTONIC in seconds, so that they compare with those of the demo.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from typing import IO, Any

import psycopg

ECHO_PORT = 7
ECHO_EVERY = 0.03
COMMIT_PAUSE = 0.002
STARTING_PAUSE = 0.2
PATIENCE = 60.0
"""Seconds after which an unanswered request counts as a broken connection."""


class Log:
    """Lines of several threads to one file."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._lock = threading.Lock()

    def write(self, **line: Any) -> None:
        """One line, flushed: what is in the file has happened."""
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def connect(address: str) -> psycopg.Connection[Any]:
    """A connection of which every statement is a transaction of its own.

    A database that is still starting has its port open already, and is waited for.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return psycopg.connect(
                host=address, user="postgres", dbname="demo", autocommit=True,
                connect_timeout=int(PATIENCE), tcp_user_timeout=int(PATIENCE * 1000),
            )  # fmt: skip
        except psycopg.OperationalError as error:
            # libpq gives the error of a refused session as text alone, without its code 57P03.
            if "the database system is" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(STARTING_PAUSE)


def commits(address: str, log: Log, stop: threading.Event) -> None:
    """Insert rows with rising numbers. A row is acknowledged when its line is in the log."""
    connection = connect(address)
    found = connection.execute("SELECT coalesce(max(seq), 0) FROM ledger").fetchone()
    seq = int(found[0]) if found else 0
    while not stop.is_set():
        seq += 1
        sent = time.monotonic()
        try:
            connection.execute("INSERT INTO ledger (seq) VALUES (%s)", (seq,))
        except psycopg.Error as error:
            log.write(kind="reset", of="commit", at=time.monotonic(), reason=str(error).strip())
            connection.close()
            time.sleep(0.5)
            connection = connect(address)
            continue
        log.write(kind="commit", seq=seq, sent=sent, answered=time.monotonic())
        time.sleep(COMMIT_PAUSE)
    connection.close()


def echoes(address: str, log: Log, stop: threading.Event, every: float) -> None:
    """Send numbered lines over one connection and expect each of them back, in order; at most one in `every` seconds."""
    connection, seq = None, 0
    while not stop.is_set():
        seq += 1
        sent = time.monotonic()
        try:
            if connection is None:
                connection = socket.create_connection((address, ECHO_PORT), timeout=PATIENCE)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                reader = connection.makefile("rb")
            line = f"{seq}\n".encode()
            connection.sendall(line)
            answer = reader.readline()
            if answer != line:
                raise ConnectionError(f"sent {line!r}, got {answer!r}")
        except OSError as error:
            log.write(kind="reset", of="echo", at=time.monotonic(), reason=str(error))
            if connection is not None:
                connection.close()
            connection = None
            time.sleep(0.5)
            continue
        log.write(kind="echo", seq=seq, sent=sent, answered=time.monotonic())
        time.sleep(max(0.0, sent + every - time.monotonic()))


def main() -> int:
    """Run both until standard input closes."""
    address, path = sys.argv[1:3]
    every = float(sys.argv[3]) if len(sys.argv) > 3 else ECHO_EVERY
    stop = threading.Event()
    with open(path, "w", encoding="utf-8") as file:
        log = Log(file)
        threads = [threading.Thread(target=target, args=(address, log, stop, *more), daemon=True)
                   for target, more in ((commits, ()), (echoes, (every,)))]  # fmt: skip
        for thread in threads:
            thread.start()
        sys.stdin.read()
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        return 1 if any(thread.is_alive() for thread in threads) else 0


if __name__ == "__main__":
    sys.exit(main())
