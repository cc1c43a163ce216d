"""Collection in a bucket, rule by rule: each test fails without the line that it is named beside in docs/design.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from holdfast import _native, object_collecting
from holdfast.backend.objects import collection as steps
from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.collection import Turn
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.backend.objects.ends import ENDS
from holdfast.backend.objects.layout import (
    ARTIFACTS,
    COLLECTOR_KEY,
    COMMITS,
    TAGS,
    base32_name,
    commit_key,
    data_key,
    gone_key,
    outboard_key,
    tag_key,
)
from holdfast.bao import outboard_bytes
from holdfast.catalog.objects import drop_blobs
from holdfast.core import Options
from holdfast.errors import (
    ArtifactNotFound,
    BlobNotFound,
    Conflict,
    HoldfastError,
    Locked,
    Unavailable,
    UnreadableRoot,
)
from holdfast.facts import Facts
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.faults import SimulatedCrash
from holdfast.testing.faulty_bucket import BucketFault, BucketSite, FaultyBucket
from holdfast.testing.inside import object_core
from holdfast.testing.plain_bucket import PlainBucket
from holdfast.types import Hash, Progress, new_ids, now_ms, parse_id
from holdfast.wire.bundle import encode_bundle

DATA = sample(40_000)
HASH = Hash(_native.blake3(DATA))


@pytest.fixture
def bucket() -> PlainBucket:
    return PlainBucket()


@pytest.fixture
def store(bucket: PlainBucket) -> Iterator[Store]:
    with Store._open_objects(bucket, create=True) as store:
        yield store


def another(bucket: Bucket, **options: float) -> Store:
    """Open the store as another machine would: with a catalog of its own."""
    return Store._open_objects(bucket, options=Options(**options))  # type: ignore[arg-type]


def keys(bucket: PlainBucket, prefix: str) -> list[str]:
    return sorted(key for key in bucket.objects if key.startswith(prefix) and key not in ENDS.values())


def generations(bucket: PlainBucket, hash_: Hash = HASH) -> list[str]:
    return [key.rpartition("/")[2] for key in keys(bucket, f"blobs/{hash_}/")]


def older(bucket: PlainBucket, seconds: float, prefix: str = "") -> None:
    """Let the server say that objects were written some time ago."""
    for key, (data, meta) in list(bucket.objects.items()):
        if key.startswith(prefix):
            bucket.objects[key] = (data, meta._replace(modified_ms=meta.modified_ms - int(seconds * 1000)))


def facts(store: Store) -> list[str]:
    """Give what the catalog says of names."""
    return [line for line in object_core(store).catalog.dump() if not line.startswith("blob")]


# -- generations


def test_a_blob_comes_back_as_its_next_generation(store: Store, bucket: PlainBucket) -> None:
    for number in range(3):
        artifact = store.put(DATA)
        store.delete(artifact)
        store.gc(min_age_seconds=0)
        assert generations(bucket) == [f"gone.{n}" for n in range(number + 1)]
    store.put(DATA)
    assert generations(bucket) == ["data.3", "gone.0", "gone.1", "gone.2", "outboard.3"]
    with another(bucket) as other:
        assert other.read(HASH) == DATA
        assert other.gc(min_age_seconds=0).dropped_blobs == 0


def test_a_marked_generation_that_a_name_uses_stays_until_there_is_a_higher_one(
    store: Store, bucket: PlainBucket
) -> None:
    store.put(DATA)
    bucket.create(gone_key(HASH.digest, 0), b"")  # by a collector that found the name then
    assert store.gc(min_age_seconds=0).dropped_blobs == 0
    assert generations(bucket) == ["data", "gone.0", "outboard"]
    assert store.read(HASH) == DATA
    store.put(DATA)  # a writer does not rely on it
    assert generations(bucket) == ["data", "data.1", "gone.0", "outboard", "outboard.1"]
    report = store.gc(min_age_seconds=0)
    assert (report.dropped_blobs, report.freed_bytes) == (0, len(DATA) + 128)
    assert generations(bucket) == ["data.1", "gone.0", "outboard.1"]
    with another(bucket) as other:
        assert other.read(HASH) == DATA


def test_who_restores_copies_a_marked_generation(store: Store, bucket: PlainBucket) -> None:
    artifact = store.put(DATA)
    store.delete(artifact)
    bucket.create(gone_key(HASH.digest, 0), b"")
    store.restore(artifact)
    assert "data.1" in generations(bucket)
    assert "outboard.1" in generations(bucket)


def test_what_lies_stray_under_marks_goes(store: Store, bucket: PlainBucket) -> None:
    store.delete(store.put(DATA))
    store.gc(min_age_seconds=0)
    bucket.create(data_key(HASH.digest, 0), DATA)  # a writer that did not know, and died before it looked
    bucket.create(outboard_key(HASH.digest, 0), bytes(128))
    store.gc(min_age_seconds=0)
    assert generations(bucket) == ["gone.0"]
    bucket.create(outboard_key(HASH.digest, 0), bytes(128))
    store.gc(min_age_seconds=0)
    assert generations(bucket) == ["gone.0"]


def test_a_known_blob_that_is_gone_goes_up_with_the_bytes_that_came(
    store: Store, bucket: PlainBucket
) -> None:
    store.delete(store.put(DATA))
    with another(bucket) as other:
        other.gc(min_age_seconds=0)
    assert store.exists(HASH)  # as this catalog knows it
    for source in (DATA, iter([DATA])):
        artifact = store.put(source)
        with another(bucket) as fresh:
            assert fresh.read(artifact.id) == DATA
            fresh.delete(artifact)
            fresh.gc(min_age_seconds=0)


def test_a_blob_that_is_lost_is_noticed_by_who_would_rely_on_it(store: Store, bucket: PlainBucket) -> None:
    """A catalog alone is never believed, marker or not."""
    store.put(DATA)
    del bucket.objects[data_key(HASH.digest)]
    assert store.read(store.put(DATA)) == DATA
    del bucket.objects[data_key(HASH.digest)]
    with pytest.raises(BlobNotFound):
        store.tags.set("name", HASH)
    with another(bucket) as fresh:
        assert list(fresh.tags.list()) == []


# -- what is named


def test_what_another_machine_named_since_stays(store: Store, bucket: PlainBucket) -> None:
    """The names of this catalog are old; those of the bucket count."""
    lease = store.blobs.put(DATA)
    lease.release()
    with another(bucket) as other:
        other.tags.set("name", HASH)
        other.put(b"more")
    assert store.gc(min_age_seconds=0).dropped_blobs == 0
    assert [tag.name for tag in store.tags.list()] == ["name"]  # and the catalog has learned of it


def test_what_another_machine_deleted_since_goes(store: Store, bucket: PlainBucket) -> None:
    artifact = store.put(DATA)
    with another(bucket) as other:
        other.delete(artifact)
    report = store.gc(min_age_seconds=0)
    assert (report.forgotten_artifacts, report.dropped_blobs) == (1, 1)
    assert not store.exists(HASH)
    assert not store.exists(artifact)


def test_hash_seqs_of_other_machines_are_followed(store: Store, bucket: PlainBucket) -> None:
    with (
        another(bucket) as other,
        other.blobs.put(DATA) as child,
        other.blobs.hash_seq([child.hash]) as inner,
        other.blobs.hash_seq([inner.hash]) as outer,
    ):
        other.tags.set("seq", outer.hash, "hash_seq")
    assert store.gc(min_age_seconds=0).dropped_blobs == 0
    assert {chain.root for chain in store.why(HASH)} == {"tag 'seq'"}


def test_who_tags_a_hash_seq_looks_at_children_that_it_does_not_know(
    store: Store, bucket: PlainBucket
) -> None:
    with another(bucket) as other:
        other.blobs.put(DATA).release()
        with other.blobs.hash_seq([HASH]) as lease:
            seq = lease.hash
    bucket.create(gone_key(HASH.digest, 0), b"")
    store.tags.set("seq", seq, "hash_seq")
    assert "data.1" in generations(bucket)


def test_names_that_cannot_be_read_stop_everything(store: Store, bucket: PlainBucket) -> None:
    store.delete(store.put(DATA))
    with store.blobs.put(b"x" * 64) as lease:
        store.tags.set("seq", lease.hash, "hash_seq")
    for prefix in (COMMITS, TAGS, f"blobs/{lease.hash}/data"):
        (key,) = keys(bucket, prefix)
        data, meta = bucket.objects[key]
        bucket.objects[key] = (bytes(len(data)), meta._replace(e_tag='"other"'))
        with another(bucket) as fresh, pytest.raises(UnreadableRoot) as caught:
            fresh.gc(min_age_seconds=0)
        assert "nothing is collected" in str(caught.value)
        bucket.objects[key] = (data, meta)
    assert generations(bucket) == ["data", "outboard"]


def test_what_is_somebody_else_s_is_left_alone(store: Store, bucket: PlainBucket) -> None:
    foreign = ["commits/README", "artifacts/" + "x" * 36, "tags/x", "blobs/x/data", f"blobs/{HASH}/other"]
    for key in foreign:
        bucket.create(key, bytes(77))  # as long as the object of an artifact that is forgotten
    store.delete(store.put(DATA))
    assert store.gc(min_age_seconds=0).dropped_blobs == 1
    assert set(foreign) <= set(bucket.objects)


def test_names_of_a_newer_version_stop_everything(store: Store, bucket: PlainBucket) -> None:
    store.delete(store.put(DATA))
    key = commit_key(parse_id("01900000-0000-7000-8000-000000000000"))
    body = b"HFOB\x01\0\x01\0\0\0\x09\x04\0\0\0what"  # a document of kind 9, which others may skip
    bucket.create(key, body + _native.blake3(body + key.encode()))
    for work in (store.gc, store.compact):
        with pytest.raises(UnreadableRoot, match="newer"):
            work()
    assert "data" in generations(bucket)


def test_a_listing_that_lacks_a_name_of_ours_costs_nothing(bucket: PlainBucket) -> None:
    """A listing is to be whole. What this catalog knows besides is kept all the same."""

    class Forgetful(FaultyBucket):
        def list(self, prefix: str, *, after: str = "") -> Iterator[Meta]:
            return (
                one
                for one in super().list(prefix, after=after)
                if prefix != COMMITS or one.key == ENDS[COMMITS]
            )

    with Store._open_objects(Forgetful(bucket), create=True) as store:
        store.put(DATA)
        assert store.gc(min_age_seconds=0).dropped_blobs == 0
        assert store.read(HASH) == DATA


def test_a_catalog_that_is_wrong_costs_nothing(store: Store, bucket: PlainBucket) -> None:
    """What is named is read from the bucket; a catalog that says otherwise, by whatever damage, is not asked."""
    with store.blobs.put(DATA) as lease:
        store.tags.set("name", lease.hash)
    object_core(store).catalog.apply(Facts(tags=[("name", HASH.digest, 0, 99, now_ms(), 1, 0)]))
    assert store.gc(min_age_seconds=0).dropped_blobs == 0


# -- age


def test_what_came_lately_stays(bucket: PlainBucket) -> None:
    """By the server's clock: a courtesy to those who put before they name."""
    with another_made(bucket) as store:
        store.blobs.put(DATA).release()
        assert store.gc(min_age_seconds=100).dropped_blobs == 0
        older(bucket, 200, "blobs/")
        assert store.gc(min_age_seconds=300).dropped_blobs == 0
        assert store.gc(min_age_seconds=100).dropped_blobs == 1


