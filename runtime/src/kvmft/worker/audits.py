"""Audits on the primary: what was asked for, and what was sent and waits for the secondary's answer."""

from __future__ import annotations

from collections import deque
from typing import Any

from kvmft.worker.link import AgentLink


class Audits:
    """Comparisons of both memories, by the number that the agent gave each. They end in their order."""

    def __init__(self, link: AgentLink) -> None:
        self._link = link
        self._asked: deque[int] = deque()
        self._running: deque[int] = deque()

    def ask(self, identity: int) -> None:
        """The agent wants one, with the next checkpoint."""
        self._asked.append(identity)

    def refuse(self, identity: int, reason: str) -> None:
        """There will be none."""
        self._link.send(msg="audit", id=identity, error=reason)

    def begin(self) -> bool:
        """Whether the checkpoint that is taken now is to be audited."""
        if not self._asked:
            return False
        self._running.append(self._asked.popleft())
        return True

    def result(self, figures: dict[str, Any]) -> None:
        """The secondary has compared."""
        if self._running:
            identity = self._running.popleft()
            self._link.send(**{"msg": "audit", "id": identity, **figures})
