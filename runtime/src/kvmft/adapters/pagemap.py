"""PAGEMAP_SCAN (Linux 6.7): which pages of a range were written, and re-protect them at once."""

from __future__ import annotations

import fcntl
import os
import struct

import numpy as np

from kvmft.adapters import linux

_ARG = struct.Struct("12Q")
_VECTOR = 1 << 15


class Pagemap:
    """The pagemap of process `pid`. Results are (n, 2) uint64 arrays of start and end addresses."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._vector = np.zeros((_VECTOR, 3), dtype=np.uint64)
        self._address = self._vector.ctypes.data

    def scan(
        self, start: int, end: int, flags: int, mask: int = 0, anyof: int = 0
    ) -> list[np.ndarray]:
        """The ranges in [start, end) whose page categories have all of `mask` and any of `anyof`."""
        results: list[np.ndarray] = []
        argument = bytearray(_ARG.size)
        while start < end:
            _ARG.pack_into(argument, 0, _ARG.size, flags, start, end, 0, self._address, _VECTOR, 0,
                           0, mask, anyof, mask | anyof)  # fmt: skip
            count = fcntl.ioctl(self._fd, linux.PAGEMAP_SCAN, argument)
            start = _ARG.unpack_from(argument)[4]
            if count:
                results.append(self._vector[:count, :2].copy())
        return results

    def written(self, start: int, end: int, protect: bool = True) -> list[np.ndarray]:
        """Ranges written since they were last protected; re-protected in the same call."""
        flags = linux.PM_SCAN_CHECK_WPASYNC | (linux.PM_SCAN_WP_MATCHING if protect else 0)
        return self.scan(start, end, flags, mask=linux.PAGE_IS_WRITTEN)

    def populated(self, start: int, end: int) -> list[np.ndarray]:
        """Ranges that have memory or swap behind them."""
        return self.scan(start, end, 0, anyof=linux.PAGE_IS_PRESENT | linux.PAGE_IS_SWAPPED)

    def close(self) -> None:
        """Close the pagemap."""
        os.close(self._fd)
