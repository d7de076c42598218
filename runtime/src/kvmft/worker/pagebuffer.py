"""An area that is used again and again for pages on their way."""

from __future__ import annotations

import mmap

FIRST_BUFFER = 64 << 20


class PageBuffer:
    """One reusable area for copied pages; it grows, and its old content is not kept."""

    def __init__(self, size: int = FIRST_BUFFER) -> None:
        self._area = mmap.mmap(-1, size)

    def view(self, size: int) -> memoryview:
        """A writable view of `size` bytes."""
        if size > len(self._area):
            self._area = mmap.mmap(-1, -(-size // FIRST_BUFFER) * FIRST_BUFFER)
        return memoryview(self._area)[:size]
