"""What the secondary's memory holds, of the pages that were sent last: only what is new in a page crosses the FT log.

Why the shadow is right (I3). A page is known here only after it was sent in a checkpoint of this very connection, and then its
slot holds what that checkpoint made of it. Checkpoints go one after the other: the next one is taken when the one before is
acknowledged (`core.primary`, `_schedule`: `acked < taken` takes none), the secondary applies all of a commit before it takes
the next one (`core.secondary`, `_staged`), and nothing else writes to the standby's memory. So when a checkpoint is encoded,
the secondary holds, or holds before it applies this one, what the slots hold. A checkpoint that is never acknowledged ends
the session, and with it this shadow: each connection has an engine and a shadow of its own, which begins without any page,
whatever the first sync sent and whatever memory the standby was filled from. A page that is sent whole and not taken into a
slot is forgotten.

Applying sets words to their new content, so a commit that is applied twice, or again after a kill in the middle of it, ends the
same. The audits compare both memories by themselves, without this.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kvmft.adapters.deltas import WORD_BITS, WORDS, bitmaps_of, ones, places_of
from kvmft.adapters.linux import PAGE
from kvmft.core.saving import Saving
from kvmft.core.wire import delta_head
from kvmft.worker.pagebuffer import PageBuffer

HALF = WORDS // 2
"""A page with more changed words than these is sent whole."""
CHUNK = 128
"""Pages compared at once: what is compared and what it is compared with stay in the processor's cache."""
NO_RUNS = np.zeros((0, 3), dtype=np.uint64)
STAYS = 2
"""Epochs for which a page keeps its slot after it was of use, whoever else wants it."""


@dataclass(frozen=True)
class Encoded:
    """A checkpoint's memory. `table` (n, 3): runs of whole pages, their bytes in `data` one after the other; `deltas`: the
    section of `core.wire.split_deltas`, empty without such pages. `saved`: bytes of pages that need not be sent. `data` may
    be a buffer that the next checkpoint uses again."""

    table: np.ndarray
    data: list[memoryview]
    deltas: bytes = b""
    saved: int = 0

    @classmethod
    def whole(cls, *parts: tuple[np.ndarray, memoryview]) -> Encoded:
        """Every page as it is."""
        return cls(np.concatenate([table for table, __ in parts]), [data for __, data in parts])


@dataclass
class _Found:
    """What one epoch's deltas are made of."""

    pages: list[np.ndarray] = field(default_factory=list)
    bitmaps: list[np.ndarray] = field(default_factory=list)
    words: list[np.ndarray] = field(default_factory=list)


