"""Digests of memory pages and disk units: what both sides have alike does not cross the network.

A digest is 128 bits of BLAKE2b, keyed with the session, so that a guest cannot prepare two contents
of one digest. A unit of zeros has the digest zero, which costs no hashing and need not be sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np

from kvmft.core.wire import DIGEST_BYTES, DigestsOf, WireError

_WORDS = DIGEST_BYTES // 8


def digests_of(data: memoryview, unit: int, key: bytes) -> np.ndarray:
    """The digests (n, 2) uint64 of `data`, cut into units of `unit` bytes; the last may be short."""
    count = -(-len(data) // unit)
    result = np.zeros((count, _WORDS), dtype=np.uint64)
    for index in _not_zero(data, unit).tolist():
        piece = data[index * unit : (index + 1) * unit]
        digest = blake2b(piece, digest_size=DIGEST_BYTES, key=key).digest()
        result[index] = np.frombuffer(digest, dtype=np.uint64)
    return result


def _not_zero(data: memoryview, unit: int) -> np.ndarray:
    whole = len(data) // unit
    words = np.frombuffer(data[: whole * unit], dtype=np.uint64).reshape(whole, unit // 8)
    found = np.flatnonzero(words.any(axis=1))
    tail = data[whole * unit :]
    if len(tail) and np.frombuffer(tail, dtype=np.uint8).any():
        found = np.append(found, whole)
    return found


class DigestTable:
    """The peer's digests of one memory block or disk of `size` bytes; at first it is all zeros."""

    def __init__(self, size: int, unit: int) -> None:
        self.unit = unit
        self.units = -(-size // unit)
        self._digests = np.zeros((self.units, _WORDS), dtype=np.uint64)
        self.known = False

    def learn(self, told: DigestsOf) -> None:
        """Take what the peer told; WireError when it is outside of this block or disk."""
        digests = np.frombuffer(told.data, dtype=np.uint64).reshape(-1, _WORDS)
        if told.first + len(digests) > self.units:
            raise WireError(f"Digests of unit {told.first} and on are beyond unit {self.units}.")
        self._digests[told.first : told.first + len(digests)] = digests
        self.known = True

    def same(self, first: int, digests: np.ndarray) -> np.ndarray:
        """Which of `digests` (n, 2), those of units `first` and on, are what the peer has."""
        theirs = self._digests[first : first + len(digests)]
        return np.asarray((theirs == digests).all(axis=1))

    def zero(self, first: int, end: int) -> np.ndarray:
        """Which of the units [first, end) are zeros at the peer."""
        return np.asarray(~self._digests[first:end].any(axis=1))

    def occupied(self) -> np.ndarray:
        """The numbers of the units that are not zeros at the peer."""
        return np.flatnonzero(self._digests.any(axis=1))


def runs_of(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut rising `numbers` into runs [first, end) without gaps."""
    if not len(numbers):
        return
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    starts = np.append(0, breaks + 1)
    ends = np.append(breaks, len(numbers) - 1)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield int(numbers[start]), int(numbers[end]) + 1
