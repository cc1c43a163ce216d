"""Geometry, making and verifying of outboards, against the native module and a plain recursive definition."""

from __future__ import annotations

import errno
import random

import pytest

from holdfast import _native, bao, reference
from holdfast.bao import OutboardBuilder, OutboardReader
from holdfast.errors import CorruptBlob, NoSpace

BLOCK = 16_384
PIECE = bao.PIECE_BLOCKS


def made_up_cvs(blocks: int) -> bytes:
    """Chaining values of blocks that need not exist: the tree above them is as good as any."""
    return random.Random(blocks).randbytes(32 * blocks)


def tree(cvs: list[bytes], is_root: bool) -> tuple[bytes, bytes]:
    """The slow definition: (pre-order pairs, chaining value or root hash)."""
    if len(cvs) == 1:
        return b"", cvs[0]
    left = 1
    while left * 2 < len(cvs):
        left *= 2
    (left_pairs, a), (right_pairs, b) = tree(cvs[:left], False), tree(cvs[left:], False)
    return a + b + left_pairs + right_pairs, _native.parent_cv(a, b, is_root)


def offsets(first: int, stop: int, at: int, into: dict[tuple[int, int], int]) -> int:
    """Lay out a tree over leaves first..stop from pair `at` on, the slow way; gives where it ends."""
    into[first, stop] = at
    if stop - first == 1:
        return at
    left = 1
    while left * 2 < stop - first:
        left *= 2
    return offsets(first + left, stop, offsets(first, first + left, at + 1, into), into)


@pytest.mark.parametrize(
    ("size", "blocks"),
    [
        (0, 1),
        (1, 1),
        (1_024, 1),
        (16_383, 1),
        (16_384, 1),
        (16_385, 2),
        (32_768, 2),
        (32_769, 3),
        (1 << 40, 1 << 26),
    ],
)
def test_sizes(size: int, blocks: int) -> None:
    assert bao.block_count(size) == blocks
    assert bao.outboard_bytes(size) == 64 * (blocks - 1)


@pytest.mark.parametrize("count", [*range(1, 40), 63, 64, 65, 100, 127, 128, 129])
def test_parents_before_agrees_with_a_layout(count: int) -> None:
    layout: dict[tuple[int, int], int] = {}
    assert offsets(0, count, 0, layout) == count - 1
    for index in range(count):
        assert bao.parents_before(index, count) == layout[index, index + 1]


BLOCK_COUNTS = [2, 3, 5, 8, 4_095, 4_096, 4_097, 8_191, 8_192, 8_193, 12_289, 16_384, 20_481, 28_673]


@pytest.mark.parametrize("blocks", BLOCK_COUNTS)
@pytest.mark.parametrize("limit", [0, bao.PIECE_CVS_BYTES, 8 << 20])
def test_building_gives_the_native_outboard(blocks: int, limit: int) -> None:
    cvs = made_up_cvs(blocks)
    expected, root = _native.outboard(cvs, True)
    with OutboardBuilder(limit_bytes=limit) as builder:
        step = 32 * 1_500
        for start in range(0, len(cvs), step):
            builder.feed(cvs[start : start + step])
        parts = list(builder.finish(blocks * BLOCK - 1))
        assert b"".join(parts) == expected
        assert builder.root == root
        assert max(map(len, parts)) <= 64 * PIECE
        assert b"".join(builder.finish(blocks * BLOCK)) == expected  # may be asked again


@pytest.mark.parametrize("size", [16_385, 32_768, 50_000])
def test_building_gives_the_outboard_of_the_reference(size: int) -> None:
    data = random.Random(size).randbytes(size)
    cvs = reference.group_cvs(data)
    with OutboardBuilder() as builder:
        for cv in cvs:
            builder.feed(cv)
        outboard = b"".join(builder.finish(size))
        assert (outboard, builder.root) == reference.outboard(cvs, True)
        assert builder.root == reference.blake3(data)


def test_a_full_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with OutboardBuilder(limit_bytes=0) as builder, pytest.raises(NoSpace, match="temporary file"):
        builder.feed(bytes(32 * 5_000))


@pytest.mark.parametrize("blocks", [2, 3, 7, 100, 4_097, 9_000])
def test_the_native_outboard_is_the_recursive_one(blocks: int) -> None:
    cvs = made_up_cvs(blocks)
    assert _native.outboard(cvs, True) == tree([cvs[i : i + 32] for i in range(0, len(cvs), 32)], True)


