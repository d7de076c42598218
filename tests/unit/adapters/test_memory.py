"""Tracking, reading and comparing another process's memory, on a real process and kernel."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from kvmft.adapters import linux, memory
from kvmft.adapters.memory import GuestMemory, RamBlock, StandbyMemory, drop_zero_pages
from kvmft.errors import KvmftError

PAGES = 64
SIZE = PAGES * linux.PAGE
CHILD = f"""
import ctypes, mmap, os, sys
if sys.argv[1] == "anon":
    area = mmap.mmap(-1, {SIZE}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    descriptor = -1
else:
    descriptor = os.memfd_create("ram")
    os.ftruncate(descriptor, {SIZE})
    area = mmap.mmap(descriptor, {SIZE})
print(ctypes.addressof(ctypes.c_char.from_buffer(area)), descriptor, flush=True)
for line in sys.stdin:
    for number in line.split():
        area[int(number) * 4096 + 11] = 1 + int(number)
    print("done", flush=True)
"""


class Toucher:
    """A process that writes the pages it is told."""

    def __init__(self, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        start, descriptor = map(int, self.process.stdout.readline().split())
        path = None if descriptor < 0 else f"/proc/{self.process.pid}/fd/{descriptor}"
        self.block = RamBlock("ram", start, SIZE, "memfd" if path else "anon", path)

    def touch(self, *pages: int) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, pages)) + "\n")
        self.process.stdin.flush()
        self.process.stdout.readline()


@pytest.fixture(params=["anon", "memfd"])
def toucher(request: pytest.FixtureRequest) -> Iterator[Toucher]:
    made = Toucher(request.param)
    yield made
    made.process.kill()
    made.process.wait()


def pages_of(guest: GuestMemory, ranges: np.ndarray) -> list[int]:
    table = guest.to_table(ranges)
    return [
        page
        for __, offset, length in table.tolist()
        for page in range(offset // linux.PAGE, (offset + length) // linux.PAGE)
    ]


def test_a_scan_finds_exactly_the_pages_written_since_the_last_one(toucher: Toucher) -> None:
    toucher.touch(1, 2, 3)
    guest = GuestMemory()
    guest.attach(toucher.process.pid, [toucher.block])
    assert pages_of(guest, guest.collect()) == []
    toucher.touch(5, 6, 40)
    assert pages_of(guest, guest.collect()) == [5, 6, 40]
    assert pages_of(guest, guest.collect()) == [], "the scan did not re-protect what it returned"
    toucher.touch(6)
    assert pages_of(guest, guest.collect()) == [6]
    guest.detach()


def test_without_reprotection_the_scan_is_not_exact(toucher: Toucher) -> None:
    """The test above can fail: this is what it sees when the re-protecting flag is taken out."""
    guest = GuestMemory()
    guest.attach(toucher.process.pid, [toucher.block])
    toucher.touch(5)
    guest.collect(protect=False)
    assert pages_of(guest, guest.collect(protect=False)) == [5]
    guest.detach()


def test_pages_that_another_process_put_into_a_memfd_are_tracked_and_populated() -> None:
    """A standby's memory was written through our mapping; QEMU's page tables know nothing of it."""
    toucher = Toucher("memfd")
    standby = StandbyMemory(toucher.process.pid, [toucher.block])
    data = memoryview(b"\x05" * linux.PAGE)
    standby.apply(np.array([[0, 9 * linux.PAGE, linux.PAGE]], dtype=np.uint64), data)
    guest = GuestMemory()
    guest.attach(toucher.process.pid, [toucher.block])
    assert 9 in pages_of(guest, guest.populated())
    toucher.touch(9)
    assert pages_of(guest, guest.collect()) == [9]
    guest.detach()
    toucher.process.kill()
    toucher.process.wait()


def test_what_is_read_and_applied_is_equal_page_by_page() -> None:
    source, target = Toucher("anon"), Toucher("memfd")
    source.touch(0, 7, 8, 63)
    guest = GuestMemory()
    guest.attach(source.process.pid, [source.block])
    ranges = guest.populated()
    buffer = memoryview(bytearray(int((ranges[:, 1] - ranges[:, 0]).sum())))
    assert guest.read(ranges, buffer) == len(buffer)
    standby = StandbyMemory(target.process.pid, [target.block])
    standby.apply(guest.to_table(ranges), buffer)
    assert (guest.page_hashes(0) == standby.page_hashes(0)).all()
    source.touch(30)
    assert np.flatnonzero(guest.page_hashes(0) != standby.page_hashes(0)).tolist() == [30]
    guest.detach()
    for each in (source, target):
        each.process.kill()
        each.process.wait()


def test_detach_leaves_the_process_as_it_was(toucher: Toucher) -> None:
    directory = f"/proc/{toucher.process.pid}/fd"
    before = sorted(os.listdir(directory))
    guest = GuestMemory()
    guest.attach(toucher.process.pid, [toucher.block])
    guest.detach()
    assert sorted(os.listdir(directory)) == before
    toucher.touch(1)


def test_a_userfaultfd_left_by_a_dead_agent_is_used_again(toucher: Toucher) -> None:
    first = GuestMemory()
    first.attach(toucher.process.pid, [toucher.block])
    second = GuestMemory()
    second.attach(toucher.process.pid, [toucher.block])
    toucher.touch(4)
    assert pages_of(second, second.collect()) == [4]
    second.detach()


def test_a_table_outside_the_memory_changes_nothing() -> None:
    toucher = Toucher("memfd")
    standby = StandbyMemory(toucher.process.pid, [toucher.block])
    before = standby.page_hashes(0).tolist()
    good, data = [0, 0, linux.PAGE], memoryview(b"\x01" * 2 * linux.PAGE)
    for bad in ([1, 0, linux.PAGE], [0, SIZE, linux.PAGE], [0, 2**63, linux.PAGE],
                [0, 0, 2**63], [0, SIZE - 1, linux.PAGE]):  # fmt: skip
        with pytest.raises(KvmftError, match="outside the standby's memory"):
            standby.apply(np.array([good, bad], dtype=np.uint64), data)
    assert standby.page_hashes(0).tolist() == before
    toucher.process.kill()
    toucher.process.wait()


def test_zero_pages_are_dropped_and_the_rest_keeps_its_place() -> None:
    data = bytearray(6 * linux.PAGE)
    for page in (1, 2, 5):
        data[page * linux.PAGE] = page
    table = np.array([[0, 0x10000, 4 * linux.PAGE], [1, 0, 2 * linux.PAGE]], dtype=np.uint64)
    kept, rest = drop_zero_pages(table, memoryview(data))
    assert kept.tolist() == [[0, 0x11000, 2 * linux.PAGE], [1, linux.PAGE, linux.PAGE]]
    assert [rest[n * linux.PAGE] for n in range(3)] == [1, 2, 5]


def test_the_memory_of_a_dead_process_is_one_clear_error(toucher: Toucher) -> None:
    guest = GuestMemory()
    guest.attach(toucher.process.pid, [toucher.block])
    toucher.process.kill()
    toucher.process.wait()
    ranges = np.array([[toucher.block.hva, toucher.block.hva + linux.PAGE]], dtype=np.uint64)
    with pytest.raises(KvmftError, match="cannot be read"):
        guest.read(ranges, memoryview(bytearray(linux.PAGE)))
    guest.detach()


def test_more_ranges_than_one_call_takes_are_read_in_order() -> None:
    pages = 5000
    area = mmap.mmap(-1, pages * linux.PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for page in range(pages):
        area[page * linux.PAGE] = page % 251
    guest = GuestMemory()
    guest._pid = os.getpid()
    first = start + np.arange(0, pages, 2, dtype=np.uint64) * np.uint64(linux.PAGE)
    ranges = np.column_stack((first, first + np.uint64(linux.PAGE)))
    buffer = memoryview(bytearray(len(ranges) * linux.PAGE))
    guest.read(ranges, buffer)
    assert [buffer[n * linux.PAGE] for n in range(len(ranges))] == [
        2 * n % 251 for n in range(len(ranges))
    ]
    assert len(ranges) > 2 * linux.UIO_MAXIOV and memory.hash_pages(buffer).shape == (len(ranges),)
