"""Compaction: what is copied and what is not, who is disturbed, and what stands in its way."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from holdfast import compaction
from holdfast.backend.log.collector import collecting
from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.runs import Runs
from holdfast.catalog import compacting
from holdfast.chunking import Chunking
from holdfast.errors import ArtifactNotFound, InvalidInput, Locked, NoSpace, PermissionDenied
from holdfast.facts import SEGMENT_SEALED
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.types import Artifact, Progress, parse_id

SEGMENT = 64 << 10
OPTIONS: dict[str, Any] = {
    "chunking": Chunking.choose("fastcdc", 4096),
    "compression": "none",
    "segment_bytes": SEGMENT,
    "lock_timeout_seconds": 5.0,
}


def bytes_of(number: int, size: int = 20_000) -> bytes:
    return random.Random(number).randbytes(size)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store._open(str(tmp_path / "store"), create=True, **OPTIONS) as store:
        yield store


def again(store: Store) -> Store:
    """Open the same store as another process would."""
    return Store._open(log_core(store).backend.root, **OPTIONS)


def fill(store: Store, count: int = 12, size: int = 20_000) -> list[Artifact]:
    return [store.put(bytes_of(i, size + i), filename=f"{i}", tags=["t"]) for i in range(count)]


def drop(store: Store, artifacts: list[Artifact]) -> None:
    """Delete and collect, without the compaction that comes with a collection."""
    store.delete(*artifacts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.gc.collector.compact_segments", lambda *_, **__: None)
        assert store.gc(min_age_seconds=0).complete


def segments(store: Store) -> list[int]:
    return log_core(store).backend.segment_ids()


def dump(store: Store) -> list[str]:
    """Every fact but tombstones, which compaction forgets when nothing is left that they hide."""
    return [line for line in log_core(store).catalog.dump() if not line.startswith("tombstone")]


def lose_catalog(root: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{root}/catalog.db{suffix}").unlink(missing_ok=True)


# --- what is copied


def test_what_was_collected_goes_and_the_rest_is_as_it_was(store: Store) -> None:
    artifacts = fill(store)
    drop(store, artifacts[::2])
    before, size, old = dump(store), log_core(store).backend.disk_bytes(), segments(store)
    forecast = store.compact(dry_run=True)
    assert segments(store) == old
    report = store.compact()
    assert set(report.segments) <= set(forecast.segments) | set(old)
    assert report.freed_bytes >= 6 * 20_000
    assert log_core(store).backend.disk_bytes() <= size - 6 * 20_000
    assert not report.kept
    assert not report.problems
    assert dump(store) == before
    assert report.tombstones_dropped == 6
    for i in range(1, 12, 2):
        assert store.read(artifacts[i]) == bytes_of(i, 20_000 + i)
    assert store.scrub().ok
    assert store.rebuild().damaged == 0
    assert dump(store) == before
    assert not store.compact().segments, "there is nothing more to give back"


def test_old_revisions_are_dead_bytes(store: Store) -> None:
    artifact = store.put(b"x" * 100)
    for i in range(30):
        artifact = store.update(artifact, metadata={"noise": f"{i}" * 5_000})
    before = dump(store)
    report = store.compact()
    assert report.freed_bytes > 100_000
    assert log_core(store).backend.disk_bytes() < 40_000
    assert store.info(artifact) == artifact
    store.rebuild()
    assert dump(store) == before


def test_blobs_keep_their_times_and_roles(store: Store) -> None:
    """A chunk that is a blob as well, and blobs of many times, are the same after a rebuild."""
    times: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.backend.log.commit.now_ms", lambda: times[-1])
        kept = []
        for i in range(30):
            times.append(1_700_000_000_000 + i * 1_000)
            kept.append(store.put(bytes_of(i, (300, 16_384, 18_000)[i % 3]), filename=f"{i}"))
    large = store.put(bytes_of(99, 40_000))
    chunk = next(
        digest
        for _, _, digest in log_core(store)
        .backend.large_reader(log_core(store).blob(large.hash))
        .manifest.leaf_at(0)
        .entries
    )
    lease = store.blobs.put(log_core(store).backend.payloads.load(chunk))
    assert lease.hash.digest == chunk
    drop(store, kept[::5])
    before = dump(store)
    assert store.compact().segments
    store.rebuild()
    assert dump(store) == before
    assert {artifact.hash: artifact.created_at for artifact in store.find()} == {
        artifact.hash: artifact.created_at for artifact in (*kept, large) if artifact not in kept[::5]
    }
    lease.release()


def test_a_group_in_many_segments_survives_the_loss_of_some(store: Store) -> None:
    """Segments of one put are compacted away: first one in its midst, then the one in which its commit stands."""
    put = store.put_many([bytes_of(i, 9_000) for i in range(30)])  # five segments
    for names in (range(8, 12), range(26, 30), range(3)):
        drop(store, [put[i] for i in names])
        before, count = dump(store), store.count()
        report = store.compact(0.3)
        assert report.segments
        assert dump(store) == before
        assert store.rebuild().damaged == 0
        lost = set(before) - set(dump(store))
        assert not lost, "what was dropped in other segments is there again; nothing else may differ"
        assert store.count() == count
    for i in (*range(3, 8), *range(12, 26)):
        assert store.read(put[i]) == bytes_of(i, 9_000)


def test_copies_go_as_far_as_a_good_one_remains(store: Store) -> None:
    """A takeover may store a payload twice; the one that counts goes bad: the other one takes its place."""
    artifacts = [store.put(bytes_of(i, 10_000)) for i in range(4)]
    core = log_core(store)
    catalog = core.catalog
    for (
        artifact
    ) in artifacts:  # the same bytes once more, as a writer brings them who looked before they were there
        group = core.backend.group()
        group.add(b"\x81", b"\1", artifact.hash.digest, [10_000], [store.read(artifact)])
        group.commit()
    assert catalog.counts().copy_bytes == 40_000
    before = dump(store)
    good, bad = artifacts[0], artifacts[1]
    place = catalog.find_data((bad.hash.digest,))[bad.hash.digest]
    with open(segment_path(core.backend.root, place[0] >> 32), "r+b") as file:
        file.seek((place[0] & 0xFFFFFFFF) + 64)
        file.write(b"damaged")
    store.compact()
    assert store.read(good) == bytes_of(0, 10_000)
    assert store.read(bad) == bytes_of(1, 10_000)
    assert dump(store) == before


def test_min_dead_share(store: Store) -> None:
    artifacts = fill(store, 30)
    drop(store, artifacts[:9:3])
    assert not store.compact(0.6).segments
    assert store.compact(0.2).segments
    with pytest.raises(InvalidInput, match="0 to 1"):
        store.compact(1.5)


def test_an_empty_store_and_one_of_which_nothing_is_left(store: Store) -> None:
    assert not store.compact().segments
    artifacts = fill(store, 5)
    drop(store, artifacts)
    highest = max(segments(store))
    report = store.compact()
    assert log_core(store).backend.disk_bytes() < 3_000
    assert report.freed_bytes > 90_000
    assert max(segments(store)) > highest, "ids never come again"
    store.rebuild()
    assert store.count() == 0


# --- tombstones


def tombstones(store: Store) -> int:
    return int(log_core(store).catalog.ask("SELECT count(*) FROM tombstones")[0][0])


def deleted_apart(store: Store) -> tuple[list[Artifact], int]:
    """Artifacts in one sealed segment, their tombstones in another, where more is dead than in the first."""
    artifacts = [store.put(bytes_of(i, 500), filename=f"{i}") for i in range(20)]
    seal(store)
    store.delete(*artifacts[:5])
    noisy = store.put(b"noisy")
    for i in range(8):
        noisy = store.update(noisy, metadata={"noise": f"{i}" * 3_000})
    seal(store)
    return artifacts, max(segments(store))


def seal(store: Store) -> None:
    """Seal the segment that is open."""
    writers = log_core(store).backend.committer.writers
    for segment, writer in list(writers.own().items()):
        taken = writers.take_closed(segment, writer.offset)
        assert taken is not None
        writers.seal(taken)
    log_core(store).backend.committer.apply()
    assert all(state == SEGMENT_SEALED for _, state in log_core(store).catalog.segments().values())


def forget(store: Store) -> None:
    """End the undo window, and nothing else."""
    from holdfast.catalog.collecting import FOREVER_MS, forget_expired

    forget_expired(log_core(store).catalog, FOREVER_MS, 1_000)


def test_compacting_only_the_segment_of_a_tombstone_brings_nothing_back(store: Store) -> None:
    """The test of the issue: only the tombstone's segment is compacted, the catalog is deleted, the store opened."""
    artifacts, segment = deleted_apart(store)
    forget(store)
    report = store.compact(0.5)
    assert report.segments == (segment,)
    assert report.tombstones_dropped == 0
    assert tombstones(store) == 5
    root = log_core(store).backend.root
    store.close()
    lose_catalog(root)
    with Store._open(root, **OPTIONS) as opened:
        assert opened.count() == 16
        for artifact in artifacts[:5]:
            with pytest.raises(ArtifactNotFound):
                opened.info(artifact.id)


