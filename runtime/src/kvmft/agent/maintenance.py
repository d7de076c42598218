"""Whether this host is in maintenance: then no new secondary is placed on it. Kept across restarts.

What runs or stands by here already is not touched: taking it away is a person's or a playbook's work.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from kvmft.adapters.durable import remove_durably, write_durably
from kvmft.errors import KvmftError

MAX_REASON = 200
"""Characters of the reason that a person gives."""


class Maintenance:
    """The mark in the file `path`; there is none while the host takes secondaries."""

    def __init__(self, path: str, host: str) -> None:
        self._path = path
        self._host = host
        self.on, self.reason, self.since = self._load()

    def to_dict(self) -> dict[str, Any]:
        """`on`, `reason`, and `since`, Unix time in seconds or None."""
        return {"on": self.on, "reason": self.reason, "since": self.since}

    def change(self, on: bool, reason: str | None, check: bool = False) -> bool:
        """Begin or end it; True when that is a change. A `reason` of None leaves the one that is there.

        With `check` nothing is changed. KvmftError `bad_request` for a reason that is too long.
        """
        if reason is not None and len(reason) > MAX_REASON:
            raise KvmftError("bad_request", f"The reason has {len(reason)} characters; {MAX_REASON} are "
                             "kept.", "Give a shorter one.")  # fmt: skip
        wanted = (on, (self.reason if reason is None else reason) if on else "")
        changed = wanted != (self.on, self.reason)
        if changed and not check:
            since = (self.since if self.on else round(time.time(), 3)) if on else None
            self._store(*wanted, since)
            self.on, self.reason, self.since = *wanted, since
        return changed

    def lacking(self) -> list[KvmftError]:
        """Why this host takes no secondary; empty when it does."""
        if not self.on:
            return []
        why = f" ({self.reason})" if self.reason else ""
        return [KvmftError("maintenance", f"{self._host} is in maintenance{why} and takes no secondary.",
                           f"Take another host, or end it on {self._host}: kvmft maintenance off.")]  # fmt: skip

    def _store(self, on: bool, reason: str, since: float | None) -> None:
        if on:
            text = json.dumps({"reason": reason, "since": since})
            write_durably(self._path, text.encode(), 0o640)
        else:
            remove_durably(self._path)

    def _load(self) -> tuple[bool, str, float | None]:
        """A mark that cannot be read counts: somebody made it."""
        try:
            with open(self._path, encoding="utf-8") as file:
                found = json.load(file)
            return True, str(found["reason"]), float(found["since"])
        except FileNotFoundError:
            return False, "", None
        except (OSError, ValueError, KeyError, TypeError):
            return True, f"{os.path.basename(self._path)} cannot be read", None
