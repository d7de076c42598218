"""The FT log's framing: whole frames from any split of the bytes, and no trust in lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmft.core import wire
from kvmft.core.vmstream import activation_stream, ram_section
from kvmft.errors import KvmftError


def decode(data: bytes, step: int) -> list[tuple[wire.FrameType, int, bytes]]:
    decoder = wire.Decoder(lambda header: memoryview(bytearray(header.length)))
    frames = []
    position = 0
    while position < len(data):
        want = decoder.want()
        count = min(len(want), step, len(data) - position)
        want[:count] = data[position : position + count]
        position += count
        frame = decoder.received(count)
        if frame is not None:
            frames.append((frame.type, frame.epoch, bytes(frame.body)))
    return frames


@given(st.lists(st.binary(max_size=100), max_size=5), st.integers(1, 50))
def test_frames_survive_any_split(bodies: list[bytes], step: int) -> None:
    data = b"".join(wire.encode(wire.FrameType.DISK, n, body) for n, body in enumerate(bodies))
    expected = [(wire.FrameType.DISK, n, body) for n, body in enumerate(bodies)]
    assert decode(data, step) == expected


@given(st.binary(min_size=24, max_size=24))
def test_random_bytes_are_an_error_or_a_bounded_header(data: bytes) -> None:
    try:
        header = wire.decode_header(data)
    except wire.WireError as error:
        assert error.remedy
    else:
        assert header.length <= wire.LIMITS[header.type]


def test_a_length_above_the_bound_is_refused_before_allocation() -> None:
    data = wire.encode_header(wire.FrameType.HELLO, 0, wire.LIMITS[wire.FrameType.HELLO] + 1)
    with pytest.raises(wire.WireError, match="at most"):
        wire.decode_header(data)


def test_a_checkpoint_is_cut_where_it_was_joined() -> None:
    runs, pages = b"r" * 48, b"p" * 8192
    writes, data, state = b"w" * 32, b"d" * 10, b"s" * 7
    head = wire.checkpoint_head(2, len(pages), 1, len(data), len(state))
    body = head + runs + pages + writes + data + state
    assert len(body) == wire.checkpoint_length(2, len(pages), 1, len(data), len(state))
    parts = wire.split_checkpoint(memoryview(body))
    assert [bytes(part) for part in (parts.runs, parts.pages, parts.writes, parts.write_data,
                                     parts.device_state)] == [runs, pages, writes, data, state]  # fmt: skip


def test_without_deltas_a_checkpoint_is_what_older_versions_send_and_read() -> None:
    """As it was before there were deltas: the last number of the head was 0 and ignored."""
    old = wire.CHECKPOINT_HEAD.pack(0, 0, 0, 0, 5, 0) + b"state"
    assert wire.checkpoint_head(0, 0, 0, 0, 5) + b"state" == old
    parts = wire.split_checkpoint(memoryview(old))
    assert bytes(parts.device_state) == b"state" and not len(parts.deltas)


def test_deltas_stand_between_pages_and_disk_writes() -> None:
    deltas = wire.delta_head(1, 2) + b"p" * 8 + b"b" * 64 + b"w" * 16
    counts = (0, 4, 0, 3, 2, len(deltas))
    body = memoryview(wire.checkpoint_head(*counts) + b"page" + deltas + b"wri" + b"st")
    parts = wire.split_checkpoint(body)
    assert [bytes(part) for part in (parts.pages, parts.deltas, parts.write_data, parts.device_state)] == [
        b"page", deltas, b"wri", b"st"
    ]  # fmt: skip
    assert [bytes(part) for part in wire.split_deltas(parts.deltas)] == [b"p" * 8, b"b" * 64, b"w" * 16]


@given(st.integers(0, 1 << 64 - 1), st.integers(0, 1 << 64 - 1), st.integers(0, 300))
def test_a_section_of_deltas_whose_counts_do_not_fit_is_refused(pages: int, words: int, size: int) -> None:
    section = memoryview((wire.DELTA_HEAD.pack(pages, words) + bytes(size))[: 16 + size])
    if 72 * pages + 8 * words == size:
        wire.split_deltas(section)
        return
    with pytest.raises(wire.WireError):
        wire.split_deltas(section)


@pytest.mark.parametrize("size", range(1, 16))
def test_a_section_of_deltas_without_its_head_is_refused(size: int) -> None:
    with pytest.raises(wire.WireError):
        wire.split_deltas(memoryview(bytes(size)))


@given(st.binary(max_size=200))
def test_a_checkpoint_of_random_bytes_is_refused(body: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.split_checkpoint(memoryview(body + b"\xff" * 48))


def test_a_table_longer_than_its_frame_is_refused() -> None:
    with pytest.raises(wire.WireError):
        wire.split_table(memoryview((5).to_bytes(8, "little") + b"x" * 24), 3, "MEMORY")


def test_the_activation_stream_has_configuration_and_description() -> None:
    blob = bytes.fromhex("5145564d00000003") + b"SECTIONS\x00"
    stream = activation_stream(blob, "pc-q35-7.2")
    assert stream == (
        bytes.fromhex("5145564d00000003") + b"\x07\x00\x00\x00\x0apc-q35-7.2"
        + b"SECTIONS\x00" + b"\x06\x00\x00\x00\x00"
    )  # fmt: skip


def test_a_foreign_blob_is_not_activated() -> None:
    with pytest.raises(KvmftError, match="not one of QEMU's"):
        activation_stream(b"ELF!" * 4, "pc-q35-7.2")


def test_a_ram_section_names_each_block_once() -> None:
    section = ram_section([("vga.vram", b"\x01" * 8192)])
    assert section[0] == 0x04 and section.count(b"vga.vram") == 1
    assert len(section) == 1 + 4 + 1 + 3 + 4 + 4 + 2 * (8 + 4096) + 1 + 8 + 8 + 1 + 4
