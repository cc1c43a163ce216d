"""What comes to light late undoes nothing, and nothing new relies on what is not wholly here."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.care.compare import read_segment
from holdfast.chunking import Chunking
from holdfast.errors import (
    ArtifactNotFound,
    IntegrityError,
    Locked,
    Unavailable,
    UnreadableRoot,
    UploadNotFound,
)
from holdfast.gc.collector import Collector
from holdfast.gc.maintenance import Maintenance
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.testing.streams import Sender
from holdfast.types import Artifact, now_ms
from holdfast.wire.record import HEADER_BYTES, Entry, Kind, iter_entries

OPTIONS: dict[str, Any] = {
    "chunking": Chunking.choose("fastcdc", 4096),
    "compression": "none",
    "segment_bytes": 64 << 10,
    "lock_timeout_seconds": 5.0,
}


def create(path: Path) -> Store:
    return Store._open(str(path), create=True, **OPTIONS)


def reopen(path: Path) -> Store:
    return Store._open(str(path), **OPTIONS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with create(tmp_path / "store") as store:
        yield store


def bytes_of(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


def collect(store: Store) -> None:
    """Collect, without the compaction that comes with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.gc.collector.compact_segments", lambda *_, **__: None)
        assert store.gc(min_age_seconds=0).complete


def seal(store: Store) -> None:
    """Let what comes next go to another segment."""
    writers = log_core(store).backend.committer.writers
    for segment, writer in writers.own().items():
        taken = writers.take_closed(segment, writer.offset)
        assert taken is not None
        writers.seal(taken)
    log_core(store).backend.committer.apply()


