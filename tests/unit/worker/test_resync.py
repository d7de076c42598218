"""Only what differs is sent, and the replica ends up equal: disks and memory."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kvmft.adapters.digests import DigestTable, digests_of, runs_of
from kvmft.core.wire import (
    DISK_UNIT,
    MEMORY_UNIT,
    OF_DISK,
    OF_MEMORY,
    DigestsOf,
    FrameType,
    WireError,
    decode_header,
    encode_digests,
    split_digests,
)
from kvmft.worker.resync import Known, ResyncFilter

KEY = b"k" * 32
UNIT = 4096


class Replica:
    """Applies what the filter lets through."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.received = 0
        self.flushes = 0

    def write(self, offset: int, data: memoryview) -> None:
        self.content[offset : offset + len(data)] = data
        self.received += len(data)

    def zero(self, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self.flushes += 1


def table_of(content: bytes, unit: int = UNIT) -> DigestTable:
    table = DigestTable(len(content), unit)
    digests = digests_of(memoryview(content), unit, KEY)
    table.learn(DigestsOf(OF_DISK, 0, 0, memoryview(digests.tobytes())))
    return table


def filter_of(replica: Replica, unit: int = UNIT) -> ResyncFilter:
    content = bytes(replica.content)
    return ResyncFilter(replica, table_of(content, unit), len(content), KEY)


def blocks(rng: random.Random, count: int, tail: int = 0) -> bytes:
    """Units of few different contents, some zero, so that many are alike."""
    kinds = [bytes(UNIT), b"a" * UNIT, b"b" * UNIT, bytes(range(256)) * (UNIT // 256)]
    return b"".join(rng.choice(kinds) for __ in range(count)) + b"t" * tail


def test_a_copy_of_an_equal_disk_sends_nothing() -> None:
    content = blocks(random.Random(1), 40, 100)
    replica = Replica(content)
    filter_ = filter_of(replica)
    filter_.zero(0, len(content))
    for offset in range(0, len(content), 3 * UNIT):
        filter_.write(offset, memoryview(content)[offset : offset + 3 * UNIT])
    filter_.settle()
    assert replica.received == 0
    assert bytes(replica.content) == content


def test_only_the_units_that_differ_are_sent() -> None:
    content = bytearray(b"x" * (64 * UNIT))
    replica = Replica(bytes(content))
    content[5 * UNIT] = 0
    content[9 * UNIT + 17] = 1
    filter_ = filter_of(replica)
    filter_.write(0, memoryview(content))
    filter_.settle()
    assert replica.received == 2 * UNIT == filter_.sent
    assert filter_.left_out == 62 * UNIT
    assert replica.content == content


def test_what_the_mirror_does_not_write_again_becomes_zero() -> None:
    replica = Replica(b"old " * UNIT)
    filter_ = filter_of(replica)
    filter_.zero(0, 4 * UNIT)
    filter_.write(UNIT, memoryview(b"old " * (UNIT // 4)))
    filter_.settle()
    assert bytes(replica.content) == bytes(UNIT) + b"old " * (UNIT // 4) + bytes(2 * UNIT)


def test_after_settling_everything_passes() -> None:
    replica = Replica(b"a" * (4 * UNIT))
    filter_ = filter_of(replica)
    filter_.settle()
    filter_.write(0, memoryview(b"a" * UNIT))
    assert replica.received == UNIT
    filter_.zero(UNIT, UNIT)
    filter_.flush()
    assert bytes(replica.content[UNIT : 2 * UNIT]) == bytes(UNIT)
    assert replica.flushes == 1


@pytest.mark.parametrize("seed", range(60))
def test_any_mixture_of_copy_and_guest_writes_ends_equal(seed: int) -> None:
    """A mirror zeroes its target, copies each unit once, and the guest writes and discards between."""
    rng = random.Random(seed)
    source = bytearray(blocks(rng, 24, rng.choice((0, 1000))))
    size = len(source)
    replica = Replica(bytes(blocks(rng, 24, size - 24 * UNIT)))
    filter_ = filter_of(replica)
    if rng.random() < 0.7:
        filter_.zero(0, size)
        todo = [u for u in range(25) if bytes(source[u * UNIT : (u + 1) * UNIT]).strip(b"\0")]
    else:
        todo = list(range(25))
    rng.shuffle(todo)
    while todo or rng.random() < 0.7:
        choice = rng.random()
        if todo and choice < 0.5:
            unit = todo.pop()
            span = memoryview(source)[unit * UNIT : min(size, (unit + rng.choice((1, 2))) * UNIT)]
            filter_.write(unit * UNIT, memoryview(bytes(span)))
            continue
        start = rng.randrange(size)
        length = min(size - start, rng.choice((1, 512, UNIT, 3 * UNIT + 5)))
        if choice < 0.8:
            data = (rng.choice((b"a", b"b", b"\0", b"q")) * length)[:length]
            source[start : start + length] = data
            filter_.write(start, memoryview(data))
        else:
            source[start : start + length] = bytes(length)
            filter_.zero(start, length)
    filter_.settle()
    assert replica.content == source


def test_runs() -> None:
    assert list(runs_of(np.array([1, 2, 3, 7, 9, 10]))) == [(1, 4), (7, 8), (9, 11)]
    assert list(runs_of(np.array([], dtype=np.int64))) == []


def test_zero_units_have_the_digest_zero_and_keys_differ() -> None:
    data = memoryview(bytes(UNIT) + b"z" * UNIT + b"y" * 10)
    digests = digests_of(data, UNIT, KEY)
    assert digests.shape == (3, 2)
    assert not digests[0].any() and digests[1].any() and digests[2].any()
    assert (digests_of(data, UNIT, b"other")[1] != digests[1]).any()


def test_memory_pages_that_the_secondary_has_are_left_out() -> None:
    pages = {name: bytes([name]) * MEMORY_UNIT for name in range(4)}
    known = Known([8 * MEMORY_UNIT, 4 * MEMORY_UNIT], [], KEY)
    theirs = digests_of(memoryview(pages[1] + pages[2]), MEMORY_UNIT, KEY)
    known.learn(DigestsOf(OF_MEMORY, 0, 3, memoryview(theirs.tobytes())))
    table = np.array([[0, 3 * MEMORY_UNIT, 3 * MEMORY_UNIT], [1, 0, 2 * MEMORY_UNIT]], dtype=np.uint64)
    data = pages[1] + pages[3] + pages[0] + pages[0] + pages[2]
    kept, rest = known.differing(table, memoryview(data))
    assert kept.tolist() == [[0, 4 * MEMORY_UNIT, MEMORY_UNIT], [1, MEMORY_UNIT, MEMORY_UNIT]]
    assert bytes(rest) == pages[3] + pages[2]
    assert known.pages_left_out == 3


def test_a_page_that_is_zero_here_but_not_there_is_sent() -> None:
    known = Known([4 * MEMORY_UNIT], [], KEY)
    theirs = digests_of(memoryview(b"o" * MEMORY_UNIT), MEMORY_UNIT, KEY)
    known.learn(DigestsOf(OF_MEMORY, 0, 2, memoryview(theirs.tobytes())))
    assert known.memory[0].occupied().tolist() == [2]
    table = np.array([[0, 0, 4 * MEMORY_UNIT]], dtype=np.uint64)
    kept, rest = known.differing(table, memoryview(bytes(4 * MEMORY_UNIT)))
    assert kept.tolist() == [[0, 2 * MEMORY_UNIT, MEMORY_UNIT]]
    assert bytes(rest) == bytes(MEMORY_UNIT)


def test_digests_cross_the_wire_whole() -> None:
    digests = digests_of(memoryview(b"n" * (3 * DISK_UNIT)), DISK_UNIT, KEY)
    frame = encode_digests(OF_DISK, 2, 77, digests.tobytes())
    header = decode_header(frame)
    assert header.type is FrameType.DIGESTS
    told = split_digests(memoryview(frame)[24:])
    assert (told.of, told.index, told.first, bytes(told.data)) == (OF_DISK, 2, 77, digests.tobytes())


@pytest.mark.parametrize("change", [lambda body: body[:10], lambda body: body[:-1],
                                    lambda body: b"\7" + body[1:]])  # fmt: skip
def test_malformed_digests_are_refused(change) -> None:  # type: ignore[no-untyped-def]
    body = encode_digests(OF_DISK, 0, 0, bytes(32))[24:]
    with pytest.raises(WireError):
        split_digests(memoryview(change(body)))


def test_digests_of_something_else_are_refused() -> None:
    known = Known([MEMORY_UNIT], [DISK_UNIT], KEY)
    for told in (DigestsOf(OF_MEMORY, 1, 0, memoryview(bytes(16))),
                 DigestsOf(OF_DISK, 0, 1, memoryview(bytes(16)))):  # fmt: skip
        with pytest.raises(WireError):
            known.learn(told)
