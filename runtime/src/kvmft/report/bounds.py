"""What a machine can do at best: copy pages, and encrypt."""

from __future__ import annotations

import ctypes
import re
import subprocess
import time

import numpy as np

from kvmft.adapters import linux
from kvmft.errors import KvmftError

PAGE = linux.PAGE
CIPHER_SECONDS = 2


def memcpy(pages: int, runs: int) -> list[float]:
    """Milliseconds of each of `runs` plain copies of so many pages, one after the other in memory."""
    source, target = (np.ones(pages * PAGE, dtype=np.uint8) for __ in range(2))
    found = []
    for __ in range(runs):
        begun = time.perf_counter()
        ctypes.memmove(target.ctypes.data, source.ctypes.data, pages * PAGE)
        found.append((time.perf_counter() - begun) * 1000)
    return found


def cipher(nice: int = 0) -> float:
    """Bytes a second of AES-256-GCM in records of 16 KiB, as `openssl speed` has it on one core.

    `nice` is how far it steps back behind other work. KvmftError when there is no such program, or it prints no figure.
    """
    command = ["nice", "-n", str(nice), "openssl", "speed", "-mr", "-elapsed", "-seconds", str(CIPHER_SECONDS),
               "-bytes", "16384", "-evp", "aes-256-gcm"]  # fmt: skip
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = str(error)
    found = re.search(r"^\+F:\d+:[^:]+:([\d.]+)", said, re.MULTILINE)
    if found is None:
        raise KvmftError("cipher_unknown", f"`openssl speed` gave no figure: {said[-200:]}.",
                         "Install openssl.")  # fmt: skip
    return float(found[1])
