"""How long a VM that shall be protected was not, and how often it failed over; kept in a file.

The file is replaced whole but not synced: after a power cut up to SAVE_EVERY seconds are missing.
A failure to write it is no reason to disturb a VM.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from kvmft.agent.host import boot_id

SAVE_EVERY = 30.0
MONTHS = 13
FILE = "observed.json"


class Exposure:
    """Unprotected seconds of one VM, in all and per calendar month (UTC), and failovers by kind.

    `tick` is called often and says whether the VM is unprotected now. Time in which the agent did
    not run counts as well, if the host did: without an agent nothing is protected.
    """

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, FILE)
        self.seconds = 0.0
        self.months: dict[str, float] = {}
        self.failovers: dict[str, int] = {}
        self._at: float | None = None
        self._saved = 0.0
        self._was = (False, False)
        self._gap = self._load()

    def tick(self, unprotected: bool, wanted: bool) -> None:
        """Add the time since the last tick, when the VM was unprotected then or is now; `wanted`:
        it shall be protected, and this host answers for it."""
        now = time.monotonic()
        if self._at is None:
            passed = self._gap if wanted else 0.0
            counts = wanted
        else:
            passed, counts = now - self._at, unprotected
        self._at = now
        if counts and passed > 0:
            self.seconds += passed
            month = time.strftime("%Y-%m", time.gmtime())
            self.months[month] = self.months.get(month, 0.0) + passed
        if (unprotected, wanted) != self._was or now - self._saved >= SAVE_EVERY:
            self._was = (unprotected, wanted)
            self.save()

    def end(self) -> None:
        """Fault tolerance was turned off: the time from now on does not count."""
        self.tick(False, False)

    def failed_over(self, kind: str) -> None:
        """This host took over: `planned`, `ordered` (by a person) or `unplanned`."""
        self.failovers[kind] = self.failovers.get(kind, 0) + 1
        self.save()

    @property
    def this_month(self) -> float:
        """Unprotected seconds of the current month."""
        return self.months.get(time.strftime("%Y-%m", time.gmtime()), 0.0)

    def save(self) -> None:
        """Write the file; what cannot be written now is written later."""
        self._saved = time.monotonic()
        months = dict(sorted(self.months.items())[-MONTHS:])
        try:
            value = {"unprotected_seconds": round(self.seconds, 1), "months": months,
                     "failovers": self.failovers, "at": time.time(), "wanted": self._was[1],
                     "boot": boot_id()}  # fmt: skip
            os.makedirs(os.path.dirname(self._path), mode=0o750, exist_ok=True)
            with open(f"{self._path}.new", "w", encoding="ascii") as file:
                json.dump(value, file)
            os.replace(f"{self._path}.new", self._path)
        except OSError:
            return

    def _load(self) -> float:
        """Read the file; the seconds since it was written, if the host has run since and the VM
        should have been protected."""
        try:
            with open(self._path, encoding="ascii") as file:
                value: dict[str, Any] = json.load(file)
            self.seconds = float(value["unprotected_seconds"])
            self.months = {str(key): float(each) for key, each in value["months"].items()}
            self.failovers = {str(key): int(each) for key, each in value["failovers"].items()}
            gap = time.time() - float(value["at"])
            counts = value["wanted"] and value["boot"] == boot_id()
            return max(0.0, gap) if counts else 0.0
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0.0
