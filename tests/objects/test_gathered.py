"""Objects of names that a collection elsewhere gathered in new ones: a refresh reads those, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.layout import (
    ARTIFACTS,
    COMMITS,
    artifact_key,
    commit_key,
    data_key,
    gone_key,
    tag_key,
)
from holdfast.backend.objects.names import place_of
from holdfast.errors import BlobNotFound
from holdfast.object_refresh import MAX_LOOKS
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.faults import SimulatedCrash
from holdfast.testing.faulty_bucket import BucketFault, FaultyBucket
from holdfast.testing.inside import object_core
from holdfast.testing.plain_bucket import PlainBucket
from holdfast.types import Artifact, new_ids, now_ms
from tests.objects.test_refresh import facts

Machine = Callable[[], Store]


@pytest.fixture
def bucket() -> PlainBucket:
    return PlainBucket()


@pytest.fixture
def machine(bucket: PlainBucket) -> Iterator[Machine]:
    stores: list[Store] = []

    def open_store() -> Store:
        stores.append(Store._open_objects(bucket, create=True))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def commits(bucket: PlainBucket) -> list[str]:
    return [meta.key for meta in bucket.list(COMMITS) if "zzz" not in meta.key]


def rests_on(store: Store) -> set[int]:
    """Give the numbers of the objects on which what the catalog knows of artifacts rests."""
    return {row[0] for row in object_core(store).catalog.ask("SELECT location FROM artifacts")}


def put(store: Store, count: int) -> list[Artifact]:
    return [store.put(sample(10, number), filename=str(number), tags=["t"]) for number in range(count)]


def test_of_objects_that_say_the_same_the_newest_has_the_lowest_number() -> None:
    """Whatever was changed since comes before all commits; clocks may be anywhere."""
    places = [place_of(commit_key(id_)) for id_ in new_ids(3, now_ms())]
    assert len(set(places)) == 3
    times = (0, 1, 1_577_836_800_000, now_ms() - 1, now_ms(), 1 << 47)
    made = [
        place_of(commit_key(time_ms.to_bytes(6) + bytes.fromhex("7000800000000000000a"))) for time_ms in times
    ]
    assert made[2:] == sorted(set(made[2:]), reverse=True)
    assert min(made[:2]) > made[3]
    for key in (artifact_key(bytes(16)), artifact_key(b"\xff" * 16), tag_key("a")):
        assert 0 <= place_of(key) < made[-1]
    assert max(made) < 1 << 62


def test_a_refresh_reads_what_was_gathered_alone(machine: Machine, bucket: PlainBucket) -> None:
    one, two, three = machine(), machine(), machine()
    artifacts = put(one, 30)
    one.update(artifacts[0], filename="changed")
    one.delete(artifacts[1])
    one.tags.set("tag", artifacts[2].hash)
    two.refresh()
    assert three.compact().names_gathered == 30
    stats = two.refresh()
    assert (stats.is_rebuilt, stats.names_read, stats.requests["get"]) == (False, 1, 1)
    assert facts(two) == facts(one)
    idle = two.refresh()
    assert (idle.is_rebuilt, idle.requests["get"], idle.requests["head"]) == (False, 0, 0)
    put(one, 5)
    one.compact(0.0)
    assert two.refresh().is_rebuilt is False
    assert facts(two) == facts(machine())
    places = {place_of(key) for key in [*commits(bucket), *(meta.key for meta in bucket.list(ARTIFACTS))]}
    assert rests_on(one) <= places
    assert rests_on(two) <= places


def test_any_number_is_gathered_without_a_rebuild(machine: Machine, bucket: PlainBucket) -> None:
    one, two = machine(), machine()
    put(one, MAX_LOOKS + 100)
    two.refresh()
    one.compact()
    stats = two.refresh()
    assert (stats.is_rebuilt, stats.names_read, stats.requests["head"]) == (False, 2, 0)
    assert len(commits(bucket)) == 2
    assert facts(two) == facts(one)


def test_what_is_gathered_while_names_are_read_is_read(machine: Machine, bucket: PlainBucket) -> None:
    """An object that was listed is gone: the names are listed again, and the new one is read."""
    one, two = machine(), machine()
    put(one, 10)
    listed = bucket.list
    done: list[None] = []

    def list_then_gather(prefix: str, *, after: str = "") -> Iterator[Meta]:
        found = list(listed(prefix, after=after))
        if prefix == COMMITS and not done:
            done.append(None)
            one.compact()
        yield from found

    object_core(two).backend.bucket.list = list_then_gather  # type: ignore[method-assign]
    stats = two.refresh()
    bucket.list = listed  # type: ignore[method-assign]
    assert stats.is_rebuilt is False
    assert facts(two) == facts(one)


def test_of_two_objects_that_say_the_same_one_may_go(machine: Machine, bucket: PlainBucket) -> None:
    """Two that gather at once make two equal objects."""
    one, two = machine(), machine()
    put(one, 10)
    before = {key: bucket.objects[key] for key in commits(bucket)}
    one.compact()
    bucket.objects.update(before)
    machine().compact(0.0)
    two.refresh()
    expected = facts(machine())
    for key in [key for key in commits(bucket) if key not in before][:1]:
        if len(commits(bucket)) > 1:
            bucket.delete([key])
    two.refresh()
    assert facts(two) == expected
    bucket.delete(commits(bucket))
    assert two.refresh().is_rebuilt
    assert list(two.find()) == []


def test_what_nothing_says_any_more_is_noticed(machine: Machine, bucket: PlainBucket) -> None:
    """Also by who gathered it: an artifact rests on the object that says it now."""
    one, two = machine(), machine()
    put(one, 10)
    two.refresh()
    one.compact()
    two.refresh()
    bucket.delete(commits(bucket))
    for store in (one, two):
        assert store.refresh().is_rebuilt
        assert list(store.find()) == []


def test_changed_names_that_are_gone_are_noticed(machine: Machine, bucket: PlainBucket) -> None:
    one, two = machine(), machine()
    artifact = one.put(b"x", filename="first")
    one.update(artifact, filename="second")
    two.refresh()
    bucket.delete([meta.key for meta in bucket.list(ARTIFACTS) if "zzz" not in meta.key])
    assert two.refresh().is_rebuilt
    assert two.info(artifact.id).filename == "first"


def test_what_is_hidden_is_gathered_too(machine: Machine, bucket: PlainBucket) -> None:
    one, two = machine(), machine()
    artifacts = put(one, 3)
    digest = artifacts[0].hash.digest
    bucket.create(gone_key(digest, 0), b"")
    bucket.delete([data_key(digest)])
    two.refresh()
    assert two.health().unacknowledged == 1
    one.compact()
    assert two.refresh().is_rebuilt is False
    assert two.health().unacknowledged == 1
    bucket.create(data_key(digest, 1), sample(10, 0))
    assert two.refresh().is_rebuilt is False
    assert two.info(artifacts[0].id).filename == "0"
    assert rests_on(two) == {place_of(key) for key in commits(bucket)}


def test_damage_of_what_was_gathered_makes_nobody_forget(machine: Machine, bucket: PlainBucket) -> None:
    """What the catalog read of objects that are gone is all that is left of it."""
    one, two = machine(), machine()
    put(one, 3)
    two.refresh()
    expected = facts(two)
    one.compact()
    (key,) = commits(bucket)
    data, meta = bucket.get(key, max_bytes=1 << 20) or pytest.fail("it is there")
    bucket.replace(key, data[:-1] + bytes([data[-1] ^ 1]), meta.e_tag or "")
    for _ in range(2):
        stats = two.refresh()
        assert (stats.is_rebuilt, stats.damaged) == (False, 1)
        assert facts(two) == expected
    assert two.repair().ok
    two.refresh()
    assert facts(two) == expected


@pytest.mark.parametrize("small", [False, True])
def test_a_refresh_that_dies_is_done_by_the_next(
    machine: Machine, bucket: PlainBucket, monkeypatch: pytest.MonkeyPatch, *, small: bool
) -> None:
    """Killed before each of its requests; `small`: what is gone is handled in many batches."""
    if small:
        monkeypatch.setattr("holdfast.object_refresh.BATCH_ROWS", 2)
        monkeypatch.setattr("holdfast.object_listing.BATCH_ROWS", 2)
    one = machine()
    artifacts = put(one, 8)
    for artifact in artifacts[:5]:
        one.delete(artifact)
    faulty = FaultyBucket(bucket)
    with Store._open_objects(faulty) as two:
        for at in range(1, 30):
            put(one, 3)
            one.gc(min_age_seconds=0)
            one.compact(0.0)
            faulty.arm(BucketFault.CRASH_BEFORE, at)
            with suppress(SimulatedCrash):
                two.refresh()
            hit, faulty.crashed, faulty.fault = faulty.hit, False, None
            assert two.refresh().is_rebuilt is False
            assert facts(two) == facts(one)
            if hit is None:
                break
    assert at > 5


def test_a_put_that_came_too_late_is_forgotten(machine: Machine, bucket: PlainBucket) -> None:
    """Its commit is deleted; who has read it meanwhile reads all names."""
    one, two = machine(), machine()
    with one.blobs.put(b"required") as lease:
        faulty = FaultyBucket(bucket)
        with Store._open_objects(faulty) as three:

            def read(site: object) -> None:
                if getattr(site, "call", "") == "delete":
                    faulty.on_site = None
                    two.refresh()

            def collect(site: object) -> None:
                if getattr(site, "call", "") == "head":
                    faulty.on_site = read
                    bucket.create(gone_key(lease.hash.digest, 0), b"")
                    bucket.delete([data_key(lease.hash.digest)])

            faulty.on_site = collect
            with pytest.raises(BlobNotFound):
                three.put(b"needs it", requires=[lease.hash])
    assert len(list(two.find())) == 1
    two.refresh()
    assert list(two.find()) == []