def another_made(bucket: Bucket) -> Store:
    return Store._open_objects(bucket, create=True)


# -- what was deleted long ago


def test_what_is_forgotten_leaves_its_tombstone_alone(store: Store, bucket: PlainBucket) -> None:
    kept, gone = store.put_many([b"kept", DATA], metadata={"secret": "words"})
    store.delete(gone)
    assert store.gc(min_age_seconds=1000).forgotten_artifacts == 0
    (grave,) = keys(bucket, ARTIFACTS)
    assert b"secret" in bucket.objects[grave][0]
    assert store.gc(min_age_seconds=0).forgotten_artifacts == 1
    assert b"secret" not in bucket.objects[grave][0]
    assert store.gc(min_age_seconds=0).forgotten_artifacts == 0
    dump = facts(store)
    store.rebuild()
    with another(bucket) as other:
        for again in (store, other):
            assert list(again.find(deleted=True)) == []
            assert [one.id for one in again.find()] == [kept.id]
            with pytest.raises(ArtifactNotFound):
                again.restore(gone)
            assert facts(again) == dump


def test_what_was_forgotten_does_not_come_back_with_the_commit_that_it_came_in(
    bucket: PlainBucket, tmp_path: Path
) -> None:
    """A collector that died between the commits and the tombstones had told its catalog of the former alone."""
    catalog = tmp_path / "catalog.db"
    with Store._open_objects(bucket, catalog, create=True) as store:
        _, gone, _ = store.put_many([b"kept", DATA, b"kept too"])
        store.delete(gone)
        assert store.gc(min_age_seconds=0).forgotten_artifacts == 1
    for number in range(1, 100):
        bucket.delete([COLLECTOR_KEY])
        faulty = FaultyBucket(bucket)
        store = Store._open_objects(faulty, catalog)
        faulty.arm(BucketFault.CRASH_BEFORE, number)
        with suppress(SimulatedCrash):
            store.gc(min_age_seconds=0)
        with suppress(SimulatedCrash):
            store.close()
        with Store._open_objects(bucket, catalog) as again:
            again.refresh()
            assert list(again.find(deleted=True)) == [], number
        if faulty.hit is None:
            break
    assert number > 5