class Shadow:
    """The content of at most `size` bytes of pages as the secondary has them, in slots of one page."""

    def __init__(self, blocks: list[int], size: int) -> None:
        """`blocks`: sizes of the RAM blocks in bytes, in the order of their indices."""
        # Pages of all blocks are numbered through, with a gap after each block so that no run goes on into the next one.
        sizes = np.array([-(-each // PAGE) + 1 for each in blocks], dtype=np.int64)
        self._first = np.cumsum(sizes) - sizes
        pages, slots = int(sizes.sum()), max(1, size // PAGE)
        # Zeros: only those parts of a large array that are used take memory.
        self._slot = np.zeros(pages, dtype=np.int32)
        """Of each page, the slot's number + 1; 0: unknown."""
        self._marked = np.zeros(pages, dtype=bool)
        self._page = np.full(slots, -1, dtype=np.int64)
        self._used = np.zeros(slots, dtype=np.int64)
        """The epoch in which a slot was of use last."""
        self._content = np.zeros((slots, WORDS), dtype=np.uint64)
        self._hand = 0
        self._epoch = STAYS
        self._saving = Saving()
        self._old = np.empty((CHUNK, WORDS), dtype=np.uint64)
        self._new = np.empty((CHUNK, WORDS), dtype=np.uint64)
        self._differs = np.empty((CHUNK, WORDS), dtype=bool)
        self._whole = (PageBuffer(), PageBuffer(1 << 20))

    def encode(
        self, copied: tuple[np.ndarray, memoryview], late: tuple[np.ndarray, memoryview] = (NO_RUNS, memoryview(b""))
    ) -> Encoded:
        """What to send for the pages of one checkpoint, each a table (n, 3) and the pages' bytes: those `copied` once the VM
        stood still, and then those of `late`, which count where a page is in both. From now on the shadow holds what
        the secondary will have once it applied the result."""
        if not self._saving.tries():
            for table, __ in (copied, late):
                self._forget(self._pages(table))
            return Encoded.whole(copied, late)
        self._epoch += 1
        found = _Found()
        first, then = self._pages(copied[0]), self._pages(late[0])
        parts = [
            self._part(*copied, first, self._not_in(first, then), self._whole[0], found),
            self._part(*late, then, np.ones(len(then), dtype=bool), self._whole[1], found),
        ]
        data = [whole for __, whole in parts]
        deltas = self._section(found)
        size = len(copied[1]) + len(late[1])
        saved = size - sum(map(len, data)) - len(deltas)
        self._saving.found(size, saved)
        return Encoded(np.concatenate([table for table, __ in parts]), data, deltas, saved)

    def _not_in(self, pages: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Which of `pages` are not among `others`, bool."""
        if not len(others):
            return np.ones(len(pages), dtype=bool)
        self._marked[others] = True
        result = ~self._marked[pages]
        self._marked[others] = False
        return np.asarray(result)

    def _part(
        self, table: np.ndarray, data: memoryview, pages: np.ndarray, wanted: np.ndarray, buffer: PageBuffer, found: _Found
    ) -> tuple[np.ndarray, memoryview]:
        """Table and bytes of those `pages` that are sent whole, of those that are `wanted` (bool); the others go to `found`."""
        rows = np.frombuffer(data, dtype=np.uint64).reshape(-1, WORDS)
        slots = self._slot[pages] - 1
        known, unknown = np.flatnonzero(wanted & (slots >= 0)), np.flatnonzero(wanted & (slots < 0))
        many = self._compare(pages, rows, known, slots[known], found)
        if len(unknown):
            self._take_in(pages, rows, unknown)
        if len(unknown) == len(pages):
            return table, data
        whole = np.sort(np.concatenate([unknown, known[many]]))
        if not len(whole):
            return NO_RUNS, memoryview(b"")
        compact = buffer.view(len(whole) * PAGE)
        np.take(rows, whole, axis=0, out=np.frombuffer(compact, dtype=np.uint64).reshape(-1, WORDS), mode="clip")
        return self._runs(pages[whole]), compact

    def _compare(
        self, pages: np.ndarray, rows: np.ndarray, index: np.ndarray, slots: np.ndarray, found: _Found
    ) -> np.ndarray:
        """Compare the rows `index` with what their `slots` hold, which then hold the rows. Which of them changed too much to be
        sent as words (bool); the others, as far as they changed, go to `found`."""
        content = self._content.reshape(-1)
        many = np.zeros(len(index), dtype=bool)
        for begin in range(0, len(index), CHUNK):
            at, where = index[begin : begin + CHUNK], slots[begin : begin + CHUNK]
            new = _gather(rows, at, self._new)
            differs = self._differs[: len(at)]
            np.not_equal(new, _gather(self._content, where, self._old), out=differs)
            bitmaps = bitmaps_of(differs)
            changed = ones(bitmaps)
            much = changed > HALF
            if much.any():
                many[begin : begin + CHUNK] = much
                self._content[where[much]] = new[much]
                differs[much] = False
                self._used[where[~much]] = self._epoch
            else:
                self._used[where] = self._epoch
            marked = np.flatnonzero(differs)
            if len(marked):
                words = new.reshape(-1).take(marked)
                content[(where.take(marked >> WORD_BITS).astype(np.int64) << WORD_BITS) | (marked & (WORDS - 1))] = words
                some = (changed > 0) & ~much
                found.pages.append(pages[at[some]])
                found.bitmaps.append(bitmaps[some])
                found.words.append(words)
        return many

    def _take_in(self, pages: np.ndarray, rows: np.ndarray, index: np.ndarray) -> None:
        """Give slots to pages that were unknown, as far as there are slots that nobody needs."""
        slots = self._free(len(index))
        index = index[: len(slots)]
        before = self._page[slots]
        self._slot[before[before >= 0]] = 0
        self._page[slots] = pages[index]
        self._slot[pages[index]] = slots + 1
        self._used[slots] = self._epoch
        for begin in range(0, len(index), CHUNK):
            self._content[slots[begin : begin + CHUNK]] = _gather(rows, index[begin : begin + CHUNK], self._new)

    def _free(self, count: int) -> np.ndarray:
        """At most `count` slots that were of no use for STAYS epochs. Only so many are looked at, from where the last search
        ended: an epoch's search costs by its pages and not by the size of the shadow."""
        slots = len(self._page)
        look = (self._hand + np.arange(min(slots, 4 * count))) % slots
        found = look[self._used[look] <= self._epoch - STAYS][:count]
        if len(found) == count and count:
            self._hand = int(found[-1] + 1) % slots
        elif len(look):
            self._hand = int(look[-1] + 1) % slots
        return np.asarray(found)

    def _forget(self, pages: np.ndarray) -> None:
        """These are sent as they are: what their slots hold is no longer what the secondary will have."""
        slots = self._slot[pages]
        slots = slots[slots > 0] - 1
        self._slot[self._page[slots]] = 0
        self._page[slots] = -1
        self._used[slots] = 0

    def _pages(self, table: np.ndarray) -> np.ndarray:
        """The numbers (m,) int64 of the pages of `table` (n, 3), in its order."""
        table = table.astype(np.int64)
        counts = table[:, 2] // PAGE
        first = self._first[table[:, 0]] + table[:, 1] // PAGE - (np.cumsum(counts) - counts)
        return np.asarray(np.repeat(first, counts) + np.arange(int(counts.sum())))

    def _runs(self, pages: np.ndarray) -> np.ndarray:
        """The table (n, 3) of `pages`, neighbours joined."""
        begins = np.flatnonzero(np.diff(pages, prepend=-2) != 1)
        lengths = np.diff(np.append(begins, len(pages)))
        blocks, numbers = self._inside(pages[begins])
        return np.column_stack((blocks, numbers * PAGE, lengths * PAGE)).astype(np.uint64)

    def _inside(self, pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """RAM block of each page, and its number in it."""
        blocks = np.searchsorted(self._first, pages, side="right") - 1
        return blocks, pages - self._first[blocks]

    def _section(self, found: _Found) -> bytes:
        if not found.pages:
            return b""
        pages, bitmaps, words = map(np.concatenate, (found.pages, found.bitmaps, found.words))
        places = places_of(*self._inside(pages))
        return b"".join((delta_head(len(pages), len(words)), places, bitmaps, words))


def _gather(rows: np.ndarray, index: np.ndarray, into: np.ndarray) -> np.ndarray:
    """The rows `index`: a view where they follow one another, otherwise copied to the front of `into`."""
    count = len(index)
    if count and int(index[-1]) - int(index[0]) + 1 == count and (count < 3 or (np.diff(index) == 1).all()):
        return rows[int(index[0]) : int(index[-1]) + 1]
    return np.take(rows, index, axis=0, out=into[:count], mode="clip")
