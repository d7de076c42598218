"""Standbys that were given up while their host could not be told: it is told when it answers again.

Otherwise such a standby would ask the arbiter for a record that is gone, and take memory, for ever.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from kvmft.adapters.durable import write_durably
from kvmft.errors import KvmftError

EVERY = 5.0
"""Seconds between tries."""


@dataclass(frozen=True)
class Farewell:
    """The standby of `vm` on host `peer`, made for `session`, is of no use any more."""

    vm: str
    peer: str
    session: str


class Farewells:
    """What is still to be told, in one durable file `path`.

    `tell` asks a peer's agent; KvmftError when it does not answer or cannot let go yet. `note` hears
    of what cannot be stored or was told late, as (vm, event, reason).
    """

    def __init__(
        self,
        path: str,
        tell: Callable[[Farewell], Awaitable[None]],
        note: Callable[[str, str, str], None],
    ) -> None:
        self._path = path
        self._tell = tell
        self._note = note
        self.waiting = self._load()

    async def say(self, farewell: Farewell) -> None:
        """Tell the peer now, or as soon as it can be told."""
        try:
            await self._tell(farewell)
        except KvmftError as error:
            self._note(farewell.vm, "peer_not_told", f"{error} It is told when it answers.")
            self.waiting = [*self.waiting, farewell]
            self._store()

    async def run(self) -> None:
        """Try what waits again and again, until cancelled."""
        while True:
            await self.again()
            await asyncio.sleep(EVERY)

    async def again(self) -> None:
        """Try once what waits."""
        for farewell in list(self.waiting):
            try:
                await self._tell(farewell)
            except KvmftError:
                continue
            self._note(farewell.vm, "peer_told", f"{farewell.peer} let its standby go")
            self.waiting = [each for each in self.waiting if each != farewell]
            self._store()

    def _load(self) -> list[Farewell]:
        try:
            with open(self._path, encoding="utf-8") as file:
                return [Farewell(**each) for each in json.load(file)]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError):
            # Only a courtesy is lost; the file is replaced by the next one.
            os.replace(self._path, f"{self._path}.damaged")
            return []

    def _store(self) -> None:
        try:
            write_durably(self._path, json.dumps([asdict(each) for each in self.waiting]).encode())
        except OSError as error:
            self._note("", "failed", f"{self._path} cannot be written: {error}")
