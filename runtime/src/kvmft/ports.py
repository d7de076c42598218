"""What kvmft needs of an arbiter, whatever it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from kvmft.core.arbitration import Reply


class Unclear(Exception):
    """No answer, or none that says what happened. What was asked may still come true, later."""


@dataclass(frozen=True)
class Health:
    """A probe's good news: `detail` for people, the arbiter's identity, and how far its history is.

    `revisions` has one number for the whole arbiter under "", or one per VM under its UUID.
    """

    detail: str
    arbiter: str
    revisions: dict[str, int] = field(default_factory=dict)


class Arbiter(Protocol):
    """One value per key, and an atomic compare-and-swap. Both calls block: call them from a thread.

    `swap` is what safety rests on: it must be linearizable, also against requests that were held
    back for hours, and durable before it answers. It is called once per attempt and never retries by
    itself. `probe` is for people and for checks beforehand; no verdict comes from it.
    """

    def swap(self, key: str, base: bytes | None, new: bytes | None, attempt: int = 0) -> Reply:
        """Replace `base` (None: there is no value) by `new` (None: take the value away).

        The reply's `current` is the value at the moment of refusal. Unclear when in doubt.
        """

    def probe(self, cluster: str, host: str) -> Health:
        """Prove by doing that `swap` would compare; KvmftError names what is wrong."""


def vm_key(cluster: str, uuid: str) -> str:
    """The key of a VM's record."""
    return f"/kvmft/{cluster}/vm/{uuid}"
