"""Whether it pays to look for what is new in a checkpoint's pages: tried for some epochs, and put off where little was saved.

Looking costs each page about a microsecond, sending a whole one about eight on both sides together. A guest that fills memory
with new content all the time saves nothing, so it is looked at again only now and then. A trial has several epochs because
the first ones know no page yet.
"""

from __future__ import annotations

DELTA_MIB = 64
"""The default of `delta_mib`: memory for what was sent last."""
TRIAL, REST = 8, 56
"""Epochs: how many are tried before it is judged, and for how many it is put off then."""
WORTH = 0.2
"""The least share of the pages' bytes that must be saved."""
MEMORY = 0.8
"""Weight of the epochs before, against the newest."""


class Saving:
    """Asked once before each epoch (`tries`), and told after each that was tried (`found`)."""

    def __init__(self) -> None:
        self._tried = self._rest = 0
        self._size = self._saved = 0.0

    def tries(self) -> bool:
        """Whether the next epoch's pages are to be compared with what was sent before."""
        if self._rest:
            self._rest -= 1
            return False
        return True

    def found(self, size: int, saved: int) -> None:
        """Of `size` bytes of pages, `saved` need not be sent (less than 0: it took more than the pages)."""
        self._tried += 1
        self._size = MEMORY * self._size + size
        self._saved = MEMORY * self._saved + saved
        if self._tried >= TRIAL and self._saved < WORTH * self._size:
            self._tried, self._rest = 0, REST
            self._size = self._saved = 0.0