def test_nobody_restores_what_another_machine_forgot(store: Store, bucket: PlainBucket) -> None:
    """Its blob is there still: another artifact has it."""
    artifact = store.put(DATA)
    store.put(DATA)
    store.delete(artifact)
    with another(bucket) as other:
        assert other.gc(min_age_seconds=0).forgotten_artifacts == 1
    assert [one.id for one in store.find(deleted=True)] == [artifact.id]  # as this catalog knows it
    with pytest.raises(ArtifactNotFound):
        store.restore(artifact)
    assert list(store.find(deleted=True)) == []


def test_nobody_changes_what_another_machine_forgot(store: Store, bucket: PlainBucket) -> None:
    artifact = store.put(DATA)
    with another(bucket) as other:
        other.delete(artifact)
        other.gc(min_age_seconds=0)
    with pytest.raises(ArtifactNotFound):
        store.update(artifact, add_tags=["x"])
    with another(bucket) as fresh:
        assert list(fresh.find()) == []


# -- objects of names are gathered


def test_dead_commits_go_and_half_dead_ones_are_rewritten(store: Store, bucket: PlainBucket) -> None:
    gone = store.put_many([b"1", b"2"])
    half = store.put_many([b"3", b"4", b"5", b"6"])
    alone = store.put(b"7")
    store.delete(*gone, *half[:2])
    assert len(keys(bucket, COMMITS)) == 3
    report = store.gc(min_age_seconds=0)
    assert report.compacted is not None
    assert report.compacted.names_gathered == 2
    assert len(keys(bucket, COMMITS)) == 2
    dump = facts(store)
    store.rebuild()
    assert facts(store) == dump
    assert {one.id for one in store.find()} == {half[2].id, half[3].id, alone.id}


