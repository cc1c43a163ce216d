"""Streams of any ranges, in any pieces, whole and damaged, against the slow definition."""

from __future__ import annotations

import random
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import ChunkRanges, _native, reference_bao
from holdfast.bao_stream import Decoder, encode
from holdfast.errors import CorruptStream

SIZES = (0, 1, 1023, 1024, 1025, 3000, 16_383, 16_384, 16_385, 18_000, 33_000, 50_001)
boundaries = st.one_of(
    st.lists(st.integers(0, 56), unique=True, max_size=8),
    st.lists(st.one_of(st.integers(0, 60), st.integers(0, (1 << 64) - 1)), unique=True, max_size=4),
).map(sorted)


@cache
def blob(size: int) -> tuple[reference_bao.Blob, bytes]:
    """A blob as the reference has it, and its outboard."""
    data = random.Random(size).randbytes(size)
    hasher = _native.BlobHasher()
    hasher.update(data)
    root, groups = hasher.finish()
    slow = reference_bao.Blob(data)
    assert slow.root == root
    return slow, _native.outboard(groups, True)[0] if groups else b""


@st.composite
def damage(draw: st.DrawFn, stream: bytes) -> bytes:
    """The stream as it is, cut, flipped, with another size, longer, or with a part moved."""
    kind = draw(st.sampled_from(["none", "cut", "flip", "size", "more", "move"]))
    at = draw(st.integers(0, max(0, len(stream) - 1)))
    match kind:
        case "cut":
            return stream[:at]
        case "flip" if stream:
            return stream[:at] + bytes([stream[at] ^ draw(st.integers(1, 255))]) + stream[at + 1 :]
        case "size":
            claimed = draw(st.one_of(st.integers(0, 60_000), st.integers(0, (1 << 64) - 1)))
            return claimed.to_bytes(8, "little") + stream[8:]
        case "more":
            return stream + draw(st.binary(min_size=1, max_size=100))
        case "move":
            return stream[:8] + stream[at:] + stream[8:at]
    return stream


@settings(deadline=None)
@given(st.sampled_from(SIZES), boundaries, st.integers(1, 60_000))
def test_encoding_is_the_slow_one(size: int, numbers: list[int], piece_bytes: int) -> None:
    slow, outboard = blob(size)
    pieces = encode(
        size,
        slow.root,
        lambda offset, length: slow.data[offset : offset + length],
        lambda offset, length: outboard[offset : offset + length],
        ChunkRanges(numbers),
        piece_bytes=piece_bytes,
    )
    assert b"".join(pieces) == slow.encode(numbers)


@settings(deadline=None)
@given(st.data(), st.sampled_from(SIZES), boundaries, st.integers(1, 20_000))
def test_decoding_is_the_slow_one(data: st.DataObject, size: int, numbers: list[int], step: int) -> None:
    slow, _ = blob(size)
    stream = data.draw(damage(slow.encode(numbers)))
    expected = reference_bao.Decoded(slow.root, numbers, stream)
    decoder = Decoder(slow.root, ChunkRanges(numbers), keep_pairs=True)
    given_out: dict[int, int] = {}
    bad = None
    try:
        for start in range(0, len(stream), step):
            for offset, run in decoder.feed(stream[start : start + step]):
                given_out |= dict(zip(range(offset, offset + len(run)), run, strict=True))
        decoder.finish()
    except CorruptStream as error:
        bad = error.reason, error.offset_bytes
    assert bad == expected.bad
    assert (decoder.size_bytes, decoder.is_size_proven) == (expected.size, expected.is_size_proven)
    assert given_out == {at + i: byte for at, run in expected.data.items() for i, byte in enumerate(run)}
    pairs = {at + i: run[i : i + 64] for at, run in decoder.take_pairs() for i in range(0, len(run), 64)}
    assert pairs == expected.pairs
