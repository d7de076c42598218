"""Looks at the arbiter every few seconds: does it answer, does it compare, is it still the same."""

from __future__ import annotations

import asyncio
import os

from kvmft.adapters.arbiter_client import claims_path
from kvmft.adapters.arbiters import open_arbiter
from kvmft.adapters.seen import SEEN_PATH, Seen, load_seen, save_seen
from kvmft.agent.config import Config
from kvmft.core.position import Position, broken_history
from kvmft.errors import KvmftError
from kvmft.ports import Arbiter, Health

NONE = "no arbiter is configured, so there is no automatic failover: when a host dies, a person decides"
PATIENCE = 8.0
"""Seconds after which a probe that has not come back counts as no answer (a hung mount)."""


class ArbiterWatch:
    """`ok` and `reason` say what the last look found.

    A broken history (wiped, restored, replaced) stays an error as long as any VM here holds a claim
    made under the old one; with fault tolerance off for all of them, the new one is taken.
    """

    def __init__(self, config: Config, claims_root: str, seen_path: str = SEEN_PATH) -> None:
        self.ok: bool | None = None
        self.reason = ""
        self._config = config
        self._claims_root = claims_root
        self._seen_path = seen_path
        self._arbiter = open_arbiter(config.arbiter)
        self._probe: asyncio.Task[str] | None = None

    async def look(self) -> None:
        """Probe once and draw the conclusion; nothing is raised."""
        if self._arbiter is None:
            self.ok, self.reason = False, NONE
            return
        try:
            self.ok, self.reason = True, await self._seen(self._arbiter)
        except KvmftError as error:
            self.ok, self.reason = False, str(error)
        except OSError as error:
            self.ok, self.reason = False, f"What was seen of the arbiter cannot be kept: {error}."

    async def _seen(self, arbiter: Arbiter) -> str:
        """What a probe told, once it is compared with what was seen and kept. One at a time, whoever looks: two would go into
        one file at once, and the older could be taken for a history that went back. And of a hung mount there is one thread
        that waits, and not hundreds."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(asyncio.to_thread(self._probe_and_compare, arbiter))
        try:
            return await asyncio.wait_for(asyncio.shield(self._probe), PATIENCE)
        except TimeoutError:
            raise KvmftError(
                "arbiter_hangs", f"The arbiter has not answered for {PATIENCE:.0f} s.",
                "Check its server and the network to it; with `file`, see whether `ls` of the "
                "directory hangs too.",
            ) from None  # fmt: skip

    def _probe_and_compare(self, arbiter: Arbiter) -> str:
        health = arbiter.probe(self._config.cluster_id, self._config.host)
        self._compare(health)
        return health.detail

    def _compare(self, health: Health) -> None:
        seen = load_seen(self._seen_path)
        now = Seen(health.arbiter, dict(health.revisions))
        if seen is not None:
            broken = self._broken(seen, health)
            if broken is not None and self._claims():
                raise KvmftError(
                    "arbiter_history", f"The arbiter cannot be trusted: {broken}.",
                    "No VM is taken over until a person has decided; see \"When the arbiter was lost\" "
                    "in docs/administration.md.",
                )  # fmt: skip
            if broken is None:
                now = seen.after(health)
        if now != seen:
            save_seen(self._seen_path, now)

    def _broken(self, seen: Seen, health: Health) -> str | None:
        for scope, revision in seen.revisions.items():
            now = Position(health.arbiter, health.revisions.get(scope, 0))
            broken = broken_history(Position(seen.arbiter, revision), now)
            if broken is not None:
                return broken
        return None

    def _claims(self) -> bool:
        """Whether any VM that kvmft looks after here depends on what the arbiter had."""
        try:
            names = os.listdir(self._claims_root)
        except FileNotFoundError:
            return False
        folders = [os.path.join(self._claims_root, name) for name in names]
        return any(
            os.path.exists(claims_path(folder)) and os.path.exists(os.path.join(folder, "state.json"))
            for folder in folders
        )