def lose_catalog(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (path / f"catalog.db{suffix}").unlink(missing_ok=True)


def entries(store: Store, *kinds: Kind) -> list[Entry]:
    """Give the records of some kinds in the one segment."""
    core = log_core(store)
    (segment,) = core.backend.segment_ids()
    index = read_segment(core, segment)
    assert index is not None
    return [entry for entry in iter_entries(index.entries) if entry.kind in kinds]


def harm(path: Path, offsets: list[int], data: bytes = b"damage") -> None:
    (segment,) = (path / "segments").iterdir()
    with segment.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(data)


# --- a put relies on nothing that is not wholly here


def test_a_put_does_not_rely_on_a_piece_that_was_given_up(tmp_path: Path) -> None:
    path, content = tmp_path / "store", bytes_of(1, 60_000)
    with create(path) as store:
        artifact = store.put(content)
        core = log_core(store)
        chunks = list(core.backend.large_reader(core.blob(artifact.hash)).manifest.iter_chunks())
        location = core.catalog.find_data((chunks[2][3],))[chunks[2][3]][0]
    harm(path, [(location & 0xFFFFFFFF) + HEADER_BYTES])
    with reopen(path) as store:
        assert not store.scrub().ok
        assert not store.repair(give_up=True).ok
        again = store.put(content)
        assert store.read(again) == content
        assert store.read(artifact) == content
        store.delete(artifact, again)
        store.repair()
        other = store.put(content)
        assert store.read(other) == content
        store.rebuild()
        assert store.read(other) == content


def test_a_put_after_a_given_up_piece_and_a_rebuild(tmp_path: Path) -> None:
    """No segment is gone, and yet a blob is half there."""
    path, content = tmp_path / "store", bytes_of(1, 60_000)
    with create(path) as store:
        artifact = store.put(content)
        offset = next(one.offset for one in entries(store, Kind.DATA))
    harm(path, [offset + HEADER_BYTES])
    with reopen(path) as store:
        assert not store.scrub().ok
        assert not store.repair(give_up=True).ok
    lose_catalog(path)
    with reopen(path) as store:
        again = store.put(content)
        assert store.read(again) == content
        assert store.read(artifact) == content


@pytest.mark.parametrize("is_catalog_lost", [True, False])
def test_a_put_does_not_rely_on_a_segment_that_is_gone(tmp_path: Path, is_catalog_lost: bool) -> None:
    path, contents = tmp_path / "store", [bytes_of(1, 200_000), b"small"]
    with create(path) as store:
        for content in contents:
            store.put(content)
        assert len(log_core(store).backend.segment_ids()) > 3
    (path / "segments" / "0000000002.seg").unlink()
    if is_catalog_lost:
        lose_catalog(path)
    with reopen(path) as store:
        again = [store.put(content) for content in contents]
        assert [store.read(one) for one in again] == contents


def two_that_share(store: Store) -> tuple[Artifact, bytes]:
    """Put a blob alone in a segment, and collect it later: what follows begins with the same bytes."""
    common = bytes_of(1, 50_000)
    base = store.put(common)
    seal(store)
    return base, common + bytes_of(2, 9_000)


@pytest.mark.parametrize("is_killed", [True, False])
def test_what_a_rebuild_copied_from_a_living_process_is_not_taken_in_again(
    tmp_path: Path, is_killed: bool
) -> None:
    """It was collected since, and compacted; the segment in which it was first written is met once more."""
    path = tmp_path / "store"
    with create(path) as store:
        base, content = two_that_share(store)
    idle = reopen(path)
    artifact = idle.put(content)
    lose_catalog(path)
    with reopen(path) as store:
        assert store.info(artifact.id) == artifact
        store.delete(base.id, artifact.id)
        collect(store)
        seal(store)
        assert len(store.compact().segments) == 2
        before = list(log_core(store).catalog.dump())
    if is_killed:
        idle._abandon()
    else:
        idle.close()
    with reopen(path) as store:
        assert list(log_core(store).catalog.dump()) == before
        with pytest.raises(ArtifactNotFound):
            store.restore(artifact.id)
        assert store.read(store.put(content)) == content
        store.rebuild()
        assert store.scrub().ok


def test_an_older_catalog_that_never_heard_of_a_compacted_segment_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with create(path) as store:
        store.put(b"first")
        seal(store)
    older = (path / "catalog.db").read_bytes()
    with reopen(path) as store:
        base, content = two_that_share(store)
        artifact = store.put(content)
        store.put(bytes_of(3, 30_000))  # keeps the description of what is collected where it is
        seal(store)
        store.delete(base, artifact)
        collect(store)
        seal(store)
        assert store.compact(0.7).segments == (2,)
    lose_catalog(path)
    (path / "catalog.db").write_bytes(older)
    with reopen(path) as store:
        assert log_core(store).catalog.find_blob(artifact.hash.digest) is None
        assert store.read(store.put(content)) == content
        assert store.scrub().ok


# --- what was changed after damage stays changed


def test_what_was_deleted_and_collected_after_damage_does_not_come_back(tmp_path: Path) -> None:
    path, backup = tmp_path / "store", tmp_path / "backup"
    with create(path) as store:
        artifact = store.put(b"content")
        for note in ("second", "third"):
            store.update(artifact, metadata={"note": note})
        offsets = [entry.offset for entry in entries(store, Kind.ARTIFACT)]
    shutil.copytree(path, backup)
    harm(path, [offset + HEADER_BYTES + 8 for offset in offsets[1:]])
    lose_catalog(path)
    with reopen(path) as store:
        store.delete(artifact)
        with pytest.raises(UnreadableRoot):  # but what is deleted is forgotten
            store.gc(min_age_seconds=0)
        assert not store.scrub().ok
        assert store.repair(str(backup)).ok
        assert not list(store.find())
        store.rebuild()
        assert not list(store.find())


@pytest.mark.parametrize("has_copy", [True, False])
def test_what_is_put_back_in_place_undoes_nothing(tmp_path: Path, has_copy: bool) -> None:
    """Headers were damaged, or whole records: these come back where they stood, and the log is read anew."""
    path, backup = tmp_path / "store", tmp_path / "backup"
    with create(path) as store:
        changed, gone = store.put(b"a", filename="a"), store.put(b"b", filename="b")
        for artifact in (changed, gone):
            store.update(artifact, metadata={"note": "second"})
        for artifact in (changed, gone, changed):
            store.tags.set("tag", artifact.hash)
        offsets = [entry.offset for entry in entries(store, Kind.ARTIFACT, Kind.TAG)]
    shutil.copytree(path, backup)
    later = offsets[2:4] + offsets[5:]
    if has_copy:
        harm(path, later, b"x" * 80)
    else:
        harm(path, [offset + 40 for offset in later], b"x")
    lose_catalog(path)
    with reopen(path) as store:
        store.update(changed.id, filename="mine")
        store.delete(gone.id)
        mine = store.put(b"mine")
        store.tags.set("tag", mine.hash)
        assert not store.scrub().ok
        assert store.repair(*[str(backup)] * has_copy).ok
        assert store.info(changed.id).filename == "mine"
        assert store.tags.get("tag").hash == mine.hash
        with pytest.raises(ArtifactNotFound):
            store.info(gone.id)
        restored = store.restore(gone.id)
        assert store.info(gone.id) == restored
        store.rebuild()
        assert store.info(gone.id) == restored
        assert store.scrub().ok


def test_a_rebuild_of_sound_storage_ends_the_doubt(tmp_path: Path) -> None:
    path, backup = tmp_path / "store", tmp_path / "backup"
    with create(path) as store:
        artifact = store.put(b"content")
        store.update(artifact, metadata={"note": "second"})
        offset = entries(store, Kind.ARTIFACT)[-1].offset
    shutil.copytree(path, backup)
    harm(path, [offset + HEADER_BYTES + 8])
    lose_catalog(path)
    with reopen(path) as store:
        assert not store.scrub().ok
        artifact = store.update(artifact, filename="leaps")
        assert artifact.revision > 1_000
        assert store.repair(str(backup)).ok
        assert store.scrub().ok
        assert store.health().doubtful
        store.rebuild()
        assert not store.health().doubtful
        assert store.update(artifact, filename="steps").revision == artifact.revision + 1


def test_an_upload_that_was_committed_after_damage_is_not_open_again(tmp_path: Path) -> None:
    path, backup = tmp_path / "store", tmp_path / "backup"
    with create(path) as store:
        with store.writer("upload", resumable=True) as writer:
            for _ in range(30):
                writer.write(b"x" * 100)
                writer.checkpoint()
            token = writer.suspend()
        offsets = [entry.offset for entry in entries(store, Kind.UPLOAD)]
    shutil.copytree(path, backup)
    harm(path, [offset + HEADER_BYTES + 30 for offset in offsets[3:]])
    lose_catalog(path)
    with reopen(path) as store:
        with store.writer(resume=token) as writer:
            writer.write(b"the rest")
        assert not store.scrub().ok
        assert store.repair(str(backup)).ok
        assert not list(store.uploads())
        with pytest.raises(UploadNotFound) as caught:
            store.writer(resume=token)
        assert caught.value.artifact_id == writer.artifact.id


def test_a_repair_does_not_take_a_clock_that_was_set_back_for_a_later_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, backup = tmp_path / "store", tmp_path / "backup"
    with create(path) as store:
        artifact = store.put(b"content")
        right = now_ms()
        monkeypatch.setattr("holdfast.naming.now_ms", lambda: right + 3_600_000)
        store.delete(artifact)
        monkeypatch.setattr("holdfast.naming.now_ms", lambda: right + 1_000)
        restored = store.restore(artifact.id)
        offset = entries(store, Kind.ARTIFACT)[-1].offset
    shutil.copytree(path, backup)
    harm(path, [offset + HEADER_BYTES + 8])
    lose_catalog(path)
    with reopen(path) as store:
        assert not store.scrub().ok
        assert store.repair(str(backup)).ok
        assert store.info(artifact.id) == restored


# --- what somebody else left

_STOPS_AT_THE_SWITCH = """
import sys, time
from holdfast import compaction
from holdfast.store import Store
store = Store._open(sys.argv[1], segment_bytes=65536)
def stop(*_):
    print("copied", flush=True)
    time.sleep(60)
compaction._Compaction._switch = stop
store.compact(0.05)
"""


@pytest.mark.parametrize("is_changed", [True, False])
def test_what_a_killed_compactor_has_copied_does_not_come_back(store: Store, is_changed: bool) -> None:
    """It was deleted while that ran, and is forgotten before anybody has looked at what it left."""
    kept, artifact = store.put(b"content"), store.put(b"content")
    dead = store.put(bytes_of(1, 20_000))
    seal(store)
    store.delete(dead)
    collect(store)
    root = log_core(store).backend.root
    with subprocess.Popen(
        [sys.executable, "-c", _STOPS_AT_THE_SWITCH, root], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"copied\n"
        if is_changed:
            store.update(artifact, metadata={"note": "second"})
        store.delete(artifact)
        child.kill()
    collect(store)
    store.update(kept, metadata={"note": "second"})
    with pytest.raises(ArtifactNotFound):
        store.info(artifact.id)
    with pytest.raises(ArtifactNotFound):
        store.restore(artifact.id)
    assert not store.compact().problems
    assert store.scrub().ok


@pytest.mark.parametrize("error", [Unavailable("the catalog has no room"), KeyboardInterrupt()])
def test_a_commit_that_is_durable_and_not_applied_is_not_made_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Nobody resumes an upload that has become an artifact which others cannot see yet."""
    writer = store.writer("upload", resumable=True)
    writer.write(b"content")
    writer.checkpoint()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(log_core(store).backend.committer, "_apply", fail)
        with pytest.raises(
            type(error), match="durable all the same" if isinstance(error, Unavailable) else None
        ):
            writer.commit()
        with reopen(Path(os.fsdecode(log_core(store).backend.root))) as other, pytest.raises(Locked):
            other.writer(resume=writer.token)
    with pytest.raises(UploadNotFound) as caught:
        store.writer(resume=writer.token)
    assert [artifact.id for artifact in store.find()] == [caught.value.artifact_id]


_DIES_BEFORE_THE_COMMIT = """
import os, sys
from holdfast.backend.log.stream import Stream
from holdfast.store import Store
store = Store._open(sys.argv[1], segment_bytes=65536)
Stream.finish = lambda *_: os._exit(9)
store.repair(sys.argv[2])
"""


def damage_names(path: Path, backup: Path, count: int, words: int, step: int = 1) -> list[Artifact]:
    """Store many artifacts in one group, copy the store, damage the names of each `step`-th, and lose the catalog."""
    with create(path) as store:
        artifacts = store.put_many([b"%d" % i for i in range(count)], metadata={"words": "w" * words})
        places = log_core(store).catalog.ask("SELECT location FROM artifacts ORDER BY id")
    shutil.copytree(path, backup)
    for (place,) in places[::step]:
        with (path / "segments" / f"{place >> 32:010}.seg").open("r+b") as file:
            file.seek((place & 0xFFFFFFFF) + HEADER_BYTES + 90)
            file.write(b"damage")
    lose_catalog(path)
    return artifacts


def test_compaction_does_not_make_true_what_a_killed_repair_has_said(tmp_path: Path) -> None:
    """It had filled segments, and was never committed: what was damaged is nowhere else."""
    path, backup = tmp_path / "store", tmp_path / "backup"
    artifacts = damage_names(path, backup, 150, 1_000)
    with reopen(path) as store:
        assert not store.scrub().ok
        count = len(log_core(store).backend.segment_ids())
    died = subprocess.run(
        [sys.executable, "-c", _DIES_BEFORE_THE_COMMIT, str(path), str(backup)], check=False
    )
    assert died.returncode == 9
    with reopen(path) as store:
        assert len(log_core(store).backend.segment_ids()) > count + 1
        assert store.compact().segments
        store.rebuild()
        assert store.repair(str(backup)).repaired_count == len(artifacts)
        assert store.count() == len(artifacts)
        assert store.scrub().ok


def test_what_a_scrub_finds_to_lack_is_brought_by_the_next_put(store: Store) -> None:
    content = bytes_of(1, 60_000)
    artifact = store.put(content)
    core = log_core(store)
    chunks = list(core.backend.large_reader(core.blob(artifact.hash)).manifest.iter_chunks())
    core.catalog._write(lambda cursor: cursor.execute("DELETE FROM data WHERE hash = ?", (chunks[1][3],)))
    assert not store.scrub().ok
    assert store.read(store.put(content)) == content
    assert store.scrub().ok


@pytest.mark.parametrize("at", [60, 40 - HEADER_BYTES])
def test_nothing_is_collected_while_damage_may_hide_a_name(tmp_path: Path, at: int) -> None:
    """One bit of an artifact is wrong, and the catalog is lost: what it names is no garbage, repair reads it."""
    path, content = tmp_path / "store", bytes_of(1, 300_000)
    with create(path) as store:
        artifact = store.put(content)
        ((place,),) = log_core(store).catalog.ask("SELECT location FROM artifacts")
        store.put(b"other content")
    with (path / "segments" / f"{place >> 32:010}.seg").open("r+b") as file:
        file.seek((place & 0xFFFFFFFF) + HEADER_BYTES + at)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes((byte ^ 1,)))
    lose_catalog(path)
    with reopen(path) as store:
        assert store.count() == 1
        for dry_run in (True, False):
            with pytest.raises(UnreadableRoot, match="may be a name"):
                store.gc(min_age_seconds=0, dry_run=dry_run)
        assert not store.scrub().ok
        assert store.repair().ok
        assert store.gc(min_age_seconds=0).complete
        assert store.read(artifact.id) == content


def test_what_a_power_cut_tore_keeps_nothing_from_being_collected(tmp_path: Path) -> None:
    """Two groups shared an fsync that never ended: of the first a page is missing. Nobody was told of either."""
    path = tmp_path / "store"
    with create(path) as store:
        store.delete(store.put(b"garbage"))
        (segment,) = (path / "segments").iterdir()
        size = segment.stat().st_size

    def fail(*_: object) -> None:
        raise Unavailable("the power fails")

    cut = reopen(path)
    committer = log_core(cut).backend.committer
    groups = [committer.group(), committer.group()]
    for group in groups:
        group.add_one(Kind.DATA, os.urandom(5_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(committer, "_apply", fail)
        with pytest.raises(Unavailable):
            committer.commit_now(groups)
        cut._abandon()
    with segment.open("r+b") as file:
        file.seek(size)
        file.write(bytes(4096 - size % 4096))
    with reopen(path) as store:
        assert log_core(store).keeper.problems, "the tail is kept for a look"
        assert store.gc(min_age_seconds=0).dropped_blobs == 1


@pytest.fixture
def hiding(tmp_path: Path) -> Iterator[Store]:
    """Give a store in which damage hides the name of its one blob."""
    path = tmp_path / "store"
    with create(path) as store:
        store.put(b"content")
        offset = entries(store, Kind.ARTIFACT)[0].offset
    harm(path, [offset + HEADER_BYTES + 8])
    lose_catalog(path)
    with reopen(path) as store:
        yield store


def test_maintenance_scrubs_where_nothing_can_be_collected(hiding: Store) -> None:
    core = log_core(hiding)
    work = Maintenance(core, Collector(core))

    def step(max_bytes: int, stop: Callable[[], bool]) -> None:
        assert not hiding.scrub().ok

    work.scrub_step = step
    with pytest.raises(UnreadableRoot):
        work._turn()
    assert core.catalog.has_damage()
    hiding.repair(give_up=True)
    work.scrub_step = None
    work._turn()


def test_what_is_given_up_keeps_nothing_from_being_collected(hiding: Store) -> None:
    assert not hiding.scrub().ok
    with pytest.raises(UnreadableRoot):
        hiding.gc(min_age_seconds=0)
    hiding.repair(give_up=True)
    assert hiding.gc(min_age_seconds=0).dropped_blobs == 1


def test_compaction_keeps_what_a_repair_of_many_segments_has_said(tmp_path: Path) -> None:
    """A commit elsewhere names it. What was damaged is still there, beside what is live."""
    path, backup = tmp_path / "store", tmp_path / "backup"
    artifacts = damage_names(path, backup, 100, 3_000, step=2)
    old = len(list((path / "segments").iterdir()))
    with reopen(path) as store:
        assert not store.scrub().ok
        assert store.repair(str(backup)).ok
        for artifact in artifacts[::2]:  # the repair's segments are dead but for what they say of others
            store.update(artifact, metadata={})
        seal(store)
        report = store.compact(0.8)
        assert report.segments
        assert min(report.segments) > old
        store.rebuild()
        assert store.scrub().ok


# --- a segment that is not what it was, beside a catalog that stands


def cut(path: Path, number: int) -> None:
    segment = path / "segments" / f"{number:010}.seg"
    os.truncate(segment, segment.stat().st_size // 2)


@pytest.mark.parametrize("is_changed", [True, False])
@pytest.mark.parametrize("how", ["open, cut short", "sealed, cut short", "of another store", "gone"])
def test_a_put_does_not_rely_on_a_segment_that_is_not_what_it_was(
    tmp_path: Path, how: str, is_changed: bool
) -> None:
    path, contents = tmp_path / "store", [bytes_of(1, 200_000), b"s" * 3_000]
    with create(path) as store:
        artifacts = [store.put(content) for content in contents]
        if how != "open, cut short":
            seal(store)
        last = max(segment for segment, (applied, _) in log_core(store).catalog.segments().items() if applied)
    segment = path / "segments" / "0000000002.seg"
    if how == "open, cut short":
        cut(path, last)
    elif how == "sealed, cut short":
        cut(path, 2)
    elif how == "gone":
        segment.unlink()
    else:
        with create(tmp_path / "other") as other:
            other.put(bytes_of(7, 200_000))
            seal(other)
        shutil.copy(tmp_path / "other" / "segments" / segment.name, segment)
    with reopen(path) as store:
        assert store.health().lost_segments == (last if how == "open, cut short" else 2,)
        if is_changed:
            store.tags.set("a change looks at storage", artifacts[1].hash)
        for _ in range(2):
            again = [store.put(content) for content in contents]
            assert [store.read(one) for one in again] == contents


@pytest.mark.parametrize("how", ["gone", "cut", "flipped", "flipped, scrubbed"])
def test_what_describes_a_blob_and_is_lost_is_brought_by_the_next_put(tmp_path: Path, how: str) -> None:
    path, content = tmp_path / "store", bytes_of(1, 200_000)
    with create(path) as store:
        artifact = store.put(content)
        row = log_core(store).catalog.find_blob(artifact.hash.digest)
        assert row is not None
        seal(store)
        store.put(b"other")
    segment = path / "segments" / f"{row.location >> 32:010}.seg"
    offset = row.location & 0xFFFFFFFF
    if how == "gone":
        segment.unlink()
    elif how == "cut":
        os.truncate(segment, offset - 10)
    else:
        with segment.open("r+b") as file:
            file.seek(offset + HEADER_BYTES + 8)
            file.write(b"xx")
    with reopen(path) as store:
        if how == "flipped, scrubbed":
            assert not store.scrub().ok
        elif how == "flipped":
            with pytest.raises(IntegrityError):
                store.read(artifact)
        again = store.put(content)
        assert store.read(again) == content
        assert store.read(artifact) == content
        assert list(store.iter_bytes(again))
        assert not store.scrub().ok
        store.repair(
            give_up=how == "flipped"
        )  # the read had the catalog made anew: nobody knows what was there
        assert store.scrub().ok
        assert store.read(artifact) == content


@pytest.mark.parametrize("how", ["scrubbed", "given up", "gone"])
def test_a_stream_of_a_blob_that_lacks_a_piece_brings_it(tmp_path: Path, how: str) -> None:
    path, content = tmp_path / "store", bytes_of(1, 60_000)
    with create(path) as store, create(tmp_path / "other") as other:
        hash_ = store.put(content).hash
        seal(store)
        store.put(b"other")
        stream = b"".join(other.blobs.encode(other.put(content).hash))
        core = log_core(store)
        digests = [one[3] for one in core.backend.large_reader(core.blob(hash_)).manifest.iter_chunks()]
        location = core.catalog.find_data((digests[2],))[digests[2]][0]
    segment = path / "segments" / f"{location >> 32:010}.seg"
    if how == "gone":
        segment.unlink()
    else:
        with segment.open("r+b") as file:
            file.seek((location & 0xFFFFFFFF) + HEADER_BYTES)
            file.write(b"damage")
    with reopen(path) as store:
        if how != "gone":
            assert not store.scrub().ok
        if how == "given up":
            assert not store.repair(give_up=True).ok
        for _ in range(2):
            assert store.blobs.decode(hash_, iter([stream])).status == "complete"
            assert store.blobs.read(hash_) == content


def test_a_partial_blob_is_not_completed_with_a_damaged_chunk(tmp_path: Path) -> None:
    path, content = tmp_path / "store", bytes_of(1, 200_000)
    sender = Sender(content)
    half = ChunkRanges.leaves(0, 96)
    with create(path) as store:
        store.blobs.decode(sender.hash, sender.stream(half), half)
        chunk = next(iter(log_core(store).backend.partials.chunks(sender.hash.digest)))[3]
        place = log_core(store).catalog.find_data((chunk,))[chunk][0]
    with (path / "segments" / f"{place >> 32:010}.seg").open("r+b") as file:
        file.seek((place & 0xFFFFFFFF) + HEADER_BYTES)
        file.write(b"damage")
    with reopen(path) as store:
        assert not store.scrub().ok
        rest = ChunkRanges.all() - half
        assert store.blobs.decode(sender.hash, sender.stream(rest), rest).status == "partial"
        missing = store.blobs.missing_ranges(sender.hash)
        assert store.blobs.decode(sender.hash, sender.stream(missing), missing).status == "complete"
        assert store.blobs.read(sender.hash) == content


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_stream_of_a_blob_that_is_condemned_keeps_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_whole: bool
) -> None:
    monkeypatch.setattr("holdfast.gc.cycle.WAIT_SECONDS", 0.2)
    content = bytes_of(1, 60_000)
    artifact = store.put(content)
    ranges = ChunkRanges.all() if is_whole else ChunkRanges.leaves(0, 16)
    stream = b"".join(store.blobs.encode(artifact.hash, ranges))
    store.delete(artifact)
    size = log_core(store).backend.disk_bytes()
    with (
        reopen(Path(os.fsdecode(log_core(store).backend.root))) as other,
        log_core(other).backend.operation(),
    ):
        assert not store.gc(min_age_seconds=0).complete
        assert store.blobs.decode(artifact.hash, iter([stream]), ranges).status == "complete"
        assert log_core(store).backend.disk_bytes() < size + len(content)
    collect(store)
    assert store.blobs.read(artifact.hash) == content


FIXED = OPTIONS | {"chunking": Chunking.choose("fixed", 4096)}


def replaced(path: Path, *, is_longer: bool) -> Artifact:
    """Make two stores in which all lies in the same places; give one a segment of the other."""
    made, places = [], []
    for number in (1, 2):
        with Store._open(str(path / f"{number}"), create=True, **FIXED) as store:
            made.append(store.put(bytes_of(number, 200_000)))
            row = log_core(store).catalog.find_blob(made[-1].hash.digest)
            assert row is not None
            places.append(row.location)
            seal(store)
            store.put(b"other")
    assert places[0] == places[1]
    name = f"segments/{places[0] >> 32:010}.seg"
    shutil.copy(path / "2" / name, path / "1" / name)
    if is_longer:
        with (path / "1" / name).open("ab") as file:
            file.write(bytes(1_000))
    return made[0]


@pytest.mark.parametrize("is_longer", [True, False])
def test_what_describes_another_blob_at_the_same_place_misleads_nobody(
    tmp_path: Path, is_longer: bool
) -> None:
    artifact, content = replaced(tmp_path, is_longer=is_longer), bytes_of(1, 200_000)
    with Store._open(str(tmp_path / "1"), **FIXED) as store:
        for _ in range(2):
            again = store.put(content)
            assert store.read(again) == content
            assert store.read(artifact) == content
        assert store.gc(min_age_seconds=0).complete


def test_what_was_put_where_a_commit_is_gone_outlives_the_catalog(tmp_path: Path) -> None:
    """The group spans segments, and the last of them is lost: the others are sound, and nobody vouches for them."""
    path, content = tmp_path / "store", bytes_of(1, 200_000)
    with create(path) as store:
        store.put(content)
        seal(store)
        last = log_core(store).backend.segment_ids()[-1]
        store.put(b"other")
    (path / "segments" / f"{last:010}.seg").unlink()
    with reopen(path) as store:
        again = store.put(content)
        store.delete(store.put(bytes_of(2, 200_000)))
        seal(store)
        collect(store)
        report = store.compact(0.0)
        assert not report.segments
        assert any("repair comes first" in one.reason for one in report.kept)
    lose_catalog(path)
    with reopen(path) as store:
        assert store.read(again) == content


def test_a_segment_that_cannot_be_read_stops_no_put(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(b"content")
    seal(store)
    core = log_core(store)
    (segment,) = core.backend.segment_ids()
    looked = []

    def fail(path: str, *_: object) -> Any:
        looked.append(path)
        raise Unavailable("the disk fails")

    for call in ("stat", "open"):
        with monkeypatch.context() as patch:
            core.keeper._lost = None
            real = getattr(type(core.backend.disk), call)
            patch.setattr(
                type(core.backend.disk),
                call,
                lambda self, path, *more, real=real: (
                    fail(path) if path.endswith(f"{segment:010}.seg") else real(self, path, *more)
                ),
            )
            again = store.put(b"content")
        assert looked
        assert store.read(again) == b"content"


def test_what_lies_in_a_lost_segment_is_stored_once_more_and_not_at_each_put(tmp_path: Path) -> None:
    path, content = tmp_path / "store", bytes_of(1, 200_000)
    with create(path) as store:
        store.put(content)
        seal(store)
    (path / "segments" / "0000000002.seg").unlink()
    with reopen(path) as store:
        store.put(content)
        size = log_core(store).backend.disk_bytes()
        store.put(content)
        assert log_core(store).backend.disk_bytes() < size + 20_000


@pytest.mark.parametrize("how", ["a read", "a scrub", "a change"])
def test_a_segment_that_goes_while_the_store_is_open(tmp_path: Path, how: str) -> None:
    """Whoever meets it has the next put look; once it is repaired, all is as it was."""
    path, content = tmp_path / "store", bytes_of(1, 200_000)
    with create(path) as store, create(tmp_path / "other") as other:
        artifact = store.put(content)
        other.put(content)
        seal(store)
        store.put(b"looked")
        (path / "segments" / "0000000002.seg").unlink()
        if how == "a read":
            with pytest.raises(IntegrityError):
                store.read(artifact)
        elif how == "a scrub":
            assert not store.scrub().ok
        else:
            store.tags.set("tag", artifact.hash)
        again = store.put(content)
        assert store.read(again) == content
        assert store.repair(other).ok
        assert not log_core(store).keeper.lost
        size = log_core(store).backend.disk_bytes()
        store.put(content)
        assert log_core(store).backend.disk_bytes() < size + 1_000


@pytest.mark.parametrize("is_longer", [True, False])
def test_a_file_of_others_is_left_by_repair_and_holds_up_compaction(tmp_path: Path, is_longer: bool) -> None:
    artifact, path = replaced(tmp_path, is_longer=is_longer), tmp_path / "1"
    with Store._open(str(path), **FIXED) as store:
        (number,) = log_core(store).backend.foreign_segments()
        foreign = path / "segments" / f"{number:010}.seg"
        if not is_longer:
            os.truncate(foreign, foreign.stat().st_size // 2)
        again = store.put(bytes_of(1, 200_000))
        store.delete(store.put(bytes_of(5, 100_000)))
        seal(store)
        collect(store)
        assert not store.repair(str(tmp_path / "2")).ok
        assert any("moving away" in one.reason for one in store.compact(0.0).kept)
    with Store._open(str(path), **FIXED) as store:
        assert foreign.exists()
        foreign.unlink()
        assert store.repair().ok
        assert store.compact(0.0).segments
        assert store.scrub().ok
        assert store.read(again) == store.read(artifact) == bytes_of(1, 200_000)
