"""What both hosts show of the VM while a row runs: asked several times a second, kept when it changes."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab.faults.ground import SERVERS, Ground, other

EVERY = 0.2
BOTH_CLAIM_SECONDS = 3.0
"""How long a host that lost may still call itself primary: it has to learn of it first."""


@dataclass(frozen=True)
class Shown:
    """What `host` shows from `at` (CLOCK_MONOTONIC, seconds) on; state None: it does not answer."""

    at: float
    host: str
    state: str | None
    reason: str = ""
    role: str = ""
    running: bool = False
    generation: int | None = None


class Timeline:
    """Asks until it is ended."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._ended = threading.Event()
        self.shown: list[Shown] = []
        self._threads = [threading.Thread(target=self._watch, args=(host,), daemon=True)
                         for host in SERVERS]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def _watch(self, host: str) -> None:
        last: Shown | None = None
        while not self._ended.is_set():
            found = self._ground.status(host)
            at = time.monotonic()
            if found is None or "error" in found:
                new = Shown(at, host, None, (found or {}).get("error", ""))
            else:
                new = Shown(at, host, found["state"], found["reason"], found["role"],
                            bool(found["running"]), found["generation"])  # fmt: skip
            if last is None or asdict(new) | {"at": 0} != asdict(last) | {"at": 0}:
                self.shown.append(new)
            last = new
            self._ended.wait(EVERY)

    def end(self, path: Path) -> None:
        """Stop asking; write everything to `path`."""
        self._ended.set()
        for thread in self._threads:
            thread.join(5)
        path.write_text("".join(json.dumps(asdict(each)) + "\n" for each in self.shown))

    def since(self, at: float) -> list[Shown]:
        """What was shown after `at`, in order."""
        return [each for each in list(self.shown) if each.at > at]


def double_claims(shown: list[Shown], end: float) -> float:
    """Longest time in seconds for which both hosts said that the VM runs there, each as its primary.

    A host that does not answer says nothing.
    """
    claims: dict[str, bool] = {}
    longest, since = 0.0, None
    for each in [*sorted(shown, key=lambda entry: entry.at), None]:
        at = end if each is None else each.at
        if since is not None:
            longest = max(longest, at - since)
        if each is None:
            break
        claims[each.host] = each.role == "primary" and each.running
        both = claims.get(each.host, False) and claims.get(other(each.host), False)
        since = (since or each.at) if both else None
    return longest
