"""Outboards of any length, fed in any pieces, read in any ranges, damaged at any bit."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast import _native, bao
from holdfast.bao import OutboardBuilder, OutboardReader
from holdfast.errors import CorruptBlob

BLOCKS = st.one_of(
    st.integers(2, 300), st.integers(1, 6).flatmap(lambda n: st.integers(4_096 * n - 2, 4_096 * n + 2))
)


def outboard_bytes_reference(size_bytes: int) -> int:
    """Count the parents of a blob one by one."""

    def parents(blocks: int) -> int:
        if blocks == 1:
            return 0
        left = 1
        while left * 2 < blocks:
            left *= 2
        return 1 + parents(left) + parents(blocks - left)

    return 64 * parents(max(1, (size_bytes + 16_383) // 16_384))


@given(st.integers(0, 1 << 24))
@example(0)
@example(16_384)
@example(16_385)
def test_outboard_bytes_counts_every_parent(size_bytes: int) -> None:
    assert bao.outboard_bytes(size_bytes) == outboard_bytes_reference(size_bytes)


@given(BLOCKS, st.lists(st.integers(0, 9_000), max_size=6), st.sampled_from([0, 131_072, 1 << 23]))
def test_any_feeding_builds_the_same(blocks: int, cuts: list[int], limit: int) -> None:
    cvs = random.Random(blocks).randbytes(32 * blocks)
    with OutboardBuilder(limit) as builder:
        position = 0
        for count in [*cuts, blocks]:
            builder.feed(cvs[32 * position : 32 * (position + count)])
            position = min(blocks, position + count)
        built = b"".join(builder.finish(blocks * 16_384 - blocks % 16_384))
        assert (built, builder.root) == _native.outboard(cvs, True)


@given(BLOCKS, st.data())
def test_any_range_reads_right_and_any_damage_is_found(blocks: int, data: st.DataObject) -> None:
    cvs = random.Random(blocks).randbytes(32 * blocks)
    outboard, root = _native.outboard(cvs, True)
    size = blocks * 16_384
    reader = OutboardReader(size, root, lambda offset, length: outboard[offset : offset + length])
    first = data.draw(st.integers(0, blocks))
    count = data.draw(st.integers(0, blocks - first))
    assert reader.cvs(first, count) == cvs[32 * first : 32 * (first + count)]
    bit = data.draw(st.integers(0, 8 * len(outboard) - 1))
    bad = bytearray(outboard)
    bad[bit // 8] ^= 1 << bit % 8
    reader = OutboardReader(size, root, lambda offset, length: bytes(bad[offset : offset + length]))
    with pytest.raises(CorruptBlob) as caught:
        reader.cvs(0, blocks)
    assert caught.value.offset_bytes == bit // 512 * 64
    try:
        assert reader.cvs(first, count) == cvs[32 * first : 32 * (first + count)]  # what does verify is right
    except CorruptBlob:
        return


@given(BLOCKS, st.data())
def test_pair_spans_are_what_a_reader_reads(blocks: int, data: st.DataObject) -> None:
    """They are known before any byte came, and nothing else is read."""
    outboard, root = _native.outboard(random.Random(blocks).randbytes(32 * blocks), True)
    size = blocks * 16_384
    first = data.draw(st.integers(0, blocks - 1))
    count = data.draw(st.integers(1, blocks - first))
    asked: dict[tuple[int, int], None] = {}

    def read_pairs(offset: int, length: int) -> bytes:
        asked[offset, length] = None
        return outboard[offset : offset + length]

    OutboardReader(size, root, read_pairs).cvs(first, count)
    assert bao.pair_spans(size, first, count) == list(asked)
