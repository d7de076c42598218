"""userfaultfd in asynchronous write-protect mode, driven from outside its process.

The ioctls act on the memory of the process that created the descriptor, whoever calls them
(fs/userfaultfd.c uses ctx->mm).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from kvmft.adapters import linux
from kvmft.errors import KvmftError

FEATURES = (
    linux.UFFD_FEATURE_PAGEFAULT_FLAG_WP
    | linux.UFFD_FEATURE_WP_HUGETLBFS_SHMEM
    | linux.UFFD_FEATURE_WP_UNPOPULATED
    | linux.UFFD_FEATURE_WP_ASYNC
)


class Userfault:
    """A fetched userfaultfd. Addresses are virtual addresses of its process, sizes in bytes."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        try:
            fcntl.ioctl(
                descriptor,
                linux.UFFDIO_API,
                bytearray(struct.pack("QQQ", linux.UFFD_API, FEATURES, 0)),
            )
        except OSError as error:
            # A descriptor left by an agent that died has done this handshake before.
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            self._prove_initialised(error)

    def _prove_initialised(self, cause: OSError) -> None:
        try:
            fcntl.ioctl(
                self._fd, linux.UFFDIO_UNREGISTER, bytearray(struct.pack("QQ", 0, linux.PAGE))
            )
        except OSError as error:
            if error.errno == errno.EINVAL and cause.errno == errno.EINVAL:
                return
        raise KvmftError(
            "kernel_without_wp_async",
            "This kernel's userfaultfd has no asynchronous write protection.",
            "Boot Linux 6.7 or newer (Debian 12: linux-image-amd64 of bookworm-backports).",
        )

    def register(self, start: int, size: int) -> None:
        """Track writes to the range."""
        request = struct.pack("QQQQ", start, size, linux.UFFDIO_REGISTER_MODE_WP, 0)
        try:
            fcntl.ioctl(self._fd, linux.UFFDIO_REGISTER, bytearray(request))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise KvmftError(
                    "memory_tracked",
                    f"Guest memory at {start:#x} is tracked already by another process.",
                    "Wait until the migration, snapshot, forecast or protection that does so has ended.",
                ) from error
            raise KvmftError(
                "userfault_register",
                f"Guest memory at {start:#x} cannot be write-tracked: {error}.",
                "Memory on hugetlbfs, files or devices is not supported; use ordinary memory.",
            ) from error

    def unregister(self, start: int, size: int) -> None:
        """Stop tracking the range and drop its protection."""
        fcntl.ioctl(self._fd, linux.UFFDIO_UNREGISTER, bytearray(struct.pack("QQ", start, size)))

    def protect(self, start: int, size: int) -> None:
        """Write-protect the range: from now on PAGEMAP_SCAN tells what was written."""
        request = struct.pack("QQQ", start, size, linux.UFFDIO_WRITEPROTECT_MODE_WP)
        fcntl.ioctl(self._fd, linux.UFFDIO_WRITEPROTECT, bytearray(request))

    def close(self) -> None:
        """Close our duplicate; tracking goes on while its process holds its own."""
        os.close(self._fd)