def test_an_older_state_that_a_rebuild_meets_is_not_restored(store: Store) -> None:
    """The last one was compacted away. What came back would have a revision below the tombstone's: deleted still."""
    first = store.put(b"content", filename="first")
    seal(store)
    for i in range(3):
        last = store.update(first, metadata={"noise": f"{i}" * 20_000})
    store.delete(last)
    seal(store)
    forget(store)
    assert max(store.compact(0.4).segments) > 1
    assert store.rebuild().damaged == 0
    assert not list(store.find(deleted=True))
    with pytest.raises(ArtifactNotFound):
        store.restore(first)
    assert tombstones(store) == 1


def test_an_older_state_of_what_is_deleted_is_not_restored(store: Store) -> None:
    first = store.put(b"content", filename="first")
    store.delete(store.update(first, filename="last"))
    catalog = log_core(store).catalog
    catalog._write(lambda cursor: cursor.execute("UPDATE artifacts SET revision = 1"))
    with pytest.raises(ArtifactNotFound, match="last state"):
        store.restore(first)
    catalog._write(lambda cursor: cursor.execute("UPDATE artifacts SET revision = 2"))
    assert store.info(store.restore(first)).revision == 4


def test_tombstones_go_with_the_last_lower_revision(store: Store) -> None:
    artifacts, _ = deleted_apart(store)
    for _ in range(3):
        store.tags.set("name", artifacts[9].hash)
        store.tags.delete("name")
    seal(store)
    forget(store)
    report = store.compact()
    assert report.tombstones_dropped == 5 + 1
    assert tombstones(store) == 0
    before = list(log_core(store).catalog.dump())
    assert not any(line.startswith(("tombstone", "tag\t")) for line in before)
    store.rebuild()
    assert list(log_core(store).catalog.dump()) == before
    tag = store.tags.set("name", artifacts[9].hash)
    assert tag.revision == 1


