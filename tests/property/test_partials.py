"""Random ranges in random order, from good and bad sources: what was right of them is here, and in the end the blob."""

from __future__ import annotations

import random
from functools import cache
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import filling, importing
from holdfast.backend.memory import MemoryDisk
from holdfast.chunking import Chunking
from holdfast.errors import CorruptStream, RangeNotAvailable, RemoteProtocolError
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.testing.streams import Sender
from holdfast.types import BLOCK_BYTES, BlobStatus

SIZES = (1, 1025, 16_384, 16_385, 5 * BLOCK_BYTES, 23 * BLOCK_BYTES + 1, 40 * BLOCK_BYTES + 5_000)


@cache
def sender_of(size: int) -> Sender:
    return Sender(random.Random(size).randbytes(size))


@st.composite
def some_ranges(draw: st.DrawFn, leaves: int) -> ChunkRanges:
    numbers = draw(st.lists(st.integers(0, leaves + 3), unique=True, max_size=5).map(sorted))
    return ChunkRanges(numbers)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_parts_in_any_order_are_the_blob(data: st.DataObject) -> None:
    sender = sender_of(data.draw(st.sampled_from(SIZES), "size"))
    size = len(sender.content)
    leaves = max(1, -(-size // 1024))
    with (
        patch.object(
            importing, "CHECKPOINT_BYTES", data.draw(st.sampled_from((1, 40_000, 1 << 20)), "checkpoint")
        ),
        patch.object(filling, "STEP_BYTES", data.draw(st.sampled_from((20_000, 1 << 20)), "step")),
        patch.object(filling, "CARRY_BYTES", data.draw(st.sampled_from((0, 20_000)), "carry")),
        Store._open(
            "/memory",
            create=True,
            disk=MemoryDisk(),
            catalog_path=None,
            fsync=False,
            compression="none",
            chunking=data.draw(
                st.sampled_from((Chunking.choose("fastcdc", 4096), Chunking.choose("fixed", 50_000))),
                "chunking",
            ),
        ) as store,
    ):
        have = ChunkRanges.empty()
        for _ in range(data.draw(st.integers(0, 6), "streams")):
            ranges = data.draw(some_ranges(leaves), "ranges")
            stream = bytearray(sender.stream(ranges))
            whole = _whole_blocks(ranges.select(size), size)
            is_cut = data.draw(st.booleans(), "is cut")
            # A size that is wrong may be as good as the right one, as long as the last leaf is not asked for.
            places = st.integers(0 if is_cut else 8, max(8, len(stream) - 1))
            bad_at = data.draw(st.one_of(st.none(), places), "bad at")
            before = have
            if bad_at is None or bad_at >= len(stream):
                store.blobs.decode(sender.hash, stream, ranges)
                have |= whole
            else:
                if is_cut:
                    del stream[bad_at:]
                else:
                    stream[bad_at] ^= 0x10
                with pytest.raises((CorruptStream, RemoteProtocolError)) as caught:
                    store.blobs.decode(sender.hash, stream, ranges)
                assert 0 <= caught.value.offset_bytes <= bad_at
                now = store.blobs.bitfield(sender.hash).ranges
                assert before <= now
                assert now <= before | whole
                have = now
            _check(store, sender, have)
        rest = store.blobs.missing_ranges(sender.hash)
        info = store.blobs.decode(sender.hash, sender.stream(rest), rest)
        assert info.status is BlobStatus.COMPLETE
        assert store.blobs.read(sender.hash) == sender.content
        assert store.scrub().ok


def _whole_blocks(ranges: ChunkRanges, size: int) -> ChunkRanges:
    every = ((start, min(start + BLOCK_BYTES, size)) for start in range(0, max(1, size), BLOCK_BYTES))
    blocks = (ChunkRanges.bytes(start, stop) for start, stop in every)
    return ChunkRanges.union(block for block in blocks if block <= ranges)


def _check(store: Store, sender: Sender, have: ChunkRanges) -> None:
    size = len(sender.content)
    field = store.blobs.bitfield(sender.hash)
    assert field.ranges == have
    assert store.blobs.missing_ranges(sender.hash).clip(size) == (ChunkRanges.all() - have).clip(size)
    for start, stop in have.byte_ranges(size):
        assert store.blobs.read(sender.hash, start, stop - start) == sender.content[start:stop]
    if have and field.status is BlobStatus.PARTIAL:
        for start, _ in field.missing.clip(field.size_bytes):
            try:
                store.blobs.read(sender.hash, start * 1024, 1)
            except RangeNotAvailable:
                continue
            raise AssertionError("what is missing was read")
