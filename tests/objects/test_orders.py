"""A writer and a collector, stopped between every two of their requests: nothing acknowledged is lost in any order.

Each is a store of its own, with a catalog of its own, on one bucket. The rules are those of models/bucket.pml; a test
says which of its cases it is about (docs/design.md, "Collection in a bucket").
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pytest

from holdfast import _native
from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.collection import mark
from holdfast.backend.objects.layout import BLOBS, COLLECTOR_KEY, TAGS
from holdfast.errors import ArtifactNotFound, BlobNotFound, Conflict, HoldfastError, Locked
from holdfast.store import Store
from holdfast.testing.faulty_bucket import BucketSite, FaultyBucket
from holdfast.testing.inside import object_core
from holdfast.testing.interleaving import Sides, iter_orders
from holdfast.testing.plain_bucket import PlainBucket
from holdfast.types import Artifact, Hash, Tag

DATA = b"the bytes that all of this is about"
HASH = Hash(_native.blake3(DATA))
OTHER = b"something else"
IS_DEEP = bool(os.environ.get("HOLDFAST_DEEP"))
SWITCHES = 4 if IS_DEEP else 2
"""How often the turn is taken from a side that could go on, at most, where all orders would be too many."""

Work = Callable[[Store], object]


class _PagedBucket(FaultyBucket):
    """Gives one tag a page, so that others come between two pages of them."""

    def list(self, prefix: str, *, after: str = "") -> Iterator[Meta]:
        if prefix != TAGS:
            return super().list(prefix, after=after)
        found: list[Meta] = []
        while (meta := next(super().list(TAGS, after=after), None)) is not None:
            found.append(meta)
            after = meta.key
        return iter(found)


class _Bucket(PlainBucket):
    """Remembers what was deleted, so that it can be deleted again, late."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: list[str] = []

    def delete(self, keys: Sequence[str]) -> None:
        self.deleted += keys
        super().delete(keys)

    def repeat_deletes(self) -> None:
        """DUP: a deletion of data that somebody gave up on arrives once more."""
        super().delete([key for key in self.deleted if key.startswith(BLOBS)])

    def markers(self) -> set[str]:
        return {key for key in self.objects if "/gone." in key}


class World:
    """A bucket as it is before each run, and what is acknowledged in it."""

    def __init__(self, prepare: Callable[[Store], object]) -> None:
        self.start = _Bucket()
        with Store._open_objects(self.start, create=True) as store:
            self.given = prepare(store)

    def run(
        self,
        works: list[Work],
        choices: list[int],
        acknowledged: Callable[[list[object]], list[Hash]],
        always: list[Hash],
    ) -> tuple[Sides, list[object], _Bucket]:
        """Run the sides in one order; whatever is always named has data after each step."""
        bucket = self.start.copied()
        markers = bucket.markers()
        sides = Sides(choices, _is_free)
        stores = []
        for side in range(len(works)):
            faulty = _PagedBucket(bucket)
            store = Store._open_objects(faulty)
            _one_at_a_time(store)
            faulty.on_site = sides.on_site(side)
            stores.append(store)

        def look() -> None:
            for hash_ in always:
                assert _has_data(bucket, hash_), sides.trace
            now = bucket.markers()
            assert markers <= now, ("markers stay", sides.trace)
            markers.update(now)

        pairs = zip(works, stores, strict=True)
        results = sides.run([partial(work, store) for work, store in pairs], look)
        for store in stores:
            store.close()
        bucket.repeat_deletes()
        with Store._open_objects(bucket) as fresh:
            for _ in range(2):
                for hash_ in acknowledged(results):
                    assert _native.blake3(fresh.read(hash_)) == hash_.digest, sides.trace
                _all_names_are_readable(fresh, sides)
                while not fresh.gc(min_age_seconds=0).complete:
                    pass
        return sides, results, bucket

    def try_all(
        self,
        works: list[Work],
        acknowledged: Callable[[list[object]], list[Hash]],
        *,
        always: list[Hash] | None = None,
        switches: int | None = SWITCHES,
        expected: tuple[type[BaseException], ...] = (),
    ) -> set[str]:
        """Run them in all orders; gives the kinds of outcome of the first side that there were."""
        outcomes = set()
        for choices, tell in iter_orders(switches):
            sides, results, _ = self.run(works, choices, acknowledged, always or [])
            for result in results:
                if isinstance(result, BaseException) and not isinstance(result, expected):
                    raise AssertionError(sides.trace) from result
            outcomes.add(type(results[0]).__name__)
            tell(sides)
        return outcomes


