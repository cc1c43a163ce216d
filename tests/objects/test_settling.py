"""Naming what another machine collects: bytes at hand go up again, and without them a name has what it had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from holdfast import _native
from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.layout import data_key, gone_key, outboard_key, tag_key
from holdfast.backend.objects.names import facts_of, intended, read_named
from holdfast.backend.objects.opening import memory_bucket
from holdfast.errors import ArtifactNotFound, BlobNotFound, TagNotFound
from holdfast.facts import Facts
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.inside import object_core
from holdfast.types import Hash
from tests.objects.world import collect_elsewhere

SIZES = (100, 50_000)


class Watched:
    """A bucket that tells of its requests: `told` has them, `after` is called behind each that writes a name."""

    def __init__(self, inner: Bucket) -> None:
        self.inner = inner
        self.told: list[tuple[str, str]] = []
        self.after: Callable[[str], None] = lambda key: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def head(self, key: str) -> Meta | None:
        self.told.append(("head", key))
        return self.inner.head(key)

    def create(self, key: str, data: bytes) -> Meta | None:
        return self._tell("create", key, self.inner.create(key, data))

    def replace(self, key: str, data: bytes, e_tag: str) -> Meta | None:
        return self._tell("replace", key, self.inner.replace(key, data, e_tag))

    def _tell(self, what: str, key: str, made: Meta | None) -> Meta | None:
        self.told.append((what, key))
        if not key.startswith("blobs/"):
            self.after(key)
        return made


@pytest.fixture
def bucket() -> Watched:
    return Watched(memory_bucket())


def put_and_lose(store: Store, bucket: Watched, size_bytes: int = 100) -> Hash:
    """Give a blob that the catalog knows and that is collected."""
    with store.blobs.put(sample(size_bytes)) as lease:
        collect_elsewhere(bucket.inner, lease.hash)
        return lease.hash


PUTS: dict[str, Callable[[Store, bytes], Hash]] = {
    "artifact": lambda store, data: store.put(data).hash,
    "stream": lambda store, data: store.put(iter([data])).hash,
    "many": lambda store, data: store.put_many([data, b"another"])[0].hash,
    "blob": lambda store, data: store.blobs.put(data).hash,
    "blobs": lambda store, data: store.blobs.put_many([data])[0].hash,
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", PUTS)
def test_bytes_at_hand_go_up_again(store: Store, bucket: Watched, how: str, size: int) -> None:
    lost = put_and_lose(store, bucket, size)
    assert PUTS[how](store, sample(size)) == lost
    assert bucket.inner.head(data_key(lost.digest, 1)) is not None
    assert (bucket.inner.head(outboard_key(lost.digest, 1)) is not None) == (size > 16_384)
    assert store.read(lost) == sample(size)


def test_a_blob_that_is_known_sends_no_body_and_is_looked_at(store: Store, bucket: Watched) -> None:
    store.put(sample(100))
    bucket.told.clear()
    with store.blobs.put(sample(100)) as lease:
        digest = lease.hash.digest
        assert bucket.told == [("head", gone_key(digest, 0)), ("head", data_key(digest, 0))]


def test_a_tag_keeps_what_it_had_when_the_other_blob_is_gone(store: Store, bucket: Watched) -> None:
    kept, lost = store.blobs.put(b"kept").hash, put_and_lose(store, bucket)
    store.tags.set("name", kept)
    seen = []

    def look(key: str) -> None:
        facts, named = Facts(), read_named(bucket.inner, key)
        assert named is not None
        facts_of(named.documents, facts, key)
        seen.append((facts.tags[-1][1], [tag.hash for tag in intended(named.documents)]))

    bucket.after = look
    with pytest.raises(BlobNotFound):
        store.tags.set("name", lost)
    assert seen == [(kept.digest, [lost.digest]), (kept.digest, [])]  # intended, and taken back
    bucket.after = lambda key: None
    store.rebuild()
    assert store.tags.get("name").hash == kept
    assert not store.exists(lost)


def test_a_tag_is_set_back_when_the_other_blob_goes_meanwhile(store: Store, bucket: Watched) -> None:
    kept = store.blobs.put(b"kept").hash
    store.tags.set("name", kept)
    for name in ("name", "new"):
        lost = store.blobs.put(name.encode()).hash
        bucket.after = lambda key, lost=lost: collect_elsewhere(bucket.inner, lost)  # type: ignore[misc]
        with pytest.raises(BlobNotFound, match="collected"):
            store.tags.set(name, lost)
    bucket.after = lambda key: None
    tags = [line for line in object_core(store).catalog.dump() if line.startswith("tag")]
    store.rebuild()
    assert [line for line in object_core(store).catalog.dump() if line.startswith("tag")] == tags
    assert store.tags.get("name").hash == kept
    with pytest.raises(TagNotFound):
        store.tags.get("new")
    store.tags.set("name", store.blobs.put(b"third").hash)  # it can be changed as ever


def test_what_is_restored_too_late_stays_deleted(store: Store, bucket: Watched) -> None:
    artifact = store.put(b"lost", filename="a")
    store.delete(artifact)
    bucket.after = lambda key: collect_elsewhere(bucket.inner, artifact.hash)
    with pytest.raises((ArtifactNotFound, BlobNotFound)):
        store.restore(artifact.id)
    bucket.after = lambda key: None
    store.rebuild()
    with pytest.raises(ArtifactNotFound):
        store.info(artifact.id)
    store.put(b"lost")
    assert store.restore(artifact.id).filename == "a"


def test_an_update_that_requires_what_goes_meanwhile_changes_nothing(store: Store, bucket: Watched) -> None:
    artifact, lost = store.put(b"it", tags=["old"]), store.blobs.put(b"lost").hash
    bucket.after = lambda key: collect_elsewhere(bucket.inner, lost)
    with pytest.raises(BlobNotFound):
        store.update(artifact, add_tags=["new"], add_requires=[lost])
    store.rebuild()
    found = store.info(artifact.id)
    assert (found.tags, found.requires) == (("old",), ())


def test_a_name_is_taken_away_only_after_the_look(store: Store, bucket: Watched) -> None:
    """A collector that listed half of the tags sees the old name or the new one; if not, the look sees its marker."""
    hash = store.blobs.put(b"it").hash
    store.tags.set("old", hash)
    bucket.told.clear()
    store.tags.rename("old", "new")
    looks = [at for at, one in enumerate(bucket.told) if one == ("head", gone_key(hash.digest, 0))]
    assert bucket.told.index(("create", tag_key("new"))) < looks[-1]
    assert looks[-1] < bucket.told.index(("replace", tag_key("old")))


def test_a_rename_that_comes_too_late_leaves_the_old_name(store: Store, bucket: Watched) -> None:
    hash = store.blobs.put(b"it").hash
    store.tags.set("old", hash)
    bucket.after = lambda key: collect_elsewhere(bucket.inner, hash)
    with pytest.raises(BlobNotFound):
        store.tags.rename("old", "new")
    bucket.inner.create(data_key(hash.digest, 1), b"it")
    store.rebuild()
    assert [tag.name for tag in store.tags.list()] == ["old"]


@pytest.mark.parametrize("wrong", [b"no", b"IT", b"it and more"])
@pytest.mark.parametrize("how", ["artifact", "stream", "blob"])
def test_other_bytes_under_the_name_of_a_blob_are_replaced(
    store: Store, bucket: Watched, how: str, wrong: bytes
) -> None:
    """A service says that there is one already: it counts only with the bytes that were brought."""
    key = data_key(_native.blake3(b"it"))
    bucket.inner.create(key, wrong)
    assert store.read(PUTS[how](store, b"it")) == b"it"
    found = bucket.inner.get(f"damaged/{key}", max_bytes=100)
    assert found is not None
    assert found[0] == wrong


def test_what_a_put_found_there_stays_until_it_is_leased(store: Store) -> None:
    store.blobs.put(b"it").release()
    with object_core(store).adding() as (group, ingest):
        ingest.add_many([b"it"])
        assert store.gc(min_age_seconds=0).dropped_blobs == 0
        group.commit()
        assert store.gc(min_age_seconds=0).dropped_blobs == 0
    assert store.gc(min_age_seconds=0).dropped_blobs == 1


@pytest.mark.parametrize("how", PUTS)
def test_a_marker_counts_though_a_listing_lacks_it(
    store: Store, bucket: Watched, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    digest = store.blobs.put(sample(100)).hash.digest
    bucket.inner.create(gone_key(digest, 0), b"")

    def list_without(prefix: str, *, after: str = "") -> Iterator[Meta]:
        return (one for one in bucket.inner.list(prefix, after=after) if "/gone." not in one.key)

    monkeypatch.setattr(bucket, "list", list_without, raising=False)
    PUTS[how](store, sample(100))
    assert bucket.inner.head(data_key(digest, 1)) is not None
