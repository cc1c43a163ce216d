"""What each operation costs, in requests: these numbers are promised in docs/objects.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.cache import BlockCache
from holdfast.backend.objects.opening import memory_bucket
from holdfast.errors import TooLarge
from holdfast.store import Store
from holdfast.testing.contract_base import sample

Cost = dict[str, int]
MIB = 1 << 20


@pytest.fixture
def bucket() -> Bucket:
    return memory_bucket()


@pytest.fixture
def store(bucket: Bucket) -> Iterator[Store]:
    with Store._open_objects(bucket, create=True) as store:
        yield store


def cost(store: Store, work: Callable[[], object]) -> Cost:
    """Give the requests that something made, without those that were none."""
    before = store.stats().requests
    work()
    after = store.stats().requests
    return {
        name: after[name] - before[name]
        for name in after
        if name not in ("bytes_in", "bytes_out") and after[name] != before[name]
    }


def sent(store: Store, work: Callable[[], object]) -> int:
    before = store.stats().requests["bytes_out"]
    work()
    return store.stats().requests["bytes_out"] - before


def test_a_put(store: Store) -> None:
    small = sample(5_000)
    assert cost(store, lambda: store.put(small)) == {"put": 2, "head": 1}  # data, name; marker
    assert cost(store, lambda: store.put(small)) == {"put": 1, "head": 2}  # name; marker, and the data itself
    assert sent(store, lambda: store.put(small)) < 500
    large = sample(100_000)
    assert cost(store, lambda: store.put(large)) == {"put": 3, "head": 1}  # data, outboard, name; marker
    assert cost(store, lambda: store.put(large)) == {"put": 1, "head": 2}
    assert cost(store, lambda: store.put(iter([large]))) == {"put": 1, "head": 2}
    assert cost(store, lambda: store.blobs.put(sample(300)).release()) == {"put": 1, "head": 1}


def test_a_put_of_what_another_machine_put(store: Store, bucket: Bucket) -> None:
    """Its catalog does not know the blob: the body goes up, and is found to be there."""
    store.put(sample(5_000))
    with Store._open_objects(bucket) as other:
        other.put(sample(6_000))
        found = cost(store, lambda: store.put(sample(6_000)))
        # the one that is refused, its name; what is there, which is held against what was brought; marker
        assert found == {"put": 2, "get": 1, "head": 1}


def test_a_put_in_parts(store: Store) -> None:
    """Parts of 8 MiB, and the beginning and end of the upload; the bucket is asked before."""
    content = sample(20 * MIB)
    found = cost(store, lambda: store.put(content))
    assert found == {
        "put": 3 + 2 + 1 + 1,
        "head": 2,
        "list": 1,
    }  # parts, outboard, name; before, marker; look


@pytest.mark.parametrize("count", [1, 10, 500])
def test_a_batch(store: Store, count: int) -> None:
    small = [sample(1_000, seed) for seed in range(count)]
    assert cost(store, lambda: store.put_many(small)) == {"put": count + 1, "head": count}
    assert cost(store, lambda: store.put_many(small)) == {"put": 1, "head": 2 * count}
    large = [sample(20_000, seed) for seed in range(min(count, 10))]
    assert cost(store, lambda: store.put_many(large)) == {"put": 2 * len(large) + 1, "head": len(large)}


@pytest.mark.parametrize("size", [100_000, 30 * MIB])
def test_a_range(store: Store, bucket: Bucket, size: int) -> None:
    content = sample(size)
    artifact = store.put(content)
    with Store._open_objects(bucket) as cold:
        store_id = artifact.id
        offset = size // 2 + 7

        def read() -> bytes:
            return cold.read(store_id, offset, min(65_536, size - offset))

        assert cost(cold, read) == {"get": 2}
        assert cost(cold, read) == {}
        assert read() == content[offset : offset + 65_536]
        assert cost(cold, lambda: cold.read(store_id, 0, 100)) == {"get": 1}  # what proves it is known
        with cold.open(store_id) as file:
            file.seek(offset)
            assert cost(cold, lambda: file.read(4_096)) == {}


def test_a_small_blob(store: Store, bucket: Bucket) -> None:
    artifact = store.put(sample(5_000))
    with Store._open_objects(bucket) as cold:
        assert cost(cold, lambda: cold.read(artifact.id)) == {"get": 1}
        assert cost(cold, lambda: cold.read(artifact.id)) == {}
        assert cost(cold, lambda: cold.read(artifact.hash, 5, 10)) == {}


def test_a_whole_blob(store: Store, bucket: Bucket) -> None:
    artifact = store.put(sample(20 * MIB))
    with Store._open_objects(bucket, cache=BlockCache(0)) as cold:
        found = cost(cold, lambda: cold.read(artifact.id))
        assert found == {"get": 5 + 1}  # pieces of 4 MiB, and the outboard
        assert cold.stats().requests["bytes_in"] < 21 * MIB


def test_what_the_catalog_answers(store: Store) -> None:
    artifacts = store.put_many([sample(100, seed) for seed in range(20)], tags=["t"])
    store.tags.set("name", artifacts[0].hash)
    for work in (
        lambda: list(store.find()),
        lambda: list(store.find(tag="t", limit=3)),
        store.count,
        lambda: store.info(artifacts[0].id),
        lambda: store.exists(artifacts[0]),
        lambda: store.exists(artifacts[0].hash),
        lambda: list(store.tags.list()),
        lambda: store.tags.get("name"),
        lambda: store.blobs.info(artifacts[0].hash),
        lambda: list(store.tags_in_use()),
        store.stats,
        store.health,
    ):
        assert cost(store, work) == {}, work


def test_a_change(store: Store) -> None:
    artifact = store.put(sample(100))
    assert cost(store, lambda: store.update(artifact, filename="x")) == {"get": 1, "put": 1}
    assert cost(store, lambda: store.update(artifact, filename="x")) == {}
    assert cost(store, lambda: store.delete(artifact)) == {"get": 1, "put": 1}
    assert cost(store, lambda: store.restore(artifact)) == {"get": 1, "put": 1, "head": 2}
    assert cost(store, lambda: store.tags.set("name", artifact.hash)) == {"get": 1, "put": 1, "head": 2}
    other = store.put(sample(101)).hash  # an intent, the look, and then it takes the other's place
    assert cost(store, lambda: store.tags.set("name", other)) == {"get": 1, "put": 2, "head": 2}
    assert cost(store, lambda: store.tags.delete("name")) == {"get": 1, "put": 1}


def test_a_blob_that_is_not_known(store: Store) -> None:
    artifact = store.put(sample(100))
    missing = type(artifact.hash)(bytes(32))
    # whole, or in parts; an empty listing alone does not say that it is missing
    assert cost(store, lambda: store.exists(missing)) == {"list": 2, "head": 2}


def test_opening_and_care(store: Store, bucket: Bucket) -> None:
    store.put_many([sample(size) for size in (100, 20_000)])
    stats = store.rebuild()
    assert stats.requests["get"] == 2  # store.json, and the one object of names
    assert store.refresh().requests["get"] == 0
    # two blobs, an outboard, an object of names; names are listed twice; the ends, where they were removed
    assert cost(store, store.scrub) == {"list": 7, "get": 4, "put": 6}
    before = bucket.requests.snapshot()
    with Store._open_objects(bucket, read_only=True):
        opened = bucket.requests.since(before, bucket.requests.snapshot())
    assert opened["get"] == 2  # store.json, and the one object of names
    assert opened["list"] == 5  # artifacts, blobs, commits, parts, tags
    assert opened["put"] == opened["delete"] == 0


def test_the_limit_holds(bucket: Bucket) -> None:
    with Store._open_objects(memory_bucket(limit=60), create=True) as store:

        def work() -> None:
            for seed in range(60):
                store.put(sample(10, seed))

        with pytest.raises(TooLarge, match="limit of 60 requests"):
            work()
        assert sum(store.stats().requests[kind] for kind in ("get", "head", "put", "list", "delete")) <= 60
        assert list(store.find())