def _is_free(site: BucketSite) -> bool:
    return site.key == COLLECTOR_KEY


def _one_at_a_time(store: Store) -> None:
    backend = object_core(store).backend
    backend.pool.shutdown()
    backend.pool = ThreadPoolExecutor(1)


def _has_data(bucket: PlainBucket, hash_: Hash) -> bool:
    return any(key.startswith(f"blobs/{hash_}/data") for key in bucket.objects)


def _all_names_are_readable(store: Store, sides: Sides) -> None:
    for artifact in store.find():
        assert _native.blake3(store.read(artifact)) == artifact.hash.digest, sides.trace
        for required in artifact.requires:
            assert store.exists(Hash.parse(required)), sides.trace
    for tag in store.tags.list():
        assert _native.blake3(store.read(tag.hash)) == tag.hash.digest, sides.trace


def collect(store: Store) -> object:
    return store.gc(min_age_seconds=0)


def of_the_first(results: list[object]) -> list[Hash]:
    """What the first side acknowledged."""
    (result, *_) = results
    return [result.hash] if isinstance(result, (Artifact, Tag)) else []


def nothing(_: Store) -> None:
    pass


def garbage(store: Store) -> Artifact:
    """A blob that was deleted, so that a collection takes it."""
    artifact = store.put(DATA)
    store.delete(artifact)
    return artifact


def loose(store: Store) -> None:
    store.blobs.put(DATA).release()


def collected(store: Store) -> None:
    """A blob that was put and collected once: its next generation is 1."""
    garbage(store)
    store.gc(min_age_seconds=0)
    assert not _has_data(object_core(store).backend.bucket, HASH)  # type: ignore[arg-type]


@pytest.mark.parametrize("prepare", [nothing, loose, garbage, collected])
def test_what_is_put_stays(prepare: Callable[[Store], object]) -> None:
    """NO_SECOND_LOOK, LOOK_BEFORE_NAME, STALE_LIST, NO_MARK: all that is put is there, whenever it is collected."""
    outcomes = World(prepare).try_all([lambda store: store.put(DATA), collect], of_the_first)
    assert outcomes == {"Artifact"}


def test_in_every_order_what_is_put_stays() -> None:
    """As before, with as many changes of turn as there can be (in a deep run)."""
    World(loose).try_all(
        [lambda store: store.put(DATA), collect], of_the_first, switches=None if IS_DEEP else 3
    )


def test_what_is_put_twice_stays() -> None:
    """Two writers and a collector that has marked already: one of them relies on what the other put."""
    world = World(garbage)
    for choices, tell in iter_orders(SWITCHES):
        sides, results, bucket = world.run(
            [lambda store: store.put(DATA), lambda store: store.put(DATA)], choices, of_the_first, []
        )
        assert all(isinstance(one, Artifact) for one in results), (results, sides.trace)
        assert _has_data(bucket, HASH)
        tell(sides)


def test_what_is_restored_stays_or_is_not_found() -> None:
    """NO_NAMER_LOOK: who names without bytes looks too."""
    world = World(garbage)
    artifact = world.given
    assert isinstance(artifact, Artifact)
    outcomes = world.try_all(
        [lambda store: store.restore(artifact), collect],
        of_the_first,
        expected=(ArtifactNotFound,),
    )
    assert {"Artifact", "ArtifactNotFound"} <= outcomes


def test_what_is_tagged_stays_or_is_not_found() -> None:
    outcomes = World(loose).try_all(
        [lambda store: store.tags.set("name", HASH), collect], of_the_first, expected=(BlobNotFound,)
    )
    assert {"Tag", "BlobNotFound"} <= outcomes


def test_a_tag_that_is_set_to_what_is_gone_names_what_it_named() -> None:
    def prepare(store: Store) -> None:
        with store.blobs.put(OTHER) as lease:
            store.tags.set("name", lease.hash)
        loose(store)

    other = Hash(_native.blake3(OTHER))

    def still(results: list[object]) -> list[Hash]:
        return of_the_first(results) or [other]

    outcomes = World(prepare).try_all(
        [lambda store: store.tags.set("name", HASH), collect], still, expected=(BlobNotFound,)
    )
    assert {"Tag", "BlobNotFound"} <= outcomes


