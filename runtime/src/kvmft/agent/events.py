"""The events log: one JSON object per line, numbered, kept across restarts of the agent."""

from __future__ import annotations

import json
import os
import time
from typing import Any

KEEP_BYTES = 16 << 20


class EventLog:
    """Appends to `path`; when it grows beyond KEEP_BYTES, the older half moves to `path`.1."""

    def __init__(self, path: str, host: str) -> None:
        self._path = path
        self._host = host
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._seq = max((event["seq"] for event in self._read()), default=0)
        self._end_torn_line()

    def add(self, vm: str | None, event: str, reason: str, **data: Any) -> dict[str, Any]:
        """Log one event. `time` is Unix time in seconds, for people and not for decisions."""
        self._seq += 1
        line = {"seq": self._seq, "time": round(time.time(), 4), "host": self._host, "vm": vm,
                "event": event, "reason": reason, "data": data}  # fmt: skip
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            size = file.tell()
        if size > KEEP_BYTES:
            os.replace(self._path, self._path + ".1")
        return line

    def read(self, vm: str | None, since: int, limit: int) -> list[dict[str, Any]]:
        """The events after number `since`, of `vm` or of all, at most the last `limit`."""
        found = [
            event
            for event in self._read()
            if event["seq"] > since and (vm is None or event["vm"] == vm)
        ]
        return found[-limit:]

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

    def _read(self) -> list[dict[str, Any]]:
        events = []
        for path in (self._path + ".1", self._path):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    for line in file:
                        try:
                            event = json.loads(line)
                        except ValueError:
                            continue  # a line cut off by a power loss
                        if isinstance(event, dict) and isinstance(event.get("seq"), int):
                            events.append(event)
            except FileNotFoundError:
                continue
        return events
