"""Compaction that breaks off in the middle of moving rows, and groups that are committed while it copies."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from holdfast import compaction
from holdfast.backend.log.layout import segment_path
from holdfast.catalog import compacting
from holdfast.chunking import Chunking
from holdfast.errors import ArtifactNotFound, NoSpace
from holdfast.facts import SEGMENT_SUPERSEDED
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.types import Artifact

OPTIONS: dict[str, Any] = {
    "chunking": Chunking.choose("fastcdc", 4096),
    "compression": "none",
    "segment_bytes": 64 << 10,
    "lock_timeout_seconds": 5.0,
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store._open(str(tmp_path / "store"), create=True, **OPTIONS) as store:
        yield store


def drop(store: Store, artifacts: list[Artifact]) -> None:
    """Delete and collect, without the compaction that comes with a collection."""
    store.delete(*artifacts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.gc.collector.compact_segments", lambda *_, **__: None)
        assert store.gc(min_age_seconds=0).complete


def check_loss_is_noticed(store: Store, segments: list[int]) -> None:
    """What rows point into is missed when it goes."""
    for segment in segments:
        path = Path(segment_path(log_core(store).backend.root, segment))
        aside = path.with_suffix(".aside")
        path.rename(aside)
        lost = log_core(store).backend.lost_segments(log_core(store).catalog.segments())
        aside.rename(path)
        assert [one[0] for one in lost] == [segment]


def dump(store: Store) -> list[str]:
    return [line for line in log_core(store).catalog.dump() if not line.startswith("tombstone")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, NoSpace("the catalog has no room")])
@pytest.mark.parametrize(("at", "after"), [(2, False), (2, True), (3, False), (-1, False), (-1, True)])
def test_rows_are_moved_in_part(
    store: Store, monkeypatch: pytest.MonkeyPatch, at: int, after: bool, error: BaseException
) -> None:
    """What rows point to already is not cut off again, whichever transaction fails, and whether or not it counts."""
    contents = [random.Random(i).randbytes(20_000 + i) for i in range(12)]
    artifacts = [store.put(content, filename=f"{i}") for i, content in enumerate(contents)]
    kept = (1, 7)
    drop(store, [artifact for i, artifact in enumerate(artifacts) if i not in kept])
    before = dump(store)
    monkeypatch.setattr(compaction, "SWITCHED_ROWS", 3)
    switch = compacting.switch
    done: list[Any] = []
    failed: list[int] = []

    def broken(catalog: Any, moves: Any, facts: Any) -> None:
        done.append(facts)
        fails = not failed and (len(done) == at or (at < 0 and facts.retired))
        if fails:
            failed.append(1)
        if fails and not after:
            raise error
        switch(catalog, moves, facts)
        if fails:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(compacting, "switch", broken)
        patch.setattr(log_core(store).backend.reserve, "release", lambda: 0)
        if isinstance(error, NoSpace):
            store.compact()  # goes on with one at a time
        else:
            with pytest.raises(KeyboardInterrupt):
                store.compact()
    assert failed
    for i in kept:
        assert store.read(artifacts[i]) == contents[i]
    assert store.scrub().ok
    store.compact()
    for i in kept:
        assert store.read(artifacts[i]) == contents[i]
    assert store.scrub().ok
    assert dump(store) == before
    store.rebuild()
    assert dump(store) == before


def test_documents_are_committed_while_their_segment_is_copied(store: Store) -> None:
    """They end segments that a put has filled; its commit stands in the next one, and is applied between two looks."""
    store.put(b"same")
    with Store._open(log_core(store).backend.root, **OPTIONS) as other:
        old = other.put(random.Random(1).randbytes(20_000))
        drop(store, [old])
        committer = log_core(other).backend.committer
        apply, busy = committer._bring_in, compaction._Compaction._busy
        is_durable, may_apply = threading.Event(), threading.Event()
        found: list[Artifact] = []

        def waiting() -> None:
            is_durable.set()
            assert may_apply.wait(20)
            apply()

        def put() -> None:
            found.extend(other.put_many([b"same"] * 900, metadata={"x": "y" * 100}))

        def late(self: Any) -> list[int]:
            may_apply.set()
            thread.join(20)
            return busy(self)

        thread = threading.Thread(target=put)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(committer, "_bring_in", waiting)
            thread.start()
            assert is_durable.wait(20)
            with log_core(store).backend.lock():
                log_core(store).keeper.catch_up()  # the segments that are full are known from here on
            patch.setattr(compaction._Compaction, "_busy", late)
            report = store.compact()
            may_apply.set()
            thread.join(20)
        assert len(found) == 900
        kept = [one.segment for one in report.kept if "points into it" in one.reason]
        assert kept
        check_loss_is_noticed(store, kept)
        with log_core(store).backend.lock():  # as if it had broken off before it looked again
            rows = [(SEGMENT_SUPERSEDED, segment) for segment in kept]
            sql = "UPDATE segments SET state = ? WHERE id = ?"
            log_core(store).catalog._write(lambda cursor: cursor.executemany(sql, rows))
        store.compact(1.0)
        check_loss_is_noticed(store, kept)
        before = dump(store)
        store.compact()
        store.rebuild()
        assert dump(store) == before
        assert store.count() == 901


def test_a_catalog_rebuilt_before_the_unlink_points_to_what_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record that segments are retired lies in the tail of a process that lives: the rebuild goes by it.

    Without that rows would lead to segments that are unlinked a moment later.
    """
    root = log_core(store).backend.root
    kept = [store.put(random.Random(i).randbytes(9_000), filename=f"kept {i}") for i in range(3)]
    gone = [store.put(random.Random(i).randbytes(9_000), filename=f"gone {i}") for i in range(10, 13)]
    store.delete(gone[0])
    for number in range(9):  # they fill the segment, and are dead in it
        store.update(kept[0], metadata={"words": f"{number}" * 7_000})
    unlink = compaction._Compaction._unlink

    def lose_first(self: Any, sources: list[Any]) -> None:
        if sources:
            Path(root, "catalog.db").unlink(missing_ok=True)
            with Store._open(root, lock_timeout_seconds=5.0) as other:
                assert other.info(kept[0]).revision == 10
        unlink(self, sources)

    monkeypatch.setattr(compaction._Compaction, "_unlink", lose_first)
    assert store.compact(0.0).segments
    monkeypatch.undo()
    for each in (store, store):
        report = each.scrub()
        assert report.ok, report.problems
    for artifact in (*kept, *gone[1:]):
        assert len(store.read(artifact)) == 9_000
    assert store.restore(gone[0]).filename == "gone 10"


