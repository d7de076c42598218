"""The events log: one JSON object per line, numbered and chained, kept across restarts of the agent.

Writing must never harm a VM: a full disk loses events, says so later, and nothing else. Reading goes
backwards from the newest line and is bounded, so a long log costs neither memory nor time.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from kvmft.agent import chain

KEEP_BYTES = 16 << 20
MAX_TEXT = 4096
"""Characters of a reason; longer ones are cut."""
MAX_DATA = 16 << 10
MAX_LINE = 64 << 10
MAX_EVENTS = 20_000
MAX_ANSWER = 4 << 20
"""Bytes of lines that one `read` returns at most; the newest ones are kept."""
BLOCK = 64 << 10


class EventLog:
    """Appends to `path`; when it grows beyond KEEP_BYTES it becomes `path`.1 and a new one begins.

    `add` belongs to one thread; `read` and `verify` may be called from others.
    """

    def __init__(self, path: str, host: str) -> None:
        self._path = path
        self._host = host
        self._lock = threading.Lock()
        self._lost = 0
        self._seq, self._head, self._torn = 0, chain.FIRST, True
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            self._resume()
        except OSError as error:  # a full disk must not keep the agent from its VMs
            print(f"kvmft: {path}: {error}", file=sys.stderr, flush=True)

    def add(
        self, vm: str | None, event: str, reason: str, *, when: float | None = None, **data: Any
    ) -> dict[str, Any]:
        """Log one event. `time` is Unix time in seconds, for people and not for decisions; `when`
        is given where it happened before now. A disk that takes no more loses events: they are
        counted, told on stderr, and the next one that fits is preceded by their number."""
        lost = self._lost
        if lost:
            told = self._append(None, "events_lost", f"{lost} events could not be written", {})
            self._lost = 0 if told else lost
        if len(json.dumps(data)) > MAX_DATA:
            data = {"cut": "figures too long for the log"}
        at = time.time() if when is None else when
        return self._append(vm, event, reason, data, at) or {
            "seq": None, "time": at, "host": self._host, "vm": vm, "event": event,
            "reason": reason, "data": data,
        }  # fmt: skip

    def read(self, vm: str | None, since: int, limit: int) -> list[dict[str, Any]]:
        """The events after number `since`, of `vm` or of all, at most the last `limit`."""
        found: list[dict[str, Any]] = []
        size = 0
        for line in self._backwards():
            event = chain.parse(line)
            if event is None:
                continue
            if event["seq"] <= since or len(found) >= min(limit, MAX_EVENTS):
                break
            if vm is None or event.get("vm") == vm:
                size += len(line)
                if size > MAX_ANSWER:
                    break
                found.append(event)
        return found[::-1]

    def verify(self, anchor: tuple[int, str] | None = None) -> chain.Finding:
        """Check the chain of both files, and that the newest line is the one written last."""
        with self._lock:
            files = self._open()
            seq, head = self._seq, self._head
        found = chain.verify(_forwards(files), anchor)
        if found.last < seq:
            found.problems.append(f"the log ends with event {found.last}; event {seq} was written")
        elif found.last == seq and found.tail != head:
            found.problems.append(f"event {seq} is not what was written, or lines follow it")
        return found

    # -- writing ------------------------------------------------------------------------------------

    def _append(
        self, vm: str | None, event: str, reason: str, data: dict[str, Any], at: float | None = None
    ) -> dict[str, Any] | None:
        """Write one line; None when the disk did not take it."""
        with self._lock:
            try:
                if self._torn:
                    self._resume()
                made = {"seq": self._seq + 1, "time": round(at or time.time(), 4),
                        "host": self._host, "vm": vm, "event": event, "reason": reason[:MAX_TEXT],
                        "data": data, "prev": self._head}  # fmt: skip
                line = json.dumps(made).encode()
                self._write(line, event in chain.RECEIPTS)
            except OSError as error:
                self._torn = True
                self._lost += 1
                print(f"kvmft: event {event} of {vm} is not in the log ({error}): {reason}",
                      file=sys.stderr, flush=True)  # fmt: skip
                return None
            self._seq, self._head = self._seq + 1, chain.digest(line)
        return made

    def _write(self, line: bytes, durably: bool) -> None:
        """Append `line`; a receipt is on the disk when this returns. OSError when it is not whole."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            if os.write(descriptor, line + b"\n") != len(line) + 1:
                raise OSError("the disk took only a part of it")
            if durably:
                os.fdatasync(descriptor)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if size > KEEP_BYTES:
            os.replace(self._path, self._path + ".1")

    def _resume(self) -> None:
        """Go on from what the files hold: end a torn line, and find the number and the head."""
        self._end_torn_line()
        self._torn = False
        self._seq, self._head = 0, chain.FIRST
        newest = True
        for line in _backwards(self._open()):
            if newest:
                self._head, newest = chain.digest(line), False
            event = chain.parse(line)
            if event is not None:
                self._seq = event["seq"]
                return

    def _end_torn_line(self) -> None:
        """A power loss may have cut the last line off; the next event must not be glued to it."""
        try:
            with open(self._path, "rb+") as file:
                if file.seek(0, os.SEEK_END) == 0:
                    return
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
        except FileNotFoundError:
            return

    # -- reading ------------------------------------------------------------------------------------

    def _open(self) -> list[int]:
        """Descriptors of the files that are there, the older one first."""
        found = []
        for path in (self._path + ".1", self._path):
            try:
                found.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except FileNotFoundError:
                continue
        return found

    def _backwards(self) -> Iterator[bytes]:
        with self._lock:  # a rotation between two opens would hide a file
            files = self._open()
        return _backwards(files)


def _backwards(files: list[int]) -> Iterator[bytes]:
    """The lines of `files`, newest first; closes them."""
    try:
        for descriptor in reversed(files):
            yield from _lines_backwards(descriptor)
    finally:
        for descriptor in files:
            os.close(descriptor)


def _lines_backwards(descriptor: int) -> Iterator[bytes]:
    """The whole lines of a file, the last one first. What is longer than MAX_LINE is no line of
    ours and is given in pieces."""
    end = os.fstat(descriptor).st_size
    rest = b""
    while end > 0:
        start = max(0, end - BLOCK)
        rest = os.pread(descriptor, end - start, start) + rest
        end = start
        first, *lines = rest.split(b"\n")
        yield from (line for line in reversed(lines) if line)
        rest = first
        if len(rest) > MAX_LINE:
            yield rest
            rest = b""
    if rest:
        yield rest


def _forwards(files: list[int]) -> Iterator[bytes]:
    """The lines of `files`, oldest first; closes them."""
    for descriptor in files:
        with open(descriptor, "rb") as file:
            while line := file.readline(MAX_LINE):
                yield line.rstrip(b"\n")