def test_small_commits_are_gathered_when_somebody_asks(store: Store, bucket: PlainBucket) -> None:
    artifacts = [store.put(sample(100, seed), tags=[str(seed)]) for seed in range(20)]
    store.tag(artifacts[0], "changed")
    store.delete(artifacts[1])
    foreseen = store.compact(dry_run=True)
    assert len(keys(bucket, COMMITS)) == 20
    report = store.compact()
    assert (foreseen.names_gathered, report.names_gathered) == (20, 20)
    assert len(keys(bucket, COMMITS)) == 1
    assert report.freed_bytes > 0
    with another(bucket) as other:
        assert {one.id for one in other.find()} == {one.id for one in artifacts} - {artifacts[1].id}
        assert other.info(artifacts[0].id).tags == ("0", "changed")
        assert other.restore(artifacts[1]).tags == ("1",)
    assert store.compact().names_gathered == 0
    assert store.refresh().is_rebuilt is False  # ours are known


def test_so_many_are_gathered_at_a_time(
    store: Store, bucket: PlainBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_collecting, "GATHERED_OBJECTS", 8)
    artifacts = [store.put(sample(100, seed)) for seed in range(20)]
    assert store.compact().names_gathered == 20
    assert len(keys(bucket, COMMITS)) == 3
    assert store.compact().names_gathered == 3  # what is still small goes together
    with another(bucket) as other:
        assert {one.id for one in other.find()} == {one.id for one in artifacts}


def test_a_gathered_object_stands_behind_those_it_takes_the_place_of(
    store: Store, bucket: PlainBucket
) -> None:
    """So that a listing under way finds it, whatever this machine's clock says."""
    store.put(b"1")
    (key,) = keys(bucket, COMMITS)
    raw = bucket.objects.pop(key)[0]
    (later,) = new_ids(1, now_ms() + 3_600_000)
    ahead = commit_key(later)
    from holdfast.wire.bundle import parse_bundle

    bucket.create(ahead, encode_bundle(parse_bundle(raw, key).documents, ahead))
    with another(bucket) as other:
        other.put(b"2")
        other.compact()
    (gathered,) = keys(bucket, COMMITS)
    assert gathered > ahead


def test_a_commit_that_stops_an_upload_stays(store: Store, bucket: PlainBucket) -> None:
    """An object without documents keeps a promised commit from being made."""
    key = commit_key(parse_id("01900000-0000-7000-8000-000000000000"))
    bucket.create(key, encode_bundle([], key))
    store.put(b"1")
    store.put(b"2")
    store.compact()
    assert key in bucket.objects


def interrupt(bucket: FaultyBucket, *steps: tuple[str, Callable[[], object]]) -> list[object]:
    """Do things, one after the other, each just before a request; gives what is empty when all were done."""
    left = list(steps)

    def on_site(site: BucketSite) -> None:
        if left and left[0][0] in str(site):
            left.pop(0)[1]()

    bucket.on_site = on_site
    return left  # type: ignore[return-value]


def as_if_dead(bucket: PlainBucket, work: Callable[[], object]) -> None:
    """Do the work of a collector while another has its turn."""
    bucket.delete([COLLECTOR_KEY])
    work()


@pytest.mark.parametrize("what", ["gc", "rebuild"])
def test_who_lists_while_names_are_gathered_lists_again(bucket: PlainBucket, what: str) -> None:
    faulty = FaultyBucket(bucket)
    with another_made(bucket) as store, Store._open_objects(faulty) as other:
        gather = ("get(commits/", lambda: as_if_dead(bucket, store.compact))
        store.put(b"another, so that there is something to be gathered")
        if what == "gc":  # it has found a blob that nothing names, and is about to mark it
            store.blobs.put(DATA).release()
            left = interrupt(faulty, ("/gone.0", lambda: store.put(DATA)), gather)
            assert other.gc(min_age_seconds=0).dropped_blobs == 0
        else:
            store.put(DATA)
            left = interrupt(faulty, gather)
            other.rebuild()
        assert not left
        assert len(keys(bucket, COMMITS)) == 1
        (artifact,) = other.find(hash=HASH)
        assert other.read(artifact) == DATA
        with another(bucket) as fresh:
            assert fresh.read(artifact.id) == DATA


