"""Blobs of which a rebuild finds the record and not every piece: what names them, and through what."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from holdfast.chunking import Chunking
from holdfast.halves import drop_half_blobs
from holdfast.store import Store
from holdfast.testing.inside import log_core


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("named", [False, True])
def test_what_is_named_through_sequences_is_damaged_and_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int, named: bool
) -> None:
    chunking = Chunking.choose("fastcdc", 4096)
    with Store._open(tmp_path / "store", create=True, chunking=chunking, compression="none") as store:
        leases = [store.blobs.put(random.Random(1).randbytes(40_000))]
        blob = leases[0].hash
        for _ in range(depth):
            leases.append(store.blobs.hash_seq([leases[-1].hash]))
        if named:
            store.tags.set("outer", leases[-1].hash, "hash_seq" if depth else "raw")
        for lease in leases:
            lease.release()
        catalog = log_core(store).catalog
        chunk = (
            log_core(store).backend.large_reader(log_core(store).blob(blob)).manifest.leaf_at(0).entries[0][2]
        )
        catalog._write(lambda cursor: cursor.execute("DELETE FROM data WHERE hash = ?", (chunk,)))
        monkeypatch.setattr(log_core(store).backend, "segment_ids", lambda: [2])  # one was compacted away
        problems = drop_half_blobs(catalog, log_core(store).backend)
        assert [problem.hash for problem in problems] == [blob] * named
        assert (catalog.find_blob(blob.digest) is not None) == named
