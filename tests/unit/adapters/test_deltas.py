"""Pages as changed words: read with no trust, and written only when all of a checkpoint is good (I7)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmft.adapters import deltas
from kvmft.adapters.deltas import Deltas
from kvmft.adapters.linux import PAGE
from kvmft.adapters.memory import RamBlock, StandbyMemory
from kvmft.core.wire import WireError, delta_head
from kvmft.errors import KvmftError

WORD = b"\x01\x02\x03\x04\x05\x06\x07\x08"


def section(*pages: tuple[int, int, set[int]], words: int | None = None) -> bytes:
    """A section of (block, page, marked words), all of which become WORD; `words` of them are there."""
    bitmaps = b"".join(sum(1 << word for word in marked).to_bytes(64, "little") for __, __, marked in pages)
    count = sum(len(marked) for __, __, marked in pages) if words is None else words
    places = b"".join((block << 32 | page).to_bytes(8, "little") for block, page, __ in pages)
    return delta_head(len(pages), count) + places + bitmaps + WORD * count


@pytest.fixture
def standby() -> Iterator[StandbyMemory]:
    """Two blocks, of 3 pages and of 1."""
    files = [os.memfd_create("standby") for __ in range(2)]
    blocks = []
    for file, pages in zip(files, (3, 1), strict=True):
        os.ftruncate(file, pages * PAGE)
        blocks.append(RamBlock(str(file), 0, pages * PAGE, "memfd", f"/proc/self/fd/{file}"))
    made = StandbyMemory(os.getpid(), blocks)
    yield made
    made.close()
    for file in files:
        os.close(file)


def content(standby: StandbyMemory) -> bytes:
    return b"".join(bytes(standby.view(index, 0, block.size)) for index, block in enumerate(standby.blocks))


def run(block: int, offset: int, length: int) -> np.ndarray:
    return np.array([[block, offset, length]], dtype=np.uint64)


def test_marked_words_are_set_and_no_other(standby: StandbyMemory) -> None:
    good = Deltas.read(memoryview(section((1, 0, {0, 511}), (0, 2, {7}))))
    standby.apply(run(0, PAGE, PAGE), memoryview(b"x" * PAGE), good)
    want = bytearray(4 * PAGE)
    want[PAGE : 2 * PAGE] = b"x" * PAGE
    for word in (2 * 512 + 7, 3 * 512, 3 * 512 + 511):
        want[8 * word : 8 * word + 8] = WORD
    assert content(standby) == bytes(want)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (section((2, 0, {1})), "outside the standby's memory"),
        (section((1 << 31, 0, {1})), "outside the standby's memory"),
        (section((0, 3, {1})), "outside the standby's memory"),
        (section((1, 1, {1})), "outside the standby's memory"),
        (section((0, (1 << 32) - 1, {1})), "outside the standby's memory"),
        (section((0, 1, {1, 2}), words=1), "do not mark the 1 words"),
        (section((0, 1, {1, 2}), words=3), "do not mark the 3 words"),
        (section((0, 1, {1}), (0, 0, {1}), (0, 1, {2})), "named twice"),
        (section((0, 1, {1}), (0, 1, {1})), "named twice"),
    ],
    ids=["block", "large block", "page", "page of a small block", "large page", "word too few", "word too many", "twice", "twice running"],
)
def test_what_is_malformed_changes_nothing(standby: StandbyMemory, bad: bytes, why: str) -> None:
    with pytest.raises(KvmftError, match=why) as caught:
        standby.apply(run(0, 0, PAGE), memoryview(b"x" * PAGE), Deltas.read(memoryview(bad)))
    assert caught.value.code == "memory_table_malformed" and "same kvmft version" in caught.value.remedy
    assert content(standby) == bytes(4 * PAGE)


@pytest.mark.parametrize(
    ("block", "offset", "length", "sent"),
    [(2, 0, PAGE, PAGE), (0, 3 * PAGE, PAGE, PAGE), (0, 0, PAGE, 0), (1, 0, 2 * PAGE, 2 * PAGE), (1, (1 << 64) - PAGE, PAGE, PAGE)],
)
def test_a_wrong_run_keeps_good_deltas_out_too(standby: StandbyMemory, block: int, offset: int, length: int, sent: int) -> None:
    with pytest.raises(KvmftError, match="outside"):
        standby.apply(run(block, offset, length), memoryview(bytes(sent)), Deltas.read(memoryview(section((0, 0, {1})))))
    assert content(standby) == bytes(4 * PAGE)


def test_pages_without_a_run_are_refused(standby: StandbyMemory) -> None:
    with pytest.raises(KvmftError):
        standby.apply(np.zeros((0, 3), dtype=np.uint64), memoryview(bytes(PAGE)))


@given(st.binary(max_size=400))
def test_random_bytes_are_refused_or_harmless(data: bytes) -> None:
    try:
        found = Deltas.read(memoryview(data))
        found.check([3 * PAGE, PAGE])
    except (WireError, KvmftError):
        return
    found.apply([np.zeros(3 * 512, dtype=np.uint64), np.zeros(512, dtype=np.uint64)])


@given(st.lists(st.sets(st.integers(0, 511), max_size=512), max_size=5))
def test_bitmaps_tell_what_they_were_made_of(marked: list[set[int]]) -> None:
    differs = np.zeros((len(marked), 512), dtype=bool)
    for row, words in zip(differs, marked, strict=True):
        row[list(words)] = True
    bitmaps = deltas.bitmaps_of(differs)
    assert deltas.ones(bitmaps).tolist() == [len(words) for words in marked]
    assert deltas.positions(bitmaps).tolist() == [512 * row + word for row, words in enumerate(marked) for word in sorted(words)]