@pytest.mark.parametrize("what", ["gc", "rebuild"])
@pytest.mark.parametrize("prefix", [COMMITS, ARTIFACTS])
def test_what_goes_from_a_commit_to_an_object_of_its_own_is_seen(
    bucket: PlainBucket, what: str, prefix: str
) -> None:
    """`commits/` is listed first: what it says goes only when `artifacts/` says more."""
    faulty = FaultyBucket(bucket)
    with another_made(bucket) as store, Store._open_objects(faulty) as other:

        def move() -> None:
            (artifact,) = store.find()
            store.tag(artifact, "changed")
            as_if_dead(bucket, store.compact)
            assert not keys(bucket, COMMITS)

        if what == "gc":
            store.blobs.put(DATA).release()
            left = interrupt(faulty, ("/gone.0", lambda: store.put(DATA)), (f"list({prefix}", move))
            assert other.gc(min_age_seconds=0).dropped_blobs == 0
        else:
            store.put(DATA)
            left = interrupt(faulty, (f"list({prefix}", move))
            other.rebuild()
        assert not left
        (artifact,) = other.find()
        assert artifact.tags == ("changed",)
        assert other.read(artifact.id) == DATA


def test_what_is_restored_while_it_is_forgotten_is_restored(bucket: PlainBucket) -> None:
    faulty = FaultyBucket(bucket)
    with another_made(bucket) as store, Store._open_objects(faulty) as other:
        artifact = store.put(DATA)
        store.delete(artifact)
        left = interrupt(faulty, ("replace(artifacts/", lambda: store.restore(artifact)))
        assert other.gc(min_age_seconds=0).forgotten_artifacts == 0
        assert not left
        assert store.read(artifact.id) == DATA
        assert other.read(artifact.id) == DATA


def test_what_this_process_gave_up_is_known_again_when_it_is_named(bucket: PlainBucket) -> None:
    faulty = FaultyBucket(bucket)
    with Store._open_objects(faulty, create=True) as store:
        core = object_core(store)
        store.blobs.put(DATA).release()
        left = interrupt(faulty, ("create(commits/", lambda: drop_blobs(core.catalog, [HASH.digest])))
        store.put(DATA)
        assert not left
        assert core.catalog.find_blob(HASH.digest) is not None


def test_what_changes_its_generation_again_and_again_is_read(bucket: PlainBucket) -> None:
    faulty = FaultyBucket(bucket)
    with another_made(bucket) as store, Store._open_objects(faulty) as reader:
        artifact = store.put(b"small")
        left = 3

        def on_site(site: BucketSite) -> None:
            nonlocal left
            if site.call == "get_range" and left:
                left -= 1
                (last,) = store.find()
                store.delete(last)
                store.gc(min_age_seconds=0)
                store.put(b"small")

        faulty.on_site = on_site
        assert reader.read(artifact.hash) == b"small"
        assert not left


# -- who collects


def test_there_is_one_collector_and_others_hear_who(store: Store, bucket: PlainBucket) -> None:
    turn = Turn(bucket, "a collection")
    with another(bucket) as other:
        with pytest.raises(Locked) as caught:
            other.gc()
        assert (caught.value.pid, f"process {os.getpid()}" in str(caught.value)) == (os.getpid(), True)
        with pytest.raises(Locked):
            other.compact()
        assert other.gc(dry_run=True).complete  # who only looks waits for nobody
        turn.end()
        assert other.gc().complete
    assert json.loads(bucket.objects[COLLECTOR_KEY][0])["holder"] == ""


def test_a_dead_collector_is_not_waited_for(store: Store, bucket: PlainBucket) -> None:
    code = "import os; print(os.getpid())"
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    turn = Turn(bucket, "a collection")
    note = json.loads(bucket.objects[COLLECTOR_KEY][0])
    for change, seconds in (({"pid": pid}, 0), ({"host": "elsewhere"}, steps.STALE_SECONDS + 1)):
        _, meta = bucket.objects[COLLECTOR_KEY]
        bucket.objects[COLLECTOR_KEY] = (json.dumps({**note, **change}).encode(), meta)
        older(bucket, seconds, COLLECTOR_KEY)
        assert store.gc().complete
        turn = Turn(bucket, "a collection")
    turn.end()


def test_a_collector_that_was_taken_for_dead_ends(
    store: Store, bucket: PlainBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "BEAT_SECONDS", 0)
    store.delete(store.put(DATA))

    def taken(progress: Progress) -> None:
        bucket.delete([COLLECTOR_KEY])
        bucket.create(COLLECTOR_KEY, b'{"holder": "x", "host": "elsewhere", "pid": 1}')

    with pytest.raises(Locked, match="elsewhere"):
        store.gc(min_age_seconds=0, progress=taken)
    assert "data" in generations(bucket)


