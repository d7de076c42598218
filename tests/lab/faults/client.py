"""Clients outside both servers: concurrent operations on the guest's objects, and an echo.

`python -m tests.lab.faults.client ADDRESS PORT LOG RUN` speaks to tests/guest/service.c until its
standard input closes, then reads every register and the whole log once more. RUN makes the values
that it writes unique. LOG gets one JSON object per line:

    {"kind": "base", "length": n, "registers": {key: value}}            before the first operation
    {"kind": "op", "op": "read"|"write"|"cas"|"append"|"length", "called": t, "returned": t or null, ...}
    {"kind": "echo", "at": t}                                           every answer of the echo
    {"kind": "reset", "of": name, "at": t, "reason": text}              every connection that broke
    {"kind": "log", "base": n, "records": [...]}                        the whole log, at the end

Times are CLOCK_MONOTONIC in seconds. An operation whose connection broke, or that a client did not
want to wait for any longer, has no return: it may take effect at any later time.
"""

from __future__ import annotations

import itertools
import json
import random
import socket
import sys
import threading
import time
from typing import IO, Any

KEYS = 4
"""Registers of each kind that the clients share: few, so that they meet."""
DURABLE, VOLATILE = "rwc", "RWC"
PATIENT, HASTY = 90.0, 0.7
"""Seconds that a client waits for an answer."""
OP_PAUSE = 0.004
ECHO_PAUSE = 0.01
FINAL_SECONDS = 60.0
RECORDS_AT_ONCE = 64


class Log:
    """Lines of several threads to one file."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._lock = threading.Lock()

    def write(self, **line: Any) -> None:
        """One line, flushed: what is in the file has happened."""
        text = json.dumps(line) + "\n"
        with self._lock:
            self._file.write(text)
            self._file.flush()


class Impatient(OSError):
    """The client gave up waiting; the connection itself did not break."""


class Line:
    """One connection, one request at a time."""

    def __init__(self, address: tuple[str, int], patience: float) -> None:
        self._socket = socket.create_connection(address, timeout=5)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A guest that started anew knows nothing of a question that it took before: ask whether the
        # connection is still there, and never give it up for lack of an answer alone.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1),
                              (socket.TCP_KEEPCNT, 120)):  # fmt: skip
            self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
        self._socket.settimeout(patience)
        self._reader = self._socket.makefile("rb")
        self.boot = self.ask("b")[0]

    def ask(self, request: str) -> list[str]:
        """The words of the answer after `ok`. OSError when there is none."""
        try:
            self._socket.sendall(request.encode() + b"\n")
            answer = self._reader.readline().decode()
        except TimeoutError:
            raise Impatient("no answer in time") from None
        if not answer.endswith("\n"):
            raise ConnectionError("the guest closed the connection")
        words = answer.rstrip("\n").split(" ")
        if words[0] != "ok":
            raise RuntimeError(f"{request!r} was answered with {answer!r}")
        return words[1:]

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class Client:
    """One client: operations one after the other, over one connection while that lasts."""

    def __init__(self, name: str, address: tuple[str, int], log: Log, stop: threading.Event,
                 patience: float = PATIENT) -> None:  # fmt: skip
        self._name = name
        self._address = address
        self._log = log
        self._stop = stop
        self._patience = patience
        self._numbers = itertools.count()
        self._random = random.Random(name)
        self._last: dict[str, str] = {}
        self.line: Line | None = None

    def connect(self) -> Line | None:
        """The connection; None once it is time to stop."""
        while self.line is None and not self._stop.is_set():
            try:
                self.line = Line(self._address, self._patience)
            except OSError:
                self._stop.wait(0.2)
        return self.line

    def broken(self, error: OSError) -> None:
        """The connection is of no use any more; a reset unless this client gave up by itself."""
        if not isinstance(error, Impatient) or self._patience >= PATIENT:
            self._log.write(kind="reset", of=self._name, at=time.monotonic(), reason=str(error))
        if self.line is not None:
            self.line.close()
        self.line = None

    def run(self) -> None:
        """Operations until it is time to stop."""
        while not self._stop.is_set():
            if self.connect() is None:
                break
            self._one()
            time.sleep(OP_PAUSE)

    def _one(self) -> None:
        assert self.line is not None
        value = f"{self._name}.{next(self._numbers)}"
        number = self._random.randrange(KEYS)
        verbs, boot = (DURABLE, "") if self._random.random() < 0.5 else (VOLATILE, self.line.boot)
        key = f"{'d' if verbs is DURABLE else 'v'}{number}{'@' + boot if boot else ''}"
        kind = self._random.choices(("append", "write", "read", "cas", "length"), (4, 2, 3, 2, 1))[0]
        expected = self._last.get(key, "-")
        choices: dict[str, tuple[str, dict[str, Any]]] = {
            "append": (f"a {value}", {"value": value}),
            "length": ("n", {}),
            "write": (f"{verbs[1]} {number} {value}", {"key": key, "value": value}),
            "read": (f"{verbs[0]} {number}", {"key": key}),
            "cas": (f"{verbs[2]} {number} {expected} {value}",
                    {"key": key, "value": value, "expected": expected}),
        }  # fmt: skip
        request, fields = choices[kind]
        called = time.monotonic()
        try:
            answer = self.line.ask(request)
        except OSError as error:
            if kind not in ("read", "length"):
                self._log.write(kind="op", op=kind, called=called, returned=None, **fields)
            self.broken(error)
            return
        returned = time.monotonic()
        if kind == "read":
            fields["value"] = self._last[key] = answer[0]
        elif kind == "cas":
            fields["seen"] = answer[1]
            self._last[key] = value if answer[0] == "1" else answer[1]
        elif kind in ("append", "length"):
            fields["index"] = int(answer[0])
        self._log.write(kind="op", op=kind, called=called, returned=returned, **fields)


class Echo(Client):
    """Asks for nothing but an answer, so that the longest time without one is seen."""

    def _one(self) -> None:
        assert self.line is not None
        word = str(next(self._numbers))
        try:
            answer = self.line.ask(f"p {word}")
            if answer != [word]:
                raise ConnectionError(f"sent {word!r}, got {answer!r}")
        except OSError as error:
            self.broken(error)
            return
        self._log.write(kind="echo", at=time.monotonic())
        time.sleep(ECHO_PAUSE - OP_PAUSE)


def begin(address: tuple[str, int], log: Log) -> int:
    """Write down what the objects hold before the first operation; the log's length."""
    line = Line(address, PATIENT)
    registers = {f"d{number}": line.ask(f"r {number}")[0] for number in range(KEYS)}
    for number in range(KEYS):
        registers[f"v{number}@{line.boot}"] = line.ask(f"R {number}")[0]
    length = int(line.ask("n")[0])
    log.write(kind="base", length=length, registers=registers)
    line.close()
    return length


