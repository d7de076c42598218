"""The replica's disks: what the device refuses later is known, and is not believed to be there."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmft.core.wire import OP_WRITE
from kvmft.errors import KvmftError
from kvmft.worker.replica import ReplicaDisks

SIZE = 1 << 20


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[ReplicaDisks]:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(SIZE))
    made = ReplicaDisks([(str(path), SIZE)])
    yield made
    made.close()


def write(disks: ReplicaDisks, data: bytes, offset: int = 0) -> None:
    disks.apply(memoryview(struct.pack("<4Q", 0, OP_WRITE, offset, len(data))), memoryview(data))


def test_a_device_that_loses_what_it_took_is_known_and_stays_so(
    disks: ReplicaDisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(disks, b"x" * 4096)
    disks.sync()
    assert disks.fault is None

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    write(disks, b"y" * 4096)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        disks.sync_later()
        with pytest.raises(KvmftError, match="cannot be made durable"):
            disks.sync_end()
    # The kernel tells a write error once; the next flush succeeds and proves nothing.
    disks.sync_later()
    with pytest.raises(KvmftError, match="Input/output error"):
        disks.sync_end()
    assert disks.fault is not None


def test_waiting_for_a_slow_device_leaves_time_for_other_things(
    disks: ReplicaDisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(disks, b"x" * 4096)
    monkeypatch.setattr(os, "fdatasync", lambda _descriptor: time.sleep(0.3))
    looks: list[bool] = []
    disks.sync_later()
    disks.sync_end(lambda: looks.append(True))
    assert len(looks) >= 3


def test_settling_makes_durable_and_then_leaves_the_cache(
    disks: ReplicaDisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    flush, advise = os.fdatasync, os.posix_fadvise
    monkeypatch.setattr(os, "fdatasync", lambda fd: (steps.append("flush"), flush(fd))[1])
    monkeypatch.setattr(os, "posix_fadvise", lambda *a: (steps.append("leave"), advise(*a))[1])
    write(disks, b"z" * 4096, 8192)
    disks.settle()
    assert steps == ["flush", "leave"]
    assert bytes(disks.read(0, 8192, 8196)) == b"zzzz"