def test_a_collection_that_failed_can_be_done_again_at_once(bucket: PlainBucket) -> None:
    with another_made(bucket) as store:
        store.delete(store.put(DATA))

        def fail(_: Progress) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.gc(min_age_seconds=0, progress=fail)
        assert store.gc(min_age_seconds=0).dropped_blobs == 1


# -- what it costs


def test_a_collection_that_failed_at_any_request_can_be_done_again_at_once(bucket: PlainBucket) -> None:
    """Also where it had its turn, and asked for the time in vain."""
    with another_made(bucket) as store:
        store.delete(store.put(DATA))
    for number in range(1, 100):
        faulty = FaultyBucket(bucket.copied())
        with Store._open_objects(faulty) as store:
            faulty.arm(BucketFault.BEFORE, number)
            with suppress(Unavailable):
                store.gc(min_age_seconds=0)
            faulty.heal()
            assert store.gc(min_age_seconds=0).complete, number
            assert not store.exists(HASH)
        if faulty.hit is None:
            break
    assert number > 8


def test_what_is_left_of_a_commit_is_forgotten_as_a_whole(bucket: PlainBucket, tmp_path: Path) -> None:
    """All that a commit says is of artifacts of which there are tombstones alone; its object is still there."""
    with Store._open_objects(bucket, tmp_path / "catalog.db", create=True) as store:
        store.delete(*store.put_many([DATA, b"two"]))
        (key,) = keys(bucket, COMMITS)
        commit = bucket.objects[key]
        store.gc(min_age_seconds=0)
        bucket.objects[key] = commit  # its deletion was not applied yet
        assert store.gc(min_age_seconds=0).complete
        assert list(store.find(deleted=True)) == []


def test_the_price_is_said_before_anything_is_changed(store: Store, bucket: PlainBucket) -> None:
    kept = [store.put(sample(100, seed)) for seed in range(10)]
    gone = store.put_many([sample(100, 100 + seed) for seed in range(5)])
    store.delete(*gone)
    foreseen = store.gc(dry_run=True, min_age_seconds=0)
    before = bucket.requests.snapshot()
    told: list[Progress] = []

    def hear(progress: Progress) -> None:
        if progress.phase == "price":
            now = bucket.requests.snapshot()
            assert now["put"] - before["put"] == 1  # the note of who collects
            assert now["delete"] == before["delete"]
            told.append(progress)

    report = store.gc(min_age_seconds=0, progress=hear)
    assert [one.requests for one in told] == [{name: n for name, n in report.price.items() if n}]
    assert foreseen.price == report.price
    assert report.price["put"] == 5 + 5  # a marker each, a tombstone each
    assert report.price["delete"] == 1
    assert report.price["list"] == 5
    assert report.requests["put"] == report.price["put"] + 2 + 0  # and the note, twice
    assert report.requests["delete"] == report.price["delete"] + 1  # and one object of names that was dead
    assert report.requests["get"] == foreseen.requests["get"] + 1 + 1
    assert all(store.exists(one.hash) for one in kept)


def test_a_thousand_deletions_are_two_requests(store: Store, bucket: PlainBucket) -> None:
    for lease in store.blobs.put_many([b"%d" % n for n in range(600)]):
        lease.release()
    assert store.gc(dry_run=True, min_age_seconds=0).price["delete"] == 2


# -- what is explained


def test_a_dry_run_works_where_nothing_may_be_written(store: Store, bucket: PlainBucket) -> None:
    store.delete(store.put(DATA))
    before = dict(bucket.objects)
    with Store._open_objects(bucket, read_only=True) as reader:
        assert reader.gc(dry_run=True, min_age_seconds=0).blobs == (HASH,)
    assert bucket.objects == before


def test_a_put_that_requires_what_is_gone_leaves_no_name(store: Store, bucket: PlainBucket) -> None:
    store.blobs.put(DATA).release()
    with another(bucket) as other:
        other.gc(min_age_seconds=0)
    before = keys(bucket, COMMITS)
    with pytest.raises(BlobNotFound):
        store.put(b"user", requires=[HASH])
    assert keys(bucket, COMMITS) == before


def test_a_rename_that_loses_its_race_is_a_conflict(store: Store, bucket: PlainBucket) -> None:
    with store.blobs.put(DATA) as lease:
        store.tags.set("old", lease.hash)
    with another(bucket) as other:
        faulty = FaultyBucket(bucket)
        with Store._open_objects(faulty) as third:
            left = [1]

            def change(site: object) -> None:
                if "head(blobs/" in str(site) and left:
                    left.clear()
                    other.tags.delete("old")

            faulty.on_site = change
            with pytest.raises(Conflict):
                third.tags.rename("old", "new")
    assert store.read(HASH) == DATA


