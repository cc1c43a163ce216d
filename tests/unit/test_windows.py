"""Blobs that arrive in several windows: chunks and bytes are the same, wherever a window ends."""

import random
from pathlib import Path

import pytest

import holdfast
from holdfast.testing.inside import log_core

DATA = random.Random(7).randbytes(200_000)


@pytest.mark.parametrize("chunking", ["fastcdc", "fixed"])
def test_a_window_may_end_anywhere_near_a_cut(tmp_path: Path, chunking: str) -> None:
    """The cutter looks at pairs of bytes: a cut before the last byte of a window may show in the next one only."""
    with holdfast.create(tmp_path / "whole", chunking=chunking, chunk_size_bytes=4096) as store:
        hash = store.blobs.put(DATA).hash
        chunks = store.stats().chunks
        cutter = log_core(store).backend.chunking.make_cutter()
    cut = 0
    for number, length in enumerate(cutter.feed(DATA)):
        cut += length
        # Windows that end around the cut; the next one is long (several cuts), or short (one, or none).
        places = [[end, next_end] for end in range(cut - 2, cut + 4) for next_end in (end + 10, len(DATA))]
        with holdfast.create(tmp_path / f"{number}", chunking=chunking, chunk_size_bytes=4096) as store:
            for ends in places:
                with log_core(store).adding() as (_, ingest):
                    starts = [0, *ends]
                    windows = [DATA[a:b] for a, b in zip(starts, [*ends, len(DATA)], strict=True)]
                    assert ingest.add(iter(windows)).hash == hash.digest
            with log_core(store).adding() as (group, ingest):  # the next window holds nothing but this cut
                ingest.add(iter([DATA[: cut + 1], DATA[cut + 1 : cut + 11], DATA[cut + 11 :]]))
                group.commit()
            assert store.stats().chunks == chunks
            assert store.read(hash) == DATA