@pytest.mark.parametrize("size", [0, 1, 1_023, 1_024, 1_025, 16_383, 16_384, 16_385, 100_000, 1_000_000])
def test_a_real_blob(size: int) -> None:
    data = random.Random(size).randbytes(size)
    hasher, builder = _native.BlobHasher(), OutboardBuilder()
    for start in range(0, size, 50_001):
        hasher.update(data[start : start + 50_001])
        builder.feed(hasher.take_groups())
    root, rest = hasher.finish()
    builder.feed(rest)
    outboard = b"".join(builder.finish(size))
    assert root == _native.blake3(data)
    assert builder.root in ((root,) if size > BLOCK else (None,))
    assert len(outboard) == bao.outboard_bytes(size)
    reader = OutboardReader(size, root, lambda offset, length: outboard[offset : offset + length])
    assert reader.check(data, 0) == -1
    for block in range(bao.block_count(size)):
        piece = data[block * BLOCK : (block + 1) * BLOCK]
        assert reader.check(piece, block) == -1
        if piece:
            assert reader.check(bytes((piece[0] ^ 1,)) + piece[1:], block) == 0
    if size > 40_000:
        assert reader.check(data[BLOCK : 2 * BLOCK] + bytes(BLOCK) + data[3 * BLOCK : 4 * BLOCK], 1) == 1
        with pytest.raises(ValueError, match="are no blocks of"):
            reader.check(data[: BLOCK + 1], 0)
        with pytest.raises(ValueError, match="are no blocks of"):
            reader.check(bytes(BLOCK), bao.block_count(size) - 1)


def test_counts_that_do_not_fit_are_refused() -> None:
    builder = OutboardBuilder()
    builder.feed(bytes(64))
    for size in (0, BLOCK, 2 * BLOCK + 1):
        with pytest.raises(ValueError, match="2 chaining values"):
            builder.finish(size)
    reader = OutboardReader(BLOCK, bytes(32), lambda offset, length: b"")
    with pytest.raises(ValueError, match="no chaining values"):
        reader.cvs(0, 1)


@pytest.mark.parametrize("blocks", BLOCK_COUNTS)
def test_reading_any_range(blocks: int) -> None:
    cvs = made_up_cvs(blocks)
    outboard, root = _native.outboard(cvs, True)
    asked: list[int] = []

    def read_pairs(offset: int, length: int) -> bytes:
        asked.append(length)
        return outboard[offset : offset + length]

    reader = OutboardReader(blocks * BLOCK, root, read_pairs, cached=2)
    rng = random.Random(blocks)
    for first, count in [
        (0, blocks),
        (0, 0),
        (blocks, 0),
        (blocks - 1, 1),
        *((first := rng.randrange(blocks), rng.randrange(blocks - first + 1)) for _ in range(30)),
    ]:
        assert reader.cvs(first, count) == cvs[32 * first : 32 * (first + count)]
    for first, count in ((-1, 1), (0, blocks + 1), (0, -1), (blocks, 1)):
        with pytest.raises(ValueError, match="no chaining values"):
            reader.cvs(first, count)
    asked.clear()
    reader = OutboardReader(blocks * BLOCK, root, read_pairs)
    reader.cvs(blocks // 2, 1)
    reader.cvs(blocks // 2, 1)  # from memory
    assert sum(asked) <= 64 * (PIECE + 20)


@pytest.mark.parametrize("blocks", [2, 4_096, 4_097, 12_289])
def test_damage_anywhere_in_the_outboard_is_found_and_named(blocks: int) -> None:
    cvs = made_up_cvs(blocks)
    outboard, root = _native.outboard(cvs, True)
    for at in sorted({0, 63, 64, len(outboard) // 2, len(outboard) - 1}):
        bad = bytearray(outboard)
        bad[at % len(bad)] ^= 4
        reader = OutboardReader(blocks * BLOCK, root, lambda o, n, bad=bytes(bad): bad[o : o + n])  # type: ignore[misc]
        with pytest.raises(CorruptBlob) as caught:
            reader.cvs(0, blocks)
        assert caught.value.offset_bytes == at % len(bad) // 64 * 64
        with pytest.raises(CorruptBlob):  # a failure is not remembered as a success
            reader.cvs(0, blocks)
    for wrong in (b"", outboard[:-1]):
        reader = OutboardReader(blocks * BLOCK, root, lambda o, n, wrong=wrong: wrong[o : o + n])  # type: ignore[misc]
        with pytest.raises(CorruptBlob, match="bytes in place of"):
            reader.cvs(0, blocks)
    with pytest.raises(CorruptBlob):
        OutboardReader(blocks * BLOCK, bytes(32), lambda o, n: outboard[o : o + n]).cvs(0, 1)