def test_tombstones_stay_in_the_undo_window(store: Store) -> None:
    artifacts, _ = deleted_apart(store)
    assert store.compact().tombstones_dropped == 0
    store.restore(artifacts[0].id)
    assert store.read(artifacts[0].id) == bytes_of(0, 500)


@pytest.mark.parametrize(
    "obstacle", ["in quarantine", "quarantined state", "cannot be read", "damaged", "lost"]
)
def test_tombstones_stay_while_a_segment_is_out_of_reach(store: Store, obstacle: str) -> None:
    """What cannot be looked into may hold a lower revision, and come back."""
    fill(store, 4)
    deleted_apart(store)
    forget(store)
    root = log_core(store).backend.root
    first = Path(segment_path(root, 1))
    if obstacle == "in quarantine":
        Path(f"{root}/quarantine/0000000077.seg").write_bytes(b"?")
    elif obstacle == "quarantined state":
        log_core(store).catalog.set_segment_state(1, 3)
    elif obstacle == "cannot be read":
        first.rename(f"{first}.away")
        first.mkdir()
    elif obstacle == "damaged":
        data = bytearray(first.read_bytes())
        at = data.index(b'"filename"')
        data[at] ^= 1
        first.write_bytes(data)
    else:
        first.unlink()
    with suppress(Exception):
        report = store.compact()
        assert report.tombstones_dropped == 0
    assert tombstones(store) == 5