def test_a_blob_that_is_renamed_twice_while_names_are_read_stays(bucket: PlainBucket) -> None:
    """RENAME: the collector lists one name, and reads it when it has gone over to the next."""
    with another_made(bucket) as store, store.blobs.put(DATA) as lease:
        store.tags.set("one", lease.hash)
    keys_of = {name: f"get({tag_key(name)})" for name in ("one", "two")}
    collector_bucket, writer_bucket = FaultyBucket(bucket), FaultyBucket(bucket)
    collected, looking = threading.Event(), threading.Event()
    errors: list[BaseException] = []
    with Store._open_objects(collector_bucket) as collector, Store._open_objects(writer_bucket) as writer:

        def rename() -> None:
            try:
                writer.tags.rename("two", "three")
            except BaseException as error:  # told below
                errors.append(error)
                looking.set()

        thread = threading.Thread(target=rename)

        def stop_at_look(site: BucketSite) -> None:
            if site.call == "head" and not looking.is_set():
                looking.set()
                collected.wait(30)

        def on_site(site: BucketSite) -> None:
            if keys_of["one"] in str(site) and not tuple(store_tags(bucket, "two")):
                writer.tags.rename("one", "two")
            elif keys_of["two"] in str(site) and thread.ident is None:
                writer_bucket.on_site = stop_at_look
                thread.start()
                looking.wait(30)

        collector_bucket.on_site = on_site
        collector.gc(min_age_seconds=0)
        collected.set()
        thread.join(30)
    assert not errors
    with another(bucket) as fresh:
        assert fresh.read(fresh.tags.get("three").hash) == DATA


def store_tags(bucket: PlainBucket, name: str) -> list[str]:
    return [key for key in bucket.objects if key == tag_key(name)]


# -- a directory


def test_a_directory_of_objects_is_collected(tmp_path: Path) -> None:
    path = str(tmp_path / "bucket")
    with Store._open_objects(DirectoryBucket(path, create=True), create=True) as store:
        kept, gone = store.put(DATA), store.put(sample(70_000, 2))
        store.delete(gone)
        report = store.gc(min_age_seconds=0)
        assert (report.dropped_blobs, store.read(kept)) == (1, DATA)
        assert os.listdir(tmp_path / "bucket" / "blobs" / str(gone.hash)) == ["gone.0"]


# -- faults


FAULTS = (
    BucketFault.BEFORE,
    BucketFault.AFTER,
    BucketFault.TRUNCATED,
    BucketFault.FLIPPED,
    BucketFault.MISSING,
    BucketFault.CRASH_BEFORE,
    BucketFault.CRASH_AFTER,
)


@pytest.mark.parametrize("work", ["gc", "compact"])
@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_of_any_request_loses_anything(work: str, fault: BucketFault) -> None:
    """Five checks after each: what was acknowledged is there, right, opens, is rebuilt the same; garbage goes."""
    start = PlainBucket()
    with another_made(start) as store:
        kept = [store.put(DATA), *store.put_many([b"1", b"2"]), store.put(b"again")]
        for content in (b"gone", sample(20_000, 5)):
            store.delete(store.put(content))
        half = store.put_many([b"3", b"4", b"5"])
        store.delete(*half[:2])
        kept.append(half[2])
        with store.blobs.put(sample(30_000, 7)) as child, store.blobs.hash_seq([child.hash]) as seq:
            store.tags.set("seq", seq.hash, "hash_seq")
            listed = child.hash
    for number in range(1, 200):
        bucket = start.copied()
        faulty = FaultyBucket(bucket)
        with suppress(HoldfastError, SimulatedCrash), Store._open_objects(faulty) as collector:
            before = len(faulty.sites)
            faulty.at, faulty.fault = number, fault
            if work == "gc":
                collector.gc(min_age_seconds=0)
            else:
                collector.compact()
        is_over = faulty.hit is None
        for again in (False, True):
            with another(bucket) as fresh:
                for artifact in kept:
                    assert _native.blake3(fresh.read(artifact.id)) == artifact.hash.digest, (
                        faulty.hit,
                        again,
                    )
                assert fresh.exists(fresh.tags.get("seq").hash)
                assert _native.blake3(fresh.read(listed)) == listed.digest, (faulty.hit, again)
                assert {one.id for one in fresh.find()} == {one.id for one in kept}, (faulty.hit, again)
                if not again:
                    bucket.delete([COLLECTOR_KEY])  # who crashed has it still
                    fresh.gc(min_age_seconds=0)
                    assert not any(fresh.exists(one.hash) for one in half[:2]), faulty.hit
                    assert list(fresh.find(deleted=True)) == []
        if is_over:
            break
    assert number > 8
    assert before > 0


def test_an_outboard_that_has_lost_its_data_goes_unless_it_is_named(
    bucket: PlainBucket, store: Store
) -> None:
    artifact = store.put(DATA)
    del bucket.objects[data_key(HASH.digest)]
    assert store.gc(min_age_seconds=0).dropped_blobs == 0
    assert generations(bucket) == ["outboard"]  # whoever brings the bytes back has the use of it
    store.delete(artifact)
    assert store.gc(min_age_seconds=3600).dropped_blobs == 0
    assert generations(bucket) == ["outboard"]
    report = store.gc(min_age_seconds=0)
    assert generations(bucket) == ["gone.0"]
    assert report.freed_bytes == outboard_bytes(len(DATA))
    assert store.read(store.put(DATA)) == DATA


