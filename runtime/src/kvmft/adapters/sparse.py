"""Holes in files: where they are, and making them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
"""linux/falloc.h"""

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def data_extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The extents [start, end) of a file's first `size` bytes that have data behind them."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole up to the end
            return
        if start >= size:
            return
        end = min(size, os.lseek(descriptor, start, os.SEEK_HOLE))
        yield start, end
        position = end


def punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Free [offset, offset + length) of a file, so that it reads as zeros; False where its file
    system cannot."""
    flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    return int(_fallocate(descriptor, flags, offset, length)) == 0