def test_what_is_renamed_is_never_without_a_name() -> None:
    """NAMER RENAME: the old name goes after the look at the new one."""

    def prepare(store: Store) -> None:
        with store.blobs.put(DATA) as lease:
            store.tags.set("zz old", lease.hash)
        mark(object_core(store).backend, [(HASH.digest, 0)])  # by a collector that found the name then

    for to in ("new", "other", "third"):  # their keys are hashes: before and behind the old one's
        rename: Work = partial(_rename, to)
        outcomes = World(prepare).try_all([rename, collect], of_the_first, always=[HASH])
        assert outcomes == {"Tag"}


def _rename(to: str, store: Store) -> object:
    return store.tags.rename("zz old", to)


def test_what_is_required_stays_or_is_not_found() -> None:
    def both(results: list[object]) -> list[Hash]:
        return [HASH, results[0].hash] if isinstance(results[0], Artifact) else []

    outcomes = World(loose).try_all(
        [lambda store: store.put(OTHER, requires=[HASH]), collect], both, expected=(BlobNotFound,)
    )
    assert {"Artifact", "BlobNotFound"} <= outcomes


def test_what_comes_to_be_required_stays_or_is_not_found() -> None:
    def prepare(store: Store) -> Artifact:
        loose(store)
        return store.put(OTHER)

    world = World(prepare)
    artifact = world.given
    assert isinstance(artifact, Artifact)
    outcomes = world.try_all(
        [lambda store: store.update(artifact, add_requires=[HASH]), collect],
        lambda results: [HASH, artifact.hash] if isinstance(results[0], Artifact) else [artifact.hash],
        expected=(BlobNotFound,),
    )
    assert {"Artifact", "BlobNotFound"} <= outcomes


def test_what_a_tagged_hash_seq_lists_stays() -> None:
    def prepare(store: Store) -> Hash:
        with store.blobs.put(DATA) as child, store.blobs.hash_seq([child.hash]) as lease:
            return lease.hash

    world = World(prepare)
    seq = world.given
    assert isinstance(seq, Hash)
    world.try_all(
        [lambda store: store.tags.set("seq", seq, "hash_seq"), collect],
        lambda results: [seq, HASH] if isinstance(results[0], Tag) else [],
        expected=(BlobNotFound,),
    )


def test_two_collectors_take_nothing_that_is_put() -> None:
    """C2: that there is one collector at a time is a courtesy."""

    def collect_anyway(store: Store) -> object:
        object_core(store).backend.bucket.delete([COLLECTOR_KEY])  # as if it were taken for dead
        return store.gc(min_age_seconds=0)

    def put_then_collect(store: Store) -> object:
        artifact = store.put(DATA)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("holdfast.backend.objects.collection._is_dead", lambda *_: True)
            with suppress(Locked):
                store.gc(min_age_seconds=0)
        return artifact

    World(garbage).try_all(
        [put_then_collect, collect_anyway], of_the_first, expected=(HoldfastError,), switches=2
    )


def test_what_is_read_while_its_generation_changes_is_read() -> None:
    """Readers take any generation that is there, and look again where one has gone."""

    def prepare(store: Store) -> Artifact:
        artifact = store.put(DATA)
        store.delete(artifact)
        return artifact

    world = World(prepare)
    artifact = world.given
    assert isinstance(artifact, Artifact)

    def read(store: Store) -> object:
        try:
            return store.read(HASH)
        except HoldfastError as error:
            return error

    def replaced(store: Store) -> object:
        kept = store.put(DATA)
        store.gc(min_age_seconds=0)
        return kept

    outcomes = world.try_all([read, replaced], lambda _: [HASH], expected=(Conflict,))
    assert outcomes == {"bytes"}


def test_data_comes_before_its_outboard_and_both_before_a_name() -> None:
    """A crash in between leaves what nothing names: never a name without bytes, nor an outboard of nothing."""
    bucket = FaultyBucket(PlainBucket())
    with Store._open_objects(bucket, create=True) as store:
        before = len(bucket.sites)
        store.put_many([bytes([number]) * 100_000 for number in range(5)])
        keys = [site.key for site in bucket.sites[before:] if site.call in ("create", "upload")]
    *blobs, name = keys
    assert name.startswith("commits/")
    assert len(blobs) == 10
    for key in blobs:
        data, _, part = key.rpartition("/")
        assert part == "data" or blobs.index(f"{data}/data") < blobs.index(key)