def test_what_a_bucket_was_tried_with_goes_after_a_day(bucket: PlainBucket, store: Store) -> None:
    tries = [f"check/{'ab' * 16}", f"check/{'cd' * 16}/large"]
    foreign = ["check/mine", f"check/{'ab' * 16}/2/other", "check/abcd"]
    for key in (*tries, *foreign):
        bucket.create(key, b"x")
    store.gc()
    assert set(tries) <= bucket.objects.keys()
    older(bucket, 90_000, "check/")
    store.gc()
    assert not set(tries) & bucket.objects.keys()
    assert set(foreign) <= bucket.objects.keys()


# -- what older buckets have: hashes written in base32


@pytest.fixture
def elder(bucket: PlainBucket) -> PlainBucket:
    """Give a bucket whose blobs all stand under base32."""
    with Store._open_objects(bucket, create=True) as store:
        store.put(DATA, filename="goes")
        store.put(sample(30_000), filename="stays")
    for key in [
        key for key in bucket.objects if key.startswith("blobs/") and key.endswith(("data", "outboard"))
    ]:
        hash_, _, part = key.removeprefix("blobs/").partition("/")
        new = f"blobs/{base32_name(bytes.fromhex(hash_))}/{part}"
        data, meta = bucket.objects.pop(key)
        bucket.objects[new] = data, meta._replace(key=new)
    return bucket


def in_base32(bucket: PlainBucket) -> list[str]:
    keys = [key.split("/") for key in bucket.objects if key.startswith("blobs/")]
    return [name for _, name, *part in keys if part and len(name) == 52]


def test_blobs_in_base32_are_collected(elder: PlainBucket) -> None:
    assert len(in_base32(elder)) == 4
    with Store._open_objects(elder) as store:
        goes, stays = sorted(store.find(), key=lambda one: one.filename or "")
        store.delete(goes)
        assert store.gc(dry_run=True, min_age_seconds=0).dropped_blobs == 1
        assert store.gc(min_age_seconds=0).dropped_blobs == 1
        assert len(in_base32(elder)) == 2
        assert gone_key(HASH.digest, 0) in elder.objects
        assert not store.exists(HASH)
        assert store.read(stays) == sample(30_000)
        assert store.read(store.put(DATA)) == DATA  # as the next generation
        assert data_key(HASH.digest, 1) in elder.objects
        assert store.gc(min_age_seconds=0).dropped_blobs == 0
    with Store._open_objects(elder) as store:
        assert store.read(stays.id) == sample(30_000)
        assert store.scrub().ok


def test_one_in_base32_that_is_marked_and_named_moves_on(elder: PlainBucket) -> None:
    """A collector died behind its marker; the next put of the blob brings a generation that is not marked."""
    elder.create(gone_key(HASH.digest, 0), b"")
    with Store._open_objects(elder) as store:
        assert store.put(DATA).hash == HASH
        assert data_key(HASH.digest, 1) in elder.objects
        assert store.gc(min_age_seconds=0).dropped_blobs == 0
        assert len(in_base32(elder)) == 2  # the marked generation, which nobody has a use for, is gone
        assert store.read(HASH) == DATA
    with Store._open_objects(elder) as store:
        assert store.read(HASH) == DATA
        assert store.scrub().ok


@pytest.mark.parametrize("named_before_marker", [True, False])
def test_one_in_base32_that_is_named_while_it_is_collected(
    elder: PlainBucket, *, named_before_marker: bool
) -> None:
    with Store._open_objects(elder) as store, Store._open_objects(elder) as other:
        for artifact in store.find():
            store.delete(artifact)
        other.refresh()
        names: list[str] = []

        def meanwhile(site: BucketSite) -> None:
            is_marker = site.key == gone_key(HASH.digest, 0) and site.call == "create"
            is_deletion = site.call == "delete" and "blobs/" in site.key
            if (is_marker if named_before_marker else is_deletion) and not names:
                names.append("name")
                other.tags.set("name", HASH)

        core = object_core(store)
        faulty = FaultyBucket(elder, on_site=meanwhile)
        core.backend.bucket = faulty
        report = store.gc(min_age_seconds=0)
        assert names
        assert report.dropped_blobs == (1 if named_before_marker else 2)
        assert other.read(other.tags.get("name").hash) == DATA
        other.rebuild()
        assert other.read(HASH) == DATA


def test_health_says_when_the_last_whole_collection_ended(store: Store) -> None:
    began = now_ms()
    store.gc(dry_run=True)
    assert store.health().collected_at is None
    store.gc(max_batches=1)
    store.gc()
    ended = store.health().collected_at
    assert ended is not None
    assert began // 1000 <= ended.timestamp() <= now_ms() / 1000