@pytest.mark.parametrize("where", ["tail", "being written"])
def test_tombstones_stay_while_a_tail_holds_a_lower_revision(
    store: Store, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tails and segments that are being written count: here one holds a record of which no commit was ever written."""
    artifacts, _ = deleted_apart(store)
    forget(store)
    from holdfast.wire.document import ArtifactDocument, encode_artifact
    from holdfast.wire.record import Kind, frame_one

    writers = log_core(store).backend.committer.writers
    writer = writers.fresh()
    doomed = artifacts[0]
    raw = bytes.fromhex(doomed.id.replace("-", ""))
    document = ArtifactDocument(raw, 1, doomed.hash.digest, 500, 0, 1, 1, 1, b"{}")
    record, entry = frame_one(writer.segment, writer.offset, Kind.ARTIFACT, encode_artifact(document))
    writer.append([record], entry, len(record))
    if where == "tail":
        writer.fsync()
        writer.give_up()
        writers.release_sealed(writer)
    # Whoever catches up first cuts what was never committed; here it comes to light after that.
    monkeypatch.setattr(log_core(store).keeper, "catch_up", lambda: None)
    report = store.compact()
    assert report.tombstones_dropped == 4
    assert tombstones(store) == 1


# --- what stands in its way


@pytest.mark.parametrize("lacks", ["does not know", "is behind"])
def test_what_the_catalog_ought_to_know_is_not_dropped(store: Store, lacks: str) -> None:
    """Unless it was deleted since, and forgotten: then a row may be gone, or an older one may have come back."""
    artifact = store.put(b"content")
    artifact = store.update(artifact, metadata={"noise": "n" * 30_000})
    seal(store)
    id_ = parse_id(artifact.id)
    change = (
        "DELETE FROM artifacts WHERE id = ?"
        if lacks == "does not know"
        else "UPDATE artifacts SET revision = 1 WHERE id = ?"
    )
    catalog = log_core(store).catalog
    catalog._write(lambda cursor: cursor.execute(change, (id_,)))
    report = store.compact()
    assert not report.segments
    assert f"the catalog {lacks} what it says (artifacts)" in {problem.message for problem in report.problems}
    catalog._write(lambda cursor: cursor.execute("INSERT INTO tombstones VALUES(?, 3, 0, 64)", (id_,)))
    report = store.compact()
    assert report.segments
    assert not report.problems


def test_a_damaged_record_is_not_copied_and_its_segment_stays(store: Store) -> None:
    artifacts = fill(store, 8)
    drop(store, artifacts[:4:2])
    core = log_core(store)
    row = core.catalog.find_blob(artifacts[1].hash.digest)
    assert row is not None
    reader = core.backend.large_reader(row)
    digest = reader.manifest.leaf_at(0).entries[0][2]
    place = core.catalog.find_data((digest,))[digest][0]
    path = Path(segment_path(core.backend.root, place >> 32))
    data = bytearray(path.read_bytes())
    data[(place & 0xFFFFFFFF) + 64 + 5] ^= 4
    path.write_bytes(data)
    before = dump(store)
    report = store.compact()
    assert [kept.segment for kept in report.kept] == [place >> 32]
    assert report.problems[0].segment == place >> 32
    assert report.problems[0].offset_bytes == place & 0xFFFFFFFF
    assert path.read_bytes() == data, "the bad copy is kept for repair"
    assert dump(store) == before
    for i in (3, 4, 5, 6, 7):
        assert store.read(artifacts[i]) == bytes_of(i, 20_000 + i)


@pytest.mark.parametrize("what", ["header", "footer", "commit"])
def test_a_segment_that_cannot_be_read_whole_stays(store: Store, what: str) -> None:
    artifacts = fill(store, 8)
    drop(store, artifacts[:6:2])
    segment = next(
        n for n, (_, state) in log_core(store).catalog.segments().items() if state == SEGMENT_SEALED
    )
    path = Path(segment_path(log_core(store).backend.root, segment))
    data = bytearray(path.read_bytes())
    place = {"header": 20, "footer": len(data) - 200, "commit": data.index(b"HFrc\x8c") + 70}[what]
    data[place] ^= 1
    path.write_bytes(data)
    report = store.compact()
    assert segment in [kept.segment for kept in report.kept]
    assert path.read_bytes() == data


def test_a_record_of_a_newer_version_stays(store: Store) -> None:
    from holdfast import _native

    group = log_core(store).backend.group()
    group.add(b"\x3f", b"\0", _native.blake3(b"?"), [1], [b"?"])
    group.commit()
    artifacts = fill(store, 6)
    drop(store, artifacts[:4])
    report = store.compact()
    assert "0x3f" in report.kept[0].reason
    assert report.kept[0].segment == 1
    assert 1 in segments(store)


def test_a_segment_that_somebody_writes_is_left_alone(store: Store) -> None:
    artifacts = fill(store, 3)
    with again(store) as other:
        seal(store)
        theirs = other.put(b"theirs" * 1_000, filename="theirs")
        held = log_core(other).backend.committer.writers.own()
        drop(store, [*artifacts, theirs])
        report = store.compact()
        assert report.segments
        assert not set(held) & set(report.segments)
        assert set(held) <= set(segments(store))
        other.put(b"more")
    assert store.compact().segments, "they have closed it"


def test_what_a_stream_has_sealed_and_not_committed_is_not_dead(store: Store) -> None:
    """Another process has filled segments, and its commit is to come: no row knows of them yet."""
    fill(store, 1)
    with again(store) as other:
        writer = other.writer("long")
        content = bytes_of(5, 9 << 20)
        for start in range(0, len(content), 1 << 20):
            writer.write(content[start : start + (1 << 20)])
        fill(store, 3)
        with log_core(store).backend.lock():
            log_core(
                store
            ).keeper.catch_up()  # another one's sealed segments are looked at, and known from then on
        report = store.compact()
        assert any("about to commit" in kept.reason for kept in report.kept)
        artifact = writer.commit()
        assert store.read(artifact) == content
        before = dump(store)
        store.compact()
        assert store.read(artifact) == content
        store.rebuild()
        assert dump(store) == before


def test_who_pinned_another_catalog_may_be_about_to_commit(store: Store) -> None:
    """Its epoch says nothing here, however high it is."""
    with again(store) as other:
        session = log_core(other).backend.session
        run = compaction._Compaction(log_core(store), 0.0, None, 1, lambda: False)
        run._catalog = log_core(store).catalog
        key = session.begin(b"another catalog.", 1 << 40)
        assert run._busy() == [os.getpid()]
        session.end(key)
        assert run._busy() == []


def test_what_a_dead_stream_left_goes(store: Store) -> None:
    other = again(store)
    writer = other.writer("long")
    for start in range(9):
        writer.write(bytes_of(start, 1 << 20))
    log_core(other).backend.abandon()
    log_core(other).keeper.close()
    size = log_core(store).backend.disk_bytes()
    assert size > 4 << 20
    store.put(b"x")
    with log_core(store).backend.lock():
        log_core(store).keeper.catch_up()
    store.compact()
    assert log_core(store).backend.disk_bytes() < 1 << 20
    with suppress(FileNotFoundError):
        writer.abort()  # its process is dead; only ours has the objects still
    with suppress(Exception):
        other.close()


def test_two_at_once(store: Store) -> None:
    artifacts = fill(store, 4)
    drop(store, artifacts[:2])
    with again(store) as other, collecting(log_core(other).backend.disk, log_core(other).backend.root, "gc"):
        with pytest.raises(Locked, match="gc is running in process") as caught:
            store.compact()
        assert caught.value.evidence["pid"]
        with pytest.raises(Locked):
            store.gc()
    assert store.compact().segments


def test_a_store_that_was_opened_to_read_is_refused(store: Store) -> None:
    with (
        Store._open(log_core(store).backend.root, read_only=True, **OPTIONS) as reading,
        pytest.raises(PermissionDenied),
    ):
        reading.compact()


def test_it_can_be_cancelled(store: Store) -> None:
    artifacts = fill(store, 20)
    drop(store, artifacts[::2])
    before = dump(store)

    def cancel(progress: Progress) -> None:
        assert progress.phase == "compact"
        if progress.done_bytes > 60_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.compact(progress=cancel)
    assert dump(store) == before
    store.put(b"goes on")
    assert store.compact().segments
    assert store.rebuild().damaged == 0


def test_a_catalog_that_is_replaced_meanwhile_ends_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebuilt catalog knows the old places, and what was dead: nothing may go that it points to."""
    artifacts = fill(store, 12)
    drop(store, artifacts[::2])
    look = compaction._Compaction._is_empty

    def is_empty(self: Any, places: Any, source: Any) -> bool:
        with again(store) as other:
            other.rebuild()
        return look(self, places, source)

    monkeypatch.setattr(compaction._Compaction, "_is_empty", is_empty)
    old = segments(store)
    report = store.compact()
    assert not report.segments
    assert set(old) <= set(segments(store))
    monkeypatch.undo()
    for i in range(1, 12, 2):
        assert store.read(artifacts[i]) == bytes_of(i, 20_000 + i)
    assert store.scrub().ok


def test_rows_that_still_point_there_keep_a_segment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = fill(store, 8)
    drop(store, artifacts[::2])
    switch = compacting.switch

    def forgetful(catalog: Any, moves: Any, facts: Any) -> None:
        if moves.data:
            del moves.data[0], moves.copies[:]
        switch(catalog, moves, facts)

    monkeypatch.setattr(compacting, "switch", forgetful)
    report = store.compact()
    assert any("points into it" in kept.reason for kept in report.kept)
    monkeypatch.undo()
    for i in range(1, 8, 2):
        assert store.read(artifacts[i]) == bytes_of(i, 20_000 + i)


# --- readers


@pytest.mark.parametrize("elsewhere", [False, True])
def test_readers_are_not_disturbed(store: Store, elsewhere: bool) -> None:
    """Open files, iterators and readers with places in memory go on, here and in a store that is open beside."""
    large = store.put(bytes_of(77, 150_000))
    small = store.put(b"small" * 50)
    artifacts = fill(store, 6)
    drop(store, artifacts[::2])
    reading = again(store) if elsewhere else store
    try:
        with reading.open(large) as file, reading.open(small) as little:
            assert file.read(10) == bytes_of(77, 150_000)[:10]
            pieces = reading.iter_bytes(large, 20_000)
            first = next(pieces)
            reader = log_core(reading).reader(large.hash)
            reader.read_at(100_000, 10)
            wear(store, large, small)
            assert store.compact().segments
            log_core(
                reading
            ).backend.payloads.handles.close()  # the files that were open are closed: look again
            assert file.read() == bytes_of(77, 150_000)[10:]
            assert little.read() == b"small" * 50
            assert first + b"".join(pieces) == bytes_of(77, 150_000)[20_000:]
            assert reader.read_at(100_000, 30_000) == bytes_of(77, 150_000)[100_000:130_000]
            assert b"".join(reader.iter_bytes(0, 150_000)) == bytes_of(77, 150_000)
            assert log_core(reading).catalog.id == log_core(store).catalog.id, "nothing was rebuilt"
    finally:
        if elsewhere:
            reading.close()


def wear(store: Store, *artifacts: Artifact) -> None:
    """Let every segment have dead bytes in it."""
    for artifact in artifacts:
        store.update(artifact, metadata={"k": "v" * 100})
        store.update(artifact, metadata={"k": "w" * 100})
    for row in log_core(store).catalog.segments():
        compacting.set_contents(log_core(store).catalog, {row: 1 << 30})


def test_a_large_blob_that_moves_between_look_up_and_read(store: Store) -> None:
    large = store.put(bytes_of(77, 150_000))
    row = log_core(store).blob(large.hash)
    wear(store, large)
    assert row.location >> 32 in store.compact().segments
    identity = log_core(store).catalog.id
    reader = log_core(store).backend.reader(row)
    assert reader.read_at(0, 150_000) == bytes_of(77, 150_000)
    assert log_core(store).catalog.id == identity


def test_a_reader_that_keeps_its_catalog_in_memory(store: Store) -> None:
    """A store that is opened to read, beside a writer, with a catalog of its own: it reads storage again."""
    large = store.put(bytes_of(77, 150_000))
    with Store._open(log_core(store).backend.root, read_only=True, catalog_path=None, **OPTIONS) as reading:
        assert reading.read(large, 0, 10) == bytes_of(77, 150_000)[:10]
        wear(store, large)
        assert store.compact().segments
        log_core(reading).backend.payloads.handles.close()
        assert reading.read(large) == bytes_of(77, 150_000)


def test_room_comes_back_when_readers_let_go(store: Store) -> None:
    """Files that are gone are closed by the next look of each thread that had them open."""
    artifacts = fill(store, 6)
    for artifact in artifacts:
        store.read(artifact)
    handles = log_core(store).backend.payloads.handles
    with again(store) as other:
        for artifact in artifacts:
            other.read(artifact)
        theirs = log_core(other).backend.payloads.handles
        assert set(theirs._open) == set(handles._open) != set()
        drop(store, artifacts[:5])
        gone = set(store.compact().segments)
        assert gone
        assert not gone & set(handles._open)
        for _ in range(len(theirs._open) + 1):  # others see it by and by, as they open more
            here = next((n for n in segments(store) if n in theirs._open), None)
            if here is not None:
                theirs._drop(here)
            theirs.read(here or segments(store)[0], 0, 1)
        assert not gone & set(theirs._open)


# --- older catalogs


def test_an_older_catalog_is_made_anew(store: Store, tmp_path: Path) -> None:
    """A copy from before a compaction is put back: its places are gone, which is no loss."""
    artifacts = fill(store, 8)
    drop(store, artifacts[::2])
    root = log_core(store).backend.root
    log_core(store).catalog.checkpoint()
    old = Path(f"{root}/catalog.db").read_bytes()
    store.compact()
    before = dump(store)
    store.close()
    lose_catalog(root)
    Path(f"{root}/catalog.db").write_bytes(old)
    with Store._open(root, **OPTIONS) as opened:
        assert not log_core(opened).keeper.problems
        assert dump(opened) == before
        for i in range(1, 8, 2):
            assert opened.read(artifacts[i]) == bytes_of(i, 20_000 + i)


def test_what_was_retired_and_is_still_there_counts_for_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power fails between the word and the unlink, and the catalog is lost too."""
    artifacts = fill(store, 8)
    drop(store, artifacts[::2])
    monkeypatch.setattr(log_core(store).backend.disk, "unlink", lambda _: None)
    report = store.compact()
    before = dump(store)
    monkeypatch.undo()
    assert set(report.segments) <= set(segments(store))
    root = log_core(store).backend.root
    store.close()
    lose_catalog(root)
    with Store._open(root, **OPTIONS) as opened:
        assert dump(opened) == before
        assert not set(report.segments) & set(segments(opened)), "the next opener removes them"


def test_superseded_segments_go(store: Store) -> None:
    artifacts = fill(store, 3)
    writers = log_core(store).backend.committer.writers
    (writer,) = writers.own().values()
    writer.give_up()
    writers._idle.clear()
    writers.forget(writer)
    store.put(b"elsewhere")
    assert log_core(store).catalog.segments()[writer.segment][1] == SEGMENT_SEALED
    before = dump(store)
    drop(store, artifacts)
    store.compact()
    assert writer.segment not in segments(store)
    store.rebuild()
    assert len(dump(store)) < len(before)


# --- the reserve


def test_a_full_disk(tmp_path: Path) -> None:
    from holdfast.testing.model_disk import ModelDisk

    disk = ModelDisk("/model", capacity_bytes=2_000_000)
    options = {**OPTIONS, "catalog_path": tmp_path / "catalog.db", "disk": disk}
    with Store._open("/model/store", create=True, **options) as store:
        reserve = log_core(store).backend.reserve
        artifacts = fill(store, 60)
        assert reserve.held_bytes() == SEGMENT
        drop(store, artifacts[::2])
        ballast = disk.open("/model/ballast", "x")
        disk.allocate(ballast, disk.free_bytes("/model"))
        with pytest.raises(NoSpace):
            store.put(bytes_of(999, 30_000))
        report = store.compact()
        assert report.reserve_used
        assert report.freed_bytes > 400_000
        assert reserve.held_bytes() == SEGMENT, "made again"
        for i in range(1, 60, 2):
            assert store.read(artifacts[i]) == bytes_of(i, 20_000 + i)
        disk.close(ballast)
    with Store._open("/model/store", **options) as store:
        assert store.rebuild().damaged == 0


def test_even_the_reserve_is_too_little(tmp_path: Path) -> None:
    from holdfast.testing.model_disk import ModelDisk

    disk = ModelDisk("/model", capacity_bytes=2_000_000)
    options = {**OPTIONS, "catalog_path": tmp_path / "catalog.db", "disk": disk, "reserve_bytes": 1_000}
    with Store._open("/model/store", create=True, **options) as store:
        artifacts = fill(store, 60)
        drop(store, artifacts[::2])
        before = dump(store)
        ballast = disk.open("/model/ballast", "x")
        disk.allocate(ballast, disk.free_bytes("/model"))
        with pytest.raises(NoSpace, match="make room elsewhere") as caught:
            store.compact()
        assert caught.value.evidence["needed_bytes"] > 1_000
        assert caught.value.evidence["reserve_bytes"] == 1_000
        assert dump(store) == before
        for i in range(1, 60, 2):
            assert store.read(artifacts[i]) == bytes_of(i, 20_000 + i)
        disk.unlink("/model/ballast")
        disk.close(ballast)
        disk.used_bytes = 1_400_000
        assert store.compact().segments


@pytest.mark.parametrize(
    ("want", "segment", "total", "size"),
    [(None, 100, 3_000, 100), (None, 100, 1_000, 50), (70, 100, 1_000, 70), (0, 100, 1_000, 0)],
)
def test_how_large_the_reserve_is(want: int | None, segment: int, total: int, size: int) -> None:
    from holdfast.backend.log.reserve import Reserve
    from holdfast.testing.model_disk import ModelDisk

    disk = ModelDisk("/model", capacity_bytes=total)
    reserve = Reserve(disk, "/model", want, segment)
    reserve.make()
    assert reserve.held_bytes() == size
    assert disk.free_bytes("/model") == total - size
    smaller = Reserve(disk, "/model", 10, segment)
    smaller.make()
    assert smaller.held_bytes() == 10
    assert smaller.release() == 10
    smaller.make()
    assert smaller.held_bytes() == 0, "not before who compacts is done"
    smaller.fill()
    assert smaller.held_bytes() == 10


# --- small parts


def test_runs() -> None:
    runs = Runs([range(5, 7), range(1, 2)])
    runs.add([range(2, 4), range(7, 9), range(3, 3)])
    assert list(runs) == [range(1, 4), range(5, 9)]
    assert [n for n in range(12) if n in runs] == [1, 2, 3, 5, 6, 7, 8]


def test_it_ends_when_the_store_is_closed(store: Store) -> None:
    artifacts = fill(store, 30)
    drop(store, artifacts[::2])
    root = log_core(store).backend.root
    closing = threading.Thread(target=store.close)

    def close(_: Progress) -> None:
        if closing.ident is None:
            closing.start()
        while not log_core(store).was_closed:
            pass

    old = segments(store)
    report = store.compact(progress=close)
    closing.join()
    assert len(report.segments) < len(old) - 1
    with Store._open(root, **OPTIONS) as opened:
        for i in range(1, 30, 2):
            assert opened.read(artifacts[i]) == bytes_of(i, 20_000 + i)
        assert opened.compact().segments
        assert opened.rebuild().damaged == 0
