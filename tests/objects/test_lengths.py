"""Objects of another length than their blob: never taken for the blob, whatever a listing says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast.backend.objects.layout import data_key
from holdfast.errors import CorruptBlob, IntegrityError
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.types import Artifact


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with holdfast.open(f"dir://{root}", create=True) as store:
        yield store


def cut(root: Path, artifact: Artifact, size: int) -> None:
    os.truncate(root / data_key(artifact.hash.digest), size)


@pytest.mark.parametrize("size", [50, 20_000, 300_000])
@pytest.mark.parametrize("left", [0, 1, 16_384, -1])
def test_a_blob_that_is_short_is_damage_for_a_new_catalog_too(
    store: Store, root: Path, size: int, left: int
) -> None:
    artifact = store.put(sample(size))
    store.tags.set("t", artifact.hash)
    cut(root, artifact, min(left % size, size - 1))
    for catalog in (None, ":memory:"):
        with holdfast.open(f"dir://{root}", catalog=catalog) as again:
            again.refresh()
            for ref in (artifact.id, artifact.hash):
                with pytest.raises(CorruptBlob):
                    again.read(ref)
                with pytest.raises(CorruptBlob):
                    again.read(ref, size - 20, 20)
                with pytest.raises(CorruptBlob):
                    list(again.iter_bytes(ref))


def test_a_blob_without_bytes_that_only_a_tag_names_is_damage(store: Store, root: Path) -> None:
    with store.blobs.put(b"kept by its tag") as lease:
        store.tags.set("t", lease.hash)
        os.truncate(root / data_key(lease.hash.digest), 0)
        with holdfast.open(f"dir://{root}", catalog=":memory:") as again, pytest.raises(CorruptBlob):
            again.read(lease.hash)


def test_a_blob_with_bytes_behind_it_is_read_and_told(store: Store, root: Path) -> None:
    content = sample(20_000)
    artifact = store.put(content)
    with open(root / data_key(artifact.hash.digest), "ab") as file:
        file.write(b"more")
    with holdfast.open(f"dir://{root}", catalog=":memory:") as again:
        assert again.read(artifact.id) == content
        assert not again.health().ok


@pytest.mark.parametrize("size", [50, 20_000, 9_000_000])
@pytest.mark.parametrize("left", [0, 25])
@pytest.mark.parametrize("named", ["artifact", "tag"])
def test_bytes_that_come_again_after_a_refresh_are_there(
    store: Store, root: Path, size: int, left: int, named: str
) -> None:
    content = sample(size)
    if named == "artifact":
        hash_ = store.put(content).hash
    else:
        with store.blobs.put(content) as lease:
            hash_ = lease.hash
            store.tags.set("t", hash_)
    os.truncate(root / data_key(hash_.digest), left)
    store.refresh()  # the listing says another length
    with pytest.raises(IntegrityError):
        store.read(hash_)
    with holdfast.open(f"dir://{root}", catalog=":memory:") as other:
        for one in (store, other):
            artifact = one.put(content)
            assert one.read(artifact.id) == content
            assert one.verify(artifact.id).ok
    store.refresh()
    assert store.scrub().ok
