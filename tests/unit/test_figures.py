"""Figures add up, also while a segment is open and where nothing is whole."""

from __future__ import annotations

import random
from pathlib import Path

import holdfast
from holdfast.ranges import ChunkRanges


def test_no_more_counts_than_there_is(tmp_path: Path) -> None:
    with holdfast.create(tmp_path / "s") as store:
        for number in range(50):
            store.put(b"%d" % number)
            found = store.stats()
            assert all(share.live_bytes <= share.size_bytes for share in found.segment_shares)
            assert found.live_bytes == sum(share.live_bytes for share in found.segment_shares)
        assert found.live_bytes


def test_a_part_of_a_blob_is_not_made_larger(tmp_path: Path) -> None:
    part = ChunkRanges.leaves(0, 2_000)
    with holdfast.open("memory://") as other, holdfast.create(tmp_path / "s") as store:
        hash = other.blobs.put(random.Random(1).randbytes(3_000_000)).hash
        store.blobs.decode(hash, b"".join(other.blobs.encode(hash, part)), part)
        found = store.stats()
        assert found.unique_bytes
        assert found.deduplication_ratio == 1.0