_DYING = """
import os, sys
from holdfast.catalog import compacting
from holdfast.store import Store
store = Store._open(sys.argv[1], segment_bytes=65536)
switch = compacting.switch
def dying(catalog, moves, facts):
    if facts.retired and (len(sys.argv) > 3 or moves.tombstones or moves.drop_tombstones):
        os._exit(9 if moves.tombstones else 8)
    switch(catalog, moves, facts)
compacting.switch = dying
store.compact(float(sys.argv[2]))
os._exit(1)
"""


@pytest.mark.parametrize(("share", "code"), [(0.0, 8), (0.5, 9)])
def test_a_kill_before_the_catalog_hears_that_segments_are_retired(
    tmp_path: Path, share: float, code: int
) -> None:
    """The log says so, and has the tombstones that stay; their rows must not be left where nothing is any more."""
    path = str(tmp_path / "store")
    with Store._open(path, create=True, **OPTIONS) as store:
        small = store.put_many([random.Random(i).randbytes(200) for i in range(20)])
        kept = store.put(random.Random(100).randbytes(50_000))
        garbage = [store.put(random.Random(200 + i).randbytes(20_000)) for i in range(8)]
        drop(store, [*small, *garbage])
    died = subprocess.run([sys.executable, "-c", _DYING, path, str(share)], check=False)
    assert died.returncode == code, "9: some tombstones stay"
    with Store._open(path, **OPTIONS) as store:
        assert store.scrub().ok
        assert store.read(kept) == random.Random(100).randbytes(50_000)
        before = list(log_core(store).catalog.dump())
        store.compact()
        assert store.scrub().ok
        after = list(log_core(store).catalog.dump())
        store.rebuild()
        assert list(log_core(store).catalog.dump()) == after
        assert [line for line in before if not line.startswith("tombstone")] == dump(store)
        assert store.count() == 1


def test_a_repaired_place_stays_so_while_its_retired_segment_is_still_there(tmp_path: Path) -> None:
    """The log says that it is retired, nobody has removed it, and it is scrubbed: what is damaged there is nobody's."""
    path = str(tmp_path / "store")
    content = random.Random(1).randbytes(3_000)
    with Store._open(path, create=True, **OPTIONS) as store:
        artifact = store.put(content)
        garbage = store.put(random.Random(2).randbytes(40_000))
        place = log_core(store).backend.segment_ids()[0]
        drop(store, [garbage])
    segment = Path(segment_path(path, place))
    data = bytearray(segment.read_bytes())
    data[data.find(content) + 100] ^= 1
    segment.write_bytes(data)
    with Store._open(path, **OPTIONS) as store:
        assert not store.scrub().ok
        (tmp_path / "original").write_bytes(content)
        assert store.repair(tmp_path / "original").ok
        assert store.scrub().ok
    died = subprocess.run([sys.executable, "-c", _DYING, path, "0", "any"], check=False)
    assert died.returncode in (8, 9)
    with Store._open(path, **OPTIONS) as store:
        assert store.scrub().ok
        assert store.read(artifact) == content
        store.rebuild()
        assert store.scrub().ok


_DIES_AT_THE_SWITCH = """
import os, sys
from holdfast.catalog import compacting
from holdfast.store import Store
store = Store._open(sys.argv[1], segment_bytes=65536)
compacting.switch = lambda *_: os._exit(9)
store.compact(0.3)
os._exit(1)
"""


def test_a_commit_that_was_carried_over_brings_nothing_back(tmp_path: Path) -> None:
    """A group in many segments loses the one of its commit, which is written anew; then the process is killed.

    Whoever takes that over reads the group again: the first revision of an artifact that was changed, deleted and
    forgotten since.
    """
    path = str(tmp_path / "store")
    with Store._open(path, create=True, **OPTIONS) as store:
        store.put_many([b"%d" % i for i in range(60)], metadata={"words": "w" * 3_000})
        sql = "SELECT id, location >> 32 FROM artifacts ORDER BY location"
        rows = [(str(UUID(bytes=id)), segment) for id, segment in log_core(store).catalog.ask(sql)]
        (first, lowest), (_, highest) = rows[0], rows[-1]
        assert lowest < highest, "the commit stands elsewhere"
        changed = store.update(first, metadata={})
        drop(store, [changed, *(store.info(id) for id, segment in rows if segment == highest)])
        before = list(log_core(store).catalog.dump())
    died = subprocess.run([sys.executable, "-c", _DIES_AT_THE_SWITCH, path], check=False)
    assert died.returncode == 9
    with Store._open(path, **OPTIONS) as store:
        assert list(log_core(store).catalog.dump()) == before
        with pytest.raises(ArtifactNotFound):
            store.restore(changed.id)
        assert not store.compact().problems
        assert dump(store) == [line for line in before if not line.startswith("tombstone")]
        assert store.scrub().ok
