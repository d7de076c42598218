"""How far this host saw the arbiter's history, in one small durable file.

The agent writes it, workers read it before they ask: with it also a side that has not asked for
months notices that the arbiter was wiped or restored from a backup.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from kvmft.adapters.durable import write_durably
from kvmft.core.position import Position
from kvmft.ports import Health

SEEN_PATH = "/var/lib/kvmft/arbiter-seen.json"


@dataclass
class Seen:
    """The arbiter's identity and its highest revisions: of all of it under "", or per VM."""

    arbiter: str
    revisions: dict[str, int] = field(default_factory=dict)

    def position(self, uuid: str) -> Position | None:
        """What an answer about VM `uuid` must not be older than."""
        revision = self.revisions.get(uuid, self.revisions.get(""))
        return None if revision is None else Position(self.arbiter, revision)

    def after(self, health: Health) -> Seen:
        """The same, with what a probe saw."""
        revisions = dict(self.revisions)
        for scope, revision in health.revisions.items():
            revisions[scope] = max(revision, revisions.get(scope, 0))
        return Seen(self.arbiter, revisions)


def load_seen(path: str) -> Seen | None:
    """What the file says; None without it, or when it is damaged: it only adds to other checks."""
    try:
        with open(path, "rb") as file:
            value = json.load(file)
        return Seen(str(value["arbiter"]), {str(k): int(v) for k, v in value["revisions"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save_seen(path: str, seen: Seen) -> None:
    """Replace the file durably."""
    value = {"arbiter": seen.arbiter, "revisions": seen.revisions}
    write_durably(path, json.dumps(value, indent=1, sort_keys=True).encode())
