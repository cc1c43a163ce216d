"""What needs a whole blob, or the right kind of one, says so: which parts of a partial one are here, and early."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import holdfast
import holdfast.config
from holdfast.errors import BlobNotFound, InvalidInput, RangeNotAvailable, TooLarge
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.types import Hash

PART = ChunkRanges.leaves(0, 2_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with holdfast.create(tmp_path / "s") as store:
        yield store


@pytest.fixture
def partial(store: Store) -> Hash:
    with holdfast.open("memory://") as other:
        hash = other.blobs.put(random.Random(1).randbytes(3_000_000)).hash
        store.blobs.decode(hash, b"".join(other.blobs.encode(hash, PART)), PART)
    return hash


@pytest.mark.parametrize(
    "call",
    [
        lambda store, hash, place: store.export(hash, place / "out"),
        lambda store, hash, place: store.tags.set("name", hash),
        lambda store, hash, place: store.put(b"x", requires=[hash]),
    ],
)
def test_of_a_partial_blob_it_is_said_what_is_here(
    store: Store, partial: Hash, tmp_path: Path, call: Callable[..., Any]
) -> None:
    with pytest.raises(BlobNotFound, match=r"is partial, .* here: 0\.\.2000;") as caught:
        call(store, partial, tmp_path)
    assert caught.value.here == PART
    assert caught.value.size_bytes == 3_000_000
    assert not store.exists(partial)


def test_the_last_leaf_is_named_as_such(store: Store, partial: Hash) -> None:
    with pytest.raises(RangeNotAvailable) as caught:
        b"".join(store.blobs.encode(partial, ChunkRanges.last()))
    assert "the last leaf, which proves the size" in str(caught.value)
    assert str(2**64) not in str(caught.value)
    assert "here are: 0..2000" in str(caught.value)


def test_a_tag_of_a_hash_seq_is_of_one_that_can_be(store: Store) -> None:
    hash = store.blobs.put(b"abc").hash
    with pytest.raises(InvalidInput, match="no hash seq"):
        store.tags.set("name", hash, format="hash_seq")
    assert list(store.tags.list()) == []
    store.tags.set("name", hash)
    store.tags.set("seq", store.blobs.hash_seq([hash]).hash, format="hash_seq")


@pytest.mark.parametrize("limit", [1_000, 5_000_000])
def test_too_much_is_refused_while_it_is_written(tmp_path: Path, limit: int) -> None:
    config = holdfast.config.load(None, environ={}, overrides={"limits": {"max_artifact_bytes": limit}})
    with holdfast.create(tmp_path / "limited", config=config) as store:
        writer = store.writer(resumable=True)
        for _ in range(limit // 500):
            writer.write(b"x" * 500)
        with pytest.raises(TooLarge):
            writer.write(b"x")
        with store.writer(resumable=True) as other:
            other.write(b"x" * limit)
        assert other.artifact.size_bytes == limit
