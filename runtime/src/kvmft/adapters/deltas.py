"""Pages as what changed in them: per page a bitmap of its 512 words of 8 bytes, and the words that it marks.

Shapes: *bitmaps* are (n, 8) uint64, word `w` of a page is bit `w % 64` of number `w // 64`; *words* are (m,) uint64, those of
the first page first, in rising order. Both are the form that crosses the wire (`core.wire.split_deltas`). A word on the wire is
the new content and not a difference, so that applying it twice is the same as once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvmft.adapters.linux import PAGE
from kvmft.core.wire import BITMAP_BYTES, PLACE_BITS, split_deltas
from kvmft.errors import KvmftError

WORDS = PAGE // 8
WORD_BITS = WORDS.bit_length() - 1
BITMAP = BITMAP_BYTES // 8
"""Numbers of a page's bitmap."""
_ONES = np.array([bin(number).count("1") for number in range(1 << 16)], dtype=np.uint8)
_PLACE_BITS = np.uint64(PLACE_BITS)
_PAGE_MASK = np.uint64((1 << PLACE_BITS) - 1)


@dataclass(frozen=True)
class Deltas:
    """`blocks` and `pages` (n,) int64: RAM block and number of the page in it; no page is there twice."""

    blocks: np.ndarray
    pages: np.ndarray
    bitmaps: np.ndarray
    words: np.ndarray

    @classmethod
    def read(cls, section: memoryview) -> Deltas:
        """Read a section of the wire. WireError where its lengths do not add up, KvmftError `memory_table_malformed` where
        its bitmaps mark another number of words than came, or where a page is named twice."""
        places, bitmaps, words = (np.frombuffer(part, dtype="<u8") for part in split_deltas(section))
        bitmaps = bitmaps.reshape(-1, BITMAP)
        if int(ones(bitmaps).sum()) != len(words):
            raise malformed(f"the bitmaps of {len(places)} pages do not mark the {len(words)} words that came")
        # Nearly sorted, which this sort makes use of.
        if not (np.diff(np.sort(places, kind="stable").view(np.int64)) != 0).all():
            raise malformed("a page is named twice")
        blocks, pages = places >> _PLACE_BITS, places & _PAGE_MASK
        return cls(blocks.astype(np.int64), pages.astype(np.int64), bitmaps, words)

    def check(self, sizes: list[int]) -> None:
        """KvmftError `memory_table_malformed` unless all pages are in RAM blocks of these `sizes` (bytes)."""
        limits = np.array(sizes, dtype=np.int64) // PAGE
        if not len(self.blocks):
            return
        if int(self.blocks.max()) >= len(limits) or not (self.pages < limits[self.blocks]).all():
            raise malformed("a page is outside the standby's memory")

    def apply(self, areas: list[np.ndarray]) -> None:
        """Set the words in `areas`, the RAM blocks as uint64; `check` must have passed."""
        marked = positions(self.bitmaps)
        row = marked >> WORD_BITS
        target = self.pages[row] * WORDS + (marked & (WORDS - 1))
        which = self.blocks[row]
        for block in np.unique(self.blocks).tolist():
            mine = which == block
            if mine.all():
                areas[block][target] = self.words
                break
            areas[block][target[mine]] = self.words[mine]


def malformed(what: str) -> KvmftError:
    """A checkpoint's tables make no sense: `what`."""
    return KvmftError(
        "memory_table_malformed",
        f"A memory table of the FT log is malformed: {what}.",
        "Check that both hosts run the same kvmft version.",
    )


def places_of(blocks: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """Blocks and pages (n,) in the form of the wire."""
    return np.asarray((blocks.astype(np.uint64) << _PLACE_BITS) | pages.astype(np.uint64))


def ones(bitmaps: np.ndarray) -> np.ndarray:
    """How many words each bitmap marks, (n,) int64."""
    parts = np.ascontiguousarray(bitmaps).view(np.uint16)
    return np.asarray(_ONES.take(parts).reshape(-1, BITMAP * 4).sum(axis=1, dtype=np.int64))


def positions(bitmaps: np.ndarray) -> np.ndarray:
    """Where the bits of (n, 8) bitmaps are, in rising order: page * 512 + word, int64."""
    marks = np.unpackbits(np.ascontiguousarray(bitmaps).reshape(-1).view(np.uint8), bitorder="little")
    return np.flatnonzero(marks.view(bool))  # of bool it is several times quicker


def bitmaps_of(differs: np.ndarray) -> np.ndarray:
    """The bitmaps of `differs`, (n, 512) bool and contiguous."""
    return np.packbits(differs.reshape(-1), bitorder="little").view(np.uint64).reshape(-1, BITMAP)
