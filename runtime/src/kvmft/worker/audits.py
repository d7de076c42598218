"""Audits: both sides' memory is compared page by page, at one commit."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from kvmft.core.wire import WireError
from kvmft.worker.link import AgentLink


class Audits:
    """The primary's side: audits that were asked for, and those that wait for the secondary's answer.
    The agent gave each a number; they end in their order."""

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


def compare_pages(epoch: int, ours: np.ndarray, body: memoryview | bytearray) -> dict[str, Any]:
    """The secondary's side: its hashes of main memory (one u64 for each page) against those of an AUDIT
    frame, which must be as many (WireError); the body of AUDIT_RESULT."""
    theirs = np.frombuffer(body, dtype="<u8")
    if len(ours) != len(theirs):
        raise WireError(f"AUDIT of {len(theirs)} pages; the standby has {len(ours)}.")
    different = np.flatnonzero(ours != theirs)
    return {
        "epoch": epoch,
        "pages": len(ours),
        "different": int(len(different)),
        "first_different": int(different[0]) if len(different) else None,
    }
