"""A tag that is given another blob, by who may die or be overtaken at any request: what it named stays until then.

Models: models/tags.pml.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pytest

from holdfast import _native
from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.intents import confirm, intent_of, withdraw
from holdfast.backend.objects.layout import tag_key
from holdfast.backend.objects.names import Named, intended, read_named
from holdfast.errors import BlobNotFound, Conflict, TagNotFound
from holdfast.store import Store
from holdfast.testing.faults import SimulatedCrash
from holdfast.testing.faulty_bucket import BucketFault, BucketSite, FaultyBucket
from holdfast.testing.inside import object_core
from holdfast.testing.interleaving import Sides, iter_orders
from holdfast.testing.plain_bucket import PlainBucket
from holdfast.types import Hash, Tag
from holdfast.wire.bundle import encode_bundle
from holdfast.wire.document import TagDocument, encode_tag
from holdfast.wire.record import Kind

OLD, NEW = b"what the tag names", b"what it is to name"
CHILD = b"what a hash seq lists"
KEY = tag_key("name")


def hash_of(data: bytes) -> Hash:
    return Hash(_native.blake3(data))


def prepared() -> tuple[PlainBucket, Hash]:
    """A tag on one blob, and a blob and a hash seq that nothing names; gives the hash of the latter."""
    bucket = PlainBucket()
    with Store._open_objects(bucket, create=True) as store:
        with store.blobs.put(OLD) as lease:
            store.tags.set("name", lease.hash)
        store.blobs.put(NEW).release()
        with store.blobs.put(CHILD) as child, store.blobs.hash_seq([child.hash]) as seq:
            return bucket, seq.hash


def collect(bucket: Bucket) -> None:
    with Store._open_objects(bucket) as store:
        store.gc(min_age_seconds=0)


def states(bucket: Bucket) -> tuple[Hash, list[Hash]]:
    """Give what the tag names, and what it is to name."""
    named = read_named(bucket, KEY)
    assert named is not None
    with Store._open_objects(bucket) as store:
        return store.tags.get("name").hash, [Hash(tag.hash) for tag in intended(named.documents)]


def test_a_tag_that_is_replaced_costs_an_intent() -> None:
    bucket, _ = prepared()
    faulty = FaultyBucket(bucket)
    with Store._open_objects(faulty) as store:
        before = len(faulty.sites)
        store.tags.set("name", hash_of(NEW))
        calls = [(site.call, site.key.partition("/")[0]) for site in faulty.sites[before:]]
    assert calls == [
        ("get", "tags"),
        ("replace", "tags"),
        ("head", "blobs"),
        ("head", "blobs"),
        ("replace", "tags"),
    ]
    assert states(bucket) == (hash_of(NEW), [])


@pytest.mark.parametrize("format", ["raw", "hash_seq"])
def test_whoever_dies_while_its_blob_is_collected_has_changed_nothing(format: str) -> None:
    """Killed before each request, with a collection before each of those that came: an acknowledged tag stays."""
    start, seq = prepared()
    wanted = hash_of(NEW) if format == "raw" else seq
    outcomes = set()
    for collected_at in range(1, 20):
        for killed_at in range(collected_at, 20):
            bucket = start.copied()
            faulty = FaultyBucket(bucket)
            with suppress(SimulatedCrash), Store._open_objects(faulty) as store:
                object_core(store).backend.pool.shutdown()
                object_core(store).backend.pool = ThreadPoolExecutor(1)
                first = len(faulty.sites)

                faulty.on_site = partial(_collect_at, first + collected_at, bucket)
                faulty.arm(BucketFault.CRASH_BEFORE, killed_at)
                result: object = "died"
                try:
                    result = store.tags.set("name", wanted, format)
                except BlobNotFound:
                    result = "not found"
            with Store._open_objects(bucket) as fresh:
                for _ in range(2):
                    tag = fresh.tags.get("name")
                    assert tag.hash == (wanted if isinstance(result, Tag) else hash_of(OLD)), (
                        collected_at,
                        killed_at,
                    )
                    assert _native.blake3(fresh.read(tag.hash)) == tag.hash.digest
                    assert tag.hash != seq or fresh.read(hash_of(CHILD)) == CHILD
                    fresh.gc(min_age_seconds=0)
                outcomes.add(result if isinstance(result, str) else "set")
                tag = fresh.tags.set("name", fresh.blobs.put(b"third").hash)
                assert states(bucket) == (tag.hash, [])
                fresh.gc(min_age_seconds=0)
                assert not fresh.exists(hash_of(OLD))
                assert not fresh.exists(wanted)
            if faulty.hit is None:
                break
    assert outcomes == {"died", "not found", "set"}


def _collect_at(number: int, bucket: PlainBucket, site: BucketSite) -> None:
    if site.number == number:
        collect(bucket)


def test_nobody_sees_a_blob_that_is_not_looked_at_yet() -> None:
    """Before each request of who sets the tag, another machine sees what it named before."""
    start, _ = prepared()
    faulty = FaultyBucket(start)
    seen = []
    with Store._open_objects(faulty) as store:
        faulty.on_site = lambda site: seen.append((site.call, states(start)))
        store.tags.set("name", hash_of(NEW))
        faulty.on_site = None
    old, new = hash_of(OLD), hash_of(NEW)
    assert seen == [
        ("get", (old, [])),
        ("replace", (old, [])),
        ("head", (old, [new])),
        ("head", (old, [new])),
        ("replace", (old, [new])),
    ]
    assert states(start) == (new, [])


def test_two_that_set_a_tag_at_once_both_do() -> None:
    """In any order of their requests: the one that was confirmed last counts, and nothing is left beside it."""
    start, seq = prepared()
    _collect_all_orders(
        start,
        [
            lambda store: store.tags.set("name", hash_of(NEW)),
            lambda store: store.tags.set("name", seq, "hash_seq"),
        ],
        lambda results: all(isinstance(one, Tag) for one in results),
    )


def test_of_two_with_the_same_condition_one_does() -> None:
    start, seq = prepared()

    def one_of(results: list[object]) -> bool:
        return sorted(type(one).__name__ for one in results) == ["Conflict", "Tag"]

    _collect_all_orders(
        start,
        [
            lambda store: store.tags.set("name", hash_of(NEW), if_revision=1),
            lambda store: store.tags.set("name", seq, "hash_seq", if_revision=1),
        ],
        one_of,
    )


def _collect_all_orders(
    start: PlainBucket, works: list[Callable[[Store], object]], is_right: Callable[[list[object]], bool]
) -> None:
    for choices, tell in iter_orders(3):
        bucket = start.copied()
        sides = Sides(choices, lambda site: False)
        stores = []
        for side in range(len(works)):
            faulty = FaultyBucket(bucket)
            stores.append(Store._open_objects(faulty))
            core = object_core(stores[-1])
            core.backend.pool.shutdown()
            core.backend.pool = ThreadPoolExecutor(1)
            faulty.on_site = sides.on_site(side)
        results = sides.run(
            [partial(work, store) for work, store in zip(works, stores, strict=True)], lambda: None
        )
        for store in stores:
            store.close()
        assert is_right(results), (results, sides.trace)
        tag, left = states(bucket)
        assert tag in [one.hash for one in results if isinstance(one, Tag)], sides.trace
        assert left == [], sides.trace
        tell(sides)


def test_a_deletion_ends_what_was_intended() -> None:
    """Who intends something begins anew when the tag is deleted meanwhile."""
    start, _ = prepared()
    faulty = FaultyBucket(start)
    with Store._open_objects(faulty) as store, Store._open_objects(start) as other:

        def delete(site: BucketSite) -> None:
            if site.call == "head":
                faulty.on_site = None
                other.tags.delete("name")
                with pytest.raises(TagNotFound):
                    other.tags.get("name")

        faulty.on_site = delete
        assert store.tags.set("name", hash_of(NEW)).revision == 3
    assert states(start) == (hash_of(NEW), [])


def test_a_condition_is_held_against_what_counts_at_the_end() -> None:
    start, _ = prepared()
    faulty = FaultyBucket(start)
    with Store._open_objects(faulty) as store, Store._open_objects(start) as other:

        def change(site: BucketSite) -> None:
            if site.call == "head":
                faulty.on_site = None
                other.tags.set("name", other.blobs.put(b"third").hash)

        faulty.on_site = change
        with pytest.raises(Conflict, match="revision 2, not 1"):
            store.tags.set("name", hash_of(NEW), if_revision=1)
    assert states(start) == (hash_of(b"third"), [])


def document(data: bytes, revision: int) -> tuple[Kind, bytes]:
    return Kind.TAG, encode_tag(TagDocument("name", hash_of(data).digest, 0, revision, 7, deleted=False))


def write(bucket: PlainBucket, documents: list[tuple[Kind, bytes]]) -> Named:
    """Have a bucket whose tag holds these documents; gives the object."""
    before = bucket.head(KEY)
    assert before is not None
    made = bucket.replace(KEY, encode_bundle(documents, KEY), before.e_tag or "")
    assert made is not None
    return Named(KEY, documents, made.e_tag or "")


def test_what_is_taken_back_leaves_what_others_intend() -> None:
    bucket, _ = prepared()
    one = write(bucket, intent_of(document(NEW, 2), write(bucket, [document(OLD, 1)])))
    two = write(bucket, intent_of(document(CHILD, 2), one))
    withdraw(bucket, one)
    assert states(bucket) == (hash_of(OLD), [hash_of(CHILD)])
    withdraw(bucket, one)  # again: it is not there
    assert confirm(bucket, one) is None
    assert confirm(bucket, two) is not None
    assert states(bucket) == (hash_of(CHILD), [])
    withdraw(bucket, two)
    assert states(bucket) == (hash_of(CHILD), [])


def test_what_was_made_so_without_a_reply_is_so() -> None:
    """And others intend something since: the object is another one, and what counts is ours."""
    bucket, _ = prepared()
    one = write(bucket, intent_of(document(NEW, 2), write(bucket, [document(OLD, 1)])))
    assert confirm(bucket, one) is not None
    two = write(bucket, intent_of(document(CHILD, 3), write(bucket, [document(NEW, 2)])))
    again = confirm(bucket, one)
    assert again is not None
    assert again.e_tag == two.e_tag


def test_what_is_intended_counts_for_nothing_but_the_collection() -> None:
    bucket, _ = prepared()
    write(bucket, intent_of(document(NEW, 2), write(bucket, [document(OLD, 1)])))
    with Store._open_objects(bucket) as store:
        assert store.gc(min_age_seconds=0).dropped_blobs == 2  # the hash seq and its child
        assert store.read(hash_of(NEW)) == NEW
        assert store.read(store.tags.get("name").hash) == OLD
        assert store.scrub().ok
        store.tags.delete("name")
        assert store.gc(min_age_seconds=0).dropped_blobs == 2
