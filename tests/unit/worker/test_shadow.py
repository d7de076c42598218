"""What is sent of a page is enough: after each epoch the secondary's memory is the primary's, page by page (I3)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from kvmft.adapters.deltas import WORDS, Deltas
from kvmft.adapters.linux import PAGE
from kvmft.adapters.memory import RamBlock, StandbyMemory
from kvmft.worker.shadow import HALF, STAYS, Encoded, Shadow

BLOCKS = (37, 1, 64, 3)
"""Pages of each RAM block."""
TABLE = np.zeros((0, 3), dtype=np.uint64)
NOTHING = (TABLE, memoryview(b""))


class Pair:
    """A VM's memory here, a standby's there, and the shadow between them."""

    def __init__(self, slots: int, blocks: tuple[int, ...] = BLOCKS) -> None:
        self.here = [np.zeros((pages, WORDS), dtype=np.uint64) for pages in blocks]
        self._files = [os.memfd_create("standby") for __ in blocks]
        for file, pages in zip(self._files, blocks, strict=True):
            os.ftruncate(file, pages * PAGE)
        self.there = StandbyMemory(os.getpid(), [
            RamBlock(str(number), 0, pages * PAGE, "memfd", f"/proc/self/fd/{file}")
            for number, (pages, file) in enumerate(zip(blocks, self._files, strict=True))
        ])  # fmt: skip
        self.shadow = Shadow([pages * PAGE for pages in blocks], slots * PAGE)

    def copy(self, pages: list[tuple[int, int]]) -> tuple[np.ndarray, memoryview]:
        """Table and bytes of (block, page), in order, neighbours in one run."""
        rows: list[list[int]] = []
        for block, page in sorted(pages):
            if rows and rows[-1][0] == block and rows[-1][1] + rows[-1][2] == page * PAGE:
                rows[-1][2] += PAGE
            else:
                rows.append([block, page * PAGE, PAGE])
        data = b"".join(self.here[block][page].tobytes() for block, page in sorted(pages))
        return np.array(rows, dtype=np.uint64).reshape(-1, 3), memoryview(bytearray(data))

    def send(self, copied: tuple[np.ndarray, memoryview], late: tuple[np.ndarray, memoryview] = NOTHING) -> Encoded:
        """One epoch, over the wire; applied twice, as after a kill."""
        sent = self.shadow.encode(copied, late)
        data = memoryview(b"".join(sent.data))
        deltas = Deltas.read(memoryview(sent.deltas)) if sent.deltas else None
        for __ in range(2):
            self.there.apply(sent.table, data, deltas)
        return sent

    def epoch(self, *pages: tuple[int, int]) -> Encoded:
        return self.send(self.copy(list(pages)))

    def differing(self) -> list[tuple[int, int]]:
        return [
            (block, page)
            for block, content in enumerate(self.here)
            for page in range(len(content))
            if bytes(self.there.view(block, page * PAGE, (page + 1) * PAGE)) != content[page].tobytes()
        ]

    def close(self) -> None:
        self.there.close()
        for file in self._files:
            os.close(file)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair(slots=1000)
    yield made
    made.close()


@pytest.mark.parametrize("slots", [1, 7, 60, 1000])
@pytest.mark.parametrize("seed", range(6))
def test_any_epochs_leave_both_sides_equal(slots: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    made = Pair(slots)
    every = [(block, page) for block, pages in enumerate(BLOCKS) for page in range(pages)]
    hot = [every[index] for index in random.choice(len(every), 12, replace=False)]

    def write(block: int, page: int) -> None:
        content = made.here[block][page]
        kind = random.integers(0, 6)
        if kind == 0:
            content[:] = random.integers(0, 1 << 63, WORDS, dtype=np.uint64)
        elif kind == 1:
            content[:] = 0
        elif kind == 2:
            content[random.choice(WORDS, HALF + int(random.integers(-1, 2)), replace=False)] += np.uint64(1)
        elif kind > 3:
            content[random.integers(0, WORDS, random.integers(1, 9))] += np.uint64(1)

    def some(share: float) -> list[tuple[int, int]]:
        cold = [every[index] for index in np.flatnonzero(random.random(len(every)) < share)]
        return sorted(set(cold) | {each for each in hot if random.random() < 0.8})

    monkeypatch.setattr(made.shadow._saving, "tries", lambda: random.random() < 0.8)
    try:
        for __ in range(80):
            written = some(random.choice([0.0, 0.05, 0.5]))
            for place in written:
                write(*place)
            copied = made.copy(written)
            again = [place for place in written if random.random() < 0.2]
            written = sorted({*again, *(place for place in every if random.random() < 0.02)})
            for place in written:
                write(*place)
            made.send(copied, made.copy(written))
            assert made.differing() == []
    finally:
        made.close()


def test_only_what_is_new_is_sent(pair: Pair) -> None:
    pair.here[0][5, :] = 7
    assert len(b"".join(pair.epoch((0, 5), (0, 6)).data)) == 2 * PAGE, "unknown pages go whole"
    pair.here[0][5, 100] = 8
    sent = pair.epoch((0, 5), (0, 6))
    assert sent.data[0].nbytes == 0 and len(sent.deltas) == 16 + 8 + 64 + 8
    assert sent.saved == 2 * PAGE - len(sent.deltas)
    assert pair.epoch((0, 5), (0, 6)).deltas == b"", "of unchanged pages nothing goes"
    assert pair.differing() == []


def test_half_a_page_goes_as_words_and_more_goes_whole(pair: Pair) -> None:
    pair.epoch((2, 1), (2, 2))
    pair.here[2][1, :HALF] = 1
    pair.here[2][2, : HALF + 1] = 1
    sent = pair.epoch((2, 1), (2, 2))
    assert sent.table.tolist() == [[2, 2 * PAGE, PAGE]] and len(sent.deltas) == 16 + 72 + 8 * HALF
    assert pair.differing() == []
    pair.here[2][2, 3] = 9
    assert pair.epoch((2, 2)).table.tolist() == [], "what went whole is known from then on"
    assert pair.differing() == []


def test_of_a_page_that_is_copied_twice_the_later_content_counts(pair: Pair) -> None:
    for first, later in (((0, 3), (0, 3)), ((0, 3), (0, 4))):
        pair.epoch(first)
        pair.here[0][3, 0] += np.uint64(1)
        copied = pair.copy([first])
        pair.here[0][3, 0] = 0  # back to what the secondary has
        pair.here[0][later[1], 5] += np.uint64(1)
        pair.send(copied, pair.copy(sorted({first, later})))
        assert pair.differing() == []


def test_runs_of_whole_pages_end_with_their_block(pair: Pair) -> None:
    pair.epoch((0, 0))
    pair.here[0][36], pair.here[1][0], pair.here[2][0] = 1, 2, 3
    sent = pair.epoch((0, 0), (0, 36), (1, 0), (2, 0))
    assert sent.table.tolist() == [[0, 36 * PAGE, PAGE], [1, 0, PAGE], [2, 0, PAGE]]
    assert pair.differing() == []


def test_what_is_sent_without_looking_is_forgotten(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.epoch((0, 1), (0, 2))
    monkeypatch.setattr(pair.shadow._saving, "tries", lambda: False)
    pair.here[0][1, 0] = 5
    assert pair.epoch((0, 1)).deltas == b""
    monkeypatch.undo()
    pair.here[0][1, 0] = 0  # what a slot that was not forgotten would hold: nothing would be sent
    sent = pair.epoch((0, 1), (0, 2))
    assert sent.table.tolist() == [[0, PAGE, PAGE]]
    assert pair.differing() == []


def test_a_page_that_lost_its_slot_is_unknown() -> None:
    made = Pair(slots=2)
    made.epoch((0, 1), (0, 2))
    for __ in range(STAYS):
        made.epoch((0, 3), (0, 4))  # there is no slot for these until the others were of no use for a while
    made.here[0][1, 0] = 9
    sent = made.epoch((0, 1))
    assert sent.table.tolist() == [[0, PAGE, PAGE]] and made.differing() == []
    made.close()


def test_pages_in_use_keep_their_slots_when_more_are_written_than_there_are_slots() -> None:
    made = Pair(slots=40)
    pages = [(2, page) for page in range(60)]
    for __ in range(10):
        for block, page in pages:
            made.here[block][page, 7] += np.uint64(1)
        sent = made.epoch(*pages)
        assert made.differing() == []
    assert len(b"".join(sent.data)) == 20 * PAGE, "forty pages as words, the others whole"
    made.close()


def test_a_long_life_allocates_nothing() -> None:
    made = Pair(slots=50)
    arrays = [value for value in vars(made.shadow).values() if isinstance(value, np.ndarray)]
    for number in range(300):
        made.here[2][number % 64, 1] += np.uint64(1)
        made.epoch(*((2, page) for page in range(64)))
    assert [value for value in vars(made.shadow).values() if isinstance(value, np.ndarray)] == [
        pytest.approx(each) for each in arrays
    ]
    made.close()
