"""A listing that something cut off is never taken for all there is."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from holdfast import _native
from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.ends import ENDS, list_whole
from holdfast.backend.objects.layout import ARTIFACTS, BLOBS, COMMITS, base32_name, data_key, gone_key
from holdfast.backend.objects.opening import memory_bucket
from holdfast.catalog.objects import drop_blobs
from holdfast.core import Options
from holdfast.errors import Unavailable
from holdfast.store import Store
from holdfast.testing.inside import object_core
from holdfast.types import Artifact, Hash


@pytest.fixture
def store() -> Iterator[Store]:
    with Store._open_objects(memory_bucket(), create=True, options=Options(min_age_seconds=0)) as store:
        yield store


@pytest.mark.parametrize("prefix", [COMMITS, ARTIFACTS, BLOBS])
@pytest.mark.parametrize("shown", [0, 1])
def test_what_was_cut_off_is_no_reason_to_forget(
    prefix: str, shown: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = put_three(store)
    bucket = object_core(store).backend.bucket
    whole = bucket.list
    seen = [meta.key for meta in whole(prefix)][:shown]

    def cut(asked: str, *, after: str = "") -> Iterator[Meta]:
        return (meta for meta in whole(asked, after=after) if asked != prefix or meta.key in seen)

    monkeypatch.setattr(bucket, "list", cut)
    for work in (store.gc, store.rebuild, store.refresh):
        if work == store.gc and prefix == BLOBS:
            continue  # blobs that are not seen are not collected: no harm
        with pytest.raises(Unavailable, match="no end"):
            work()
    monkeypatch.undo()
    store.rebuild()
    assert [store.read(one) for one in kept] == [b"%d" % i * 100 for i in range(3)]
    assert store.count(tag="changed") == 2


@pytest.mark.parametrize("shown", [0, 1])
def test_a_listing_goes_on_where_it_was_cut_off(
    shown: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = put_three(store)
    bucket = object_core(store).backend.bucket
    whole = bucket.list
    cuts: set[str] = set()

    def cut_once(asked: str, *, after: str = "") -> Iterator[Meta]:
        found = whole(asked, after=after)
        if asked not in cuts:
            cuts.add(asked)
            return islice(found, shown)
        return found

    monkeypatch.setattr(bucket, "list", cut_once)
    assert store.rebuild().artifacts == 3
    cuts.clear()
    assert store.gc().dropped_blobs == 0
    assert [store.read(one) for one in kept] == [b"%d" % i * 100 for i in range(3)]


def put_three(store: Store) -> list[Artifact]:
    """Put three artifacts, and change two of them."""
    kept = [store.put(b"%d" % i * 100) for i in range(3)]
    return [*(store.update(one, add_tags=["changed"]) for one in kept[:2]), kept[2]]


def test_an_end_that_was_removed_is_made_again_by_a_rebuild(store: Store) -> None:
    kept = store.put(b"kept")
    bucket = object_core(store).backend.bucket
    bucket.delete([ENDS[COMMITS]])
    with pytest.raises(Unavailable, match="holdfast rebuild"):
        store.gc()
    store.rebuild()
    store.gc()
    bucket.delete(list(ENDS.values()))
    assert not list(bucket.list(ARTIFACTS))
    object_core(store).keeper.replace("it is lost")
    store.gc()
    assert store.read(kept) == b"kept"
    assert not list(list_whole(bucket, ARTIFACTS))


def test_a_blob_is_not_missing_because_its_listing_is_empty(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a proxy answers looks so. Of a blob that was ever put, its first generation or its marker is there."""
    bucket = object_core(store).backend.bucket
    first, later = store.put(b"first").hash, store.put(b"later").hash
    bucket.create(gone_key(later.digest, 0), b"")
    bucket.create(data_key(later.digest, 1), b"later")
    bucket.delete([data_key(later.digest, 0)])
    whole, cuts = bucket.list, [0]

    def cut(asked: str, *, after: str = "") -> Iterator[Meta]:
        cuts[0] -= 1
        return iter(()) if cuts[0] >= 0 and asked.startswith(BLOBS) else whole(asked, after=after)

    monkeypatch.setattr(bucket, "list", cut)
    with Store._open_objects(bucket) as other:
        drop_blobs(object_core(other).catalog, [first.digest, later.digest])
        for hash_ in (first, later):
            cuts[0] = 100
            with pytest.raises(Unavailable, match="is empty, and there are objects"):
                other.exists(hash_)
            cuts[0] = 2
            assert other.exists(hash_)
            drop_blobs(object_core(other).catalog, [hash_.digest])
        cuts[0] = 100
        assert not other.exists(Hash(bytes(32)))
        object_core(store).backend.remember(later.digest, object_core(store).backend.look(bytes(32)))
        with pytest.raises(Unavailable, match="is empty, and there are objects"):
            store.read(later)
        with pytest.raises(Unavailable, match="is empty, and there are objects"):
            store.tags.set("name", later)
        cuts[0] = 0
        assert store.read(later) == b"later"
        assert store.health().ok


def test_a_blob_under_its_older_name_is_not_missing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = memory_bucket()
    digest = _native.blake3(b"older")
    with Store._open_objects(bucket, create=True) as store:
        bucket.create(data_key(digest, 0, base32_name(digest)), b"older")
        store.rebuild()
        assert store.read(Hash(digest)) == b"older"
        drop_blobs(object_core(store).catalog, [digest])
        monkeypatch.setattr(object_core(store).backend.bucket, "list", lambda *_, **__: iter(()))
        with pytest.raises(Unavailable, match="is empty, and there are objects"):
            store.exists(Hash(digest))