def finish(address: tuple[str, int], log: Log, base: int) -> None:
    """Read everything once more; OSError when the guest does not answer."""
    line = Line(address, FINAL_SECONDS)
    for number in range(KEYS):
        for verb, key in ((DURABLE[0], f"d{number}"), (VOLATILE[0], f"v{number}@{line.boot}")):
            called = time.monotonic()
            value = line.ask(f"{verb} {number}")[0]
            log.write(kind="op", op="read", key=key, value=value, called=called,
                      returned=time.monotonic())  # fmt: skip
    length, records = int(line.ask("n")[0]), list[str]()
    while base + len(records) < length:
        # A record that the disk lost is an empty word.
        records += line.ask(f"l {base + len(records)} {min(RECORDS_AT_ONCE, length - base - len(records))}")
    log.write(kind="log", base=base, records=records)
    line.close()


def main() -> int:
    """Run all clients until standard input closes."""
    address, path, run = (sys.argv[1], int(sys.argv[2])), sys.argv[3], sys.argv[4]
    stop = threading.Event()
    with open(path, "w", encoding="utf-8") as file:
        log = Log(file)
        base = begin(address, log)
        clients = [Client(f"{run}{name}", address, log, stop) for name in "abcd"]
        clients.append(Client(f"{run}h", address, log, stop, HASTY))
        clients.append(Echo(f"{run}e", address, log, stop))
        threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        stop.set()
        until = time.monotonic() + FINAL_SECONDS
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        try:
            finish(address, log, base)
        except OSError as error:
            log.write(kind="unfinished", reason=str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
