"""Stretches of segments in which no record is left: files, a copy of the store, or giving up gets it well again."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from holdfast.backend.log.segment import read_index
from holdfast.errors import ArtifactNotFound, IntegrityError
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.wire.record import HEADER_BYTES, Kind, iter_entries

COUNT = 40


def content(number: int) -> bytes:
    return random.Random(number).randbytes(3_000 + number)


class Torn:
    """A store of one segment, a copy of it, its contents as files, and a hole in the segment."""

    def __init__(self, tmp_path: Path) -> None:
        self.path, self.copy, self.files = tmp_path / "s", tmp_path / "copy", tmp_path / "files"
        self.files.mkdir()
        with Store._open(self.path, create=True) as store:
            self.ids = [store.put(content(i), tags=["a"]).id for i in range(COUNT)]
            store.tags.set("kept", store.info(self.ids[0]).hash)
            self.gone = store.put(b"deleted").id
        shutil.copytree(self.path, self.copy)
        for i in range(COUNT):
            (self.files / str(i)).write_bytes(content(i))
        (self.segment,) = (self.path / "segments").iterdir()

    def tear(self, length: int = 20_000) -> None:
        with self.segment.open("r+b") as file:
            file.seek(self.segment.stat().st_size // 3)
            file.write(bytes(length))

    def forget(self) -> None:
        for path in self.path.glob("catalog.db*"):
            path.unlink()

    def missing(self, store: Store) -> int:
        missing = 0
        for i, id_ in enumerate(self.ids):
            try:
                assert store.read(id_) == content(i)
            except (ArtifactNotFound, IntegrityError):
                missing += 1
        return missing

    def check_well(self, store: Store, missing: int = 0) -> None:
        """Well now, after a rebuild, and after a compaction, which can do without the segment."""
        for _ in range(2):
            assert store.repair().ok
            assert store.scrub().ok
            assert store.health().ok, store.health().ailments
            assert self.missing(store) == missing
            kept = log_core(store).catalog.dump()
            store.rebuild()
            assert list(log_core(store).catalog.dump()) == list(kept)
            assert store.health().ok
            store.gc(min_age_seconds=0)
            report = store.compact()
            assert not report.kept
            assert not report.problems


@pytest.fixture
def torn(tmp_path: Path) -> Torn:
    return Torn(tmp_path)


@pytest.mark.parametrize("source", ["files", "copy"])
def test_what_the_catalog_knows_is_stored_anew(torn: Torn, source: str) -> None:
    torn.tear()
    with Store._open(torn.path) as store:
        assert not store.scrub().ok
        report = store.repair(getattr(torn, source))
        assert report.ok, report.missing
        torn.check_well(store)
        assert not torn.segment.exists() or source == "copy"


def test_what_no_catalog_knows_is_not_forgotten_unasked(torn: Torn) -> None:
    torn.tear()
    torn.forget()
    for _ in range(2):
        with Store._open(torn.path) as store:
            store.scrub()
            for _ in range(2):
                assert not store.repair(torn.files).ok
            assert not store.health().ok
            lacks = torn.missing(store)
            assert lacks > 3
    with Store._open(torn.path) as store:
        assert store.repair(give_up=True).ok
        torn.check_well(store, lacks)
        store.repair(torn.copy)
        assert torn.missing(store) == lacks, "what was given up does not come back"


def test_a_copy_of_the_store_puts_back_what_stood_there(torn: Torn) -> None:
    with Store._open(torn.path) as store:
        store.delete(torn.gone)
    torn.tear()
    torn.forget()
    with Store._open(torn.path) as store:
        assert torn.missing(store) > 3
        report = store.repair(torn.copy)
        assert report.ok
        assert [one.what for one in report.repaired] == ["stretch"] * len(report.repaired)
        assert not store.exists(torn.gone), "what was said after the copy was made stands"
        store.scrub()
        assert store.repair(torn.copy).ok
        torn.check_well(store)


def test_another_store_is_no_copy(torn: Torn, tmp_path: Path) -> None:
    with Store._open(tmp_path / "other", create=True) as other:
        for i in range(COUNT):
            other.put(content(i), tags=["a"])
    torn.tear()
    torn.forget()
    with Store._open(torn.path) as store:
        assert not store.repair(tmp_path / "other").ok


def test_a_copy_that_went_its_own_way_is_none(torn: Torn) -> None:
    """The same store id and segment, and other records in it: nothing of it may be put in place."""
    size = torn.segment.stat().st_size
    for turn, path in enumerate((torn.path, torn.copy)):
        with Store._open(path) as store:
            for i in range(10):
                store.put(content(1_000 + 10 * turn + i))
    with torn.segment.open("r+b") as file:
        file.seek(size + 3_000)
        file.write(bytes(3_000))
    torn.forget()
    with Store._open(torn.path) as store:
        assert not store.repair(torn.copy).ok


@pytest.mark.parametrize("count", [None, 16])
def test_a_commit_whose_bytes_are_gone(torn: Torn, count: int | None) -> None:
    """All of them, or only those of its id: it names its records still, and a rebuild would not believe it."""
    with Store._open(torn.path) as store:
        disk, root = log_core(store).backend.disk, log_core(store).backend.root
        handle = disk.open(str(torn.segment), "r")
        index = read_index(disk, handle, 1, root)
        disk.close(handle)
    commits = [entry for entry in iter_entries(index.entries) if entry.kind == Kind.COMMIT]
    with torn.segment.open("r+b") as file:
        for entry in commits[3:6]:
            file.seek(entry.offset + HEADER_BYTES)
            file.write(bytes(count or entry.stored_bytes))
    with Store._open(torn.path) as store:
        assert not store.scrub().ok
        assert store.repair().ok, "all that they committed is here, and is committed anew"
        torn.check_well(store)


@pytest.mark.parametrize("cut_bytes", [100, 30_000])
@pytest.mark.parametrize("give_up", [False, True])
def test_what_is_left_of_a_segment_that_was_cut_short_stays(
    tmp_path: Path, cut_bytes: int, give_up: bool
) -> None:
    """Large blobs, too, of which the catalog does not know how they were described."""
    kept, last = random.Random(1).randbytes(200_000), random.Random(2).randbytes(100_000)
    with Store._open(tmp_path / "s", create=True, compression="none") as store:
        ids = [store.put(kept).id, store.put(last).id]
    (segment,) = (tmp_path / "s" / "segments").iterdir()
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size - cut_bytes)
    with Store._open(tmp_path / "s") as store:
        report = store.repair(give_up=give_up)
        assert store.read(ids[0]) == kept
        if cut_bytes == 100:
            assert report.ok, report.missing
            assert store.read(ids[1]) == last
            assert store.health().ok
            assert store.scrub().ok
        if report.ok or give_up:
            store.rebuild()
            assert store.read(ids[0]) == kept
