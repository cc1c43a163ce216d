"""Damage to the log is no reason to make a catalog anew that knows more than the log still does."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest

import holdfast
from holdfast.backend.log.payloads import OFFSET_MASK
from holdfast.care.compare import read_segment
from holdfast.catalog.connection import connect
from holdfast.errors import IntegrityError
from holdfast.testing.inside import log_core
from holdfast.types import parse_id
from holdfast.wire.record import HEADER_BYTES, Entry, Kind, iter_entries


def documents(store: holdfast.Store) -> list[Entry]:
    """Give the records of names in the one segment."""
    core = log_core(store)
    (segment,) = core.backend.segment_ids()
    index = read_segment(core, segment)
    assert index is not None
    return [e for e in iter_entries(index.entries) if e.kind in (Kind.ARTIFACT, Kind.TOMBSTONE, Kind.TAG)]


def test_a_read_of_damaged_records_forgets_no_name(tmp_path: Path) -> None:
    path, backup = tmp_path / "store", tmp_path / "backup"
    contents = [bytes([n]) * 9_000 for n in range(1, 9)]
    with holdfast.create(path, compression="none") as store:
        kept = [store.put(content, filename=f"{n}") for n, content in enumerate(contents)]
        store.tags.set("named", kept[3].hash)
    shutil.copytree(path, backup)
    (segment,) = (path / "segments").iterdir()
    with segment.open("r+b") as file:
        file.seek(9_500)
        file.write(bytes(30_000))  # contents, artifacts and commits alike
    with holdfast.open(path) as store:
        for artifact in kept:
            try:
                assert len(store.read(artifact)) == 9_000
            except IntegrityError:
                continue
        with pytest.raises(IntegrityError):
            store.read(kept[2])
        assert {one.id for one in store.find()} == {one.id for one in kept}
        assert store.tags.get("named").hash == kept[3].hash
        assert not store.scrub().ok
        assert {one.id for one in store.find()} == {one.id for one in kept}
        assert store.repair(str(backup)).ok
        assert store.scrub().ok
        assert [store.read(one) for one in kept] == contents
        store.rebuild()
        assert [store.read(one) for one in kept] == contents


def test_what_was_changed_after_the_damage_is_not_undone_by_its_repair(tmp_path: Path) -> None:
    """A rebuild met an older state only; what was said then has a lower revision than what is brought back."""
    path, backup = tmp_path / "store", tmp_path / "backup"
    with holdfast.create(path) as store:
        changed, deleted, left, gone = (store.put(b"content", filename=f"{n}") for n in range(4))
        for artifact in (changed, deleted, left, gone):
            store.update(artifact, metadata={"note": "second"})
            store.update(artifact, metadata={"note": "third"})
        store.delete(deleted)
        for _ in range(3):
            store.tags.set("named", changed.hash)
        offsets = [entry.offset for entry in documents(store)]
    shutil.copytree(path, backup)
    (segment,) = (path / "segments").iterdir()
    with segment.open("r+b") as file:
        for offset in offsets[4:]:  # all but the first states
            file.seek(offset + HEADER_BYTES + 8)
            file.write(b"damage")
    (path / "catalog.db").unlink()
    with holdfast.open(path) as store:
        store.update(changed.id, filename="mine")
        store.update(deleted.id, filename="mine")
        store.delete(gone.id)
        mine = store.put(b"other content")
        store.tags.set("named", mine.hash)
        assert not store.scrub().ok
        assert store.repair(str(backup)).ok
        for artifact in (changed, deleted):
            assert store.info(artifact.id).filename == "mine"
        assert store.info(left.id).metadata == {"note": "third"}
        assert store.tags.get("named").hash == mine.hash
        assert not list(store.find(filename="3")), "deleted"
        assert store.scrub().ok
        store.rebuild()
        assert store.info(deleted.id).filename == "mine"


def test_two_copies_that_went_their_own_ways_and_were_copied_over_each_other(tmp_path: Path) -> None:
    """The segment of the one lies in the place of the other's, whose catalog names what it has not."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    both, mine, other = (Random(n).randbytes(60_000) for n in range(3))
    with holdfast.create(ours, compression="none") as store:
        kept = store.put(both)
    shutil.copytree(ours, theirs)
    with holdfast.open(ours) as store:
        lost = store.put(mine, filename="mine", tags=["mine"])
        store.tags.set("mine", lost.hash)
    with holdfast.open(theirs) as store:
        came = store.put(other + other[::-1])
    backup = tmp_path / "backup"
    shutil.copytree(ours, backup)
    (segment,) = (theirs / "segments").iterdir()
    shutil.copy(segment, ours / "segments" / segment.name)
    with holdfast.open(ours) as store:
        assert not store.scrub().ok
        assert not store.health().ok
        with pytest.raises(IntegrityError, match="a rebuild would forget 2 names"):
            store.rebuild()
        assert [one.id for one in store.find(tag="mine")] == [lost.id]
        report = store.repair()
        assert not report.ok, "nobody has the bytes"
        assert not store.health().ok
        assert [one.id for one in store.find(tag="mine")] == [lost.id], "and what is said of them stays"
        assert store.repair(str(backup)).ok
        assert store.health().ok, store.health().ailments
        assert store.scrub().ok
        store.rebuild()
        assert store.scrub().ok
        assert store.read(lost) == store.read(store.tags.get("mine").hash) == mine
        assert store.read(kept) == both
        assert store.read(came) == other + other[::-1]


def test_names_that_only_the_catalog_knows_go_by_word_alone(tmp_path: Path) -> None:
    """Their records are zeros: what they said cannot be proved, and is not said again from the catalog."""
    path = tmp_path / "store"
    with holdfast.create(path, compression="none") as store:
        kept = [store.put(bytes([n]) * 9_000) for n in range(1, 9)]
    (segment,) = (path / "segments").iterdir()
    with segment.open("r+b") as file:
        file.seek(9_500)
        file.write(bytes(30_000))
    with holdfast.open(path) as store:
        store.scrub()
        with pytest.raises(IntegrityError):
            store.read(kept[2])
        with pytest.raises(IntegrityError, match=r"a rebuild would forget \d names"):
            store.rebuild()
        assert not store.repair().ok
        assert {one.id for one in store.find()} == {one.id for one in kept}
        for one in kept:
            try:
                store.read(one)
            except IntegrityError:
                store.delete(one)
        store.repair(give_up=True)
        assert store.repair().ok
        assert store.health().ok, store.health().ailments
        store.rebuild()
        assert store.scrub().ok


def test_a_damaged_name_is_not_said_again_by_a_catalog_that_says_otherwise(tmp_path: Path) -> None:
    """Not even the id is legible in its record: it is damaged all the same, and no other segment's."""
    path = tmp_path / "store"
    with holdfast.create(path) as store:
        lost, kept = store.put(b"lost"), store.put(b"kept")
        ((location,),) = log_core(store).catalog.ask(
            "SELECT location FROM artifacts WHERE id = ?", (parse_id(lost.id),)
        )
    (segment,) = (path / "segments").iterdir()
    with segment.open("r+b") as file:
        file.seek((location & OFFSET_MASK) + HEADER_BYTES)
        file.write(bytes(40))
    connection = connect(path / "catalog.db")
    connection.execute("UPDATE artifacts SET modified_ms = modified_ms + 1")
    connection.close()
    with holdfast.open(path) as store:
        assert not store.scrub().ok
        assert not store.repair().ok
        store.repair(give_up=True)
        assert [one.id for one in store.find()] == [kept.id]
        assert store.repair().ok
