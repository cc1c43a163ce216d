"""Comparisons with a hash or a checksum, each made to matter: damage that all checks before it let through.

`forge` changes a record and puts both of its checksums right again: what is wrong then is only what is compared here.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from holdfast import _native
from holdfast.backend.log import commit as commits
from holdfast.backend.log.evacuation import Evacuation
from holdfast.backend.log.payloads import Place
from holdfast.backend.log.pieces import iter_pieces
from holdfast.catalog.compacting import CatalogPlaces
from holdfast.catalog.connection import connect
from holdfast.errors import IntegrityError, NotFound
from holdfast.store import Store
from holdfast.testing.checks import dump_catalog
from holdfast.testing.inside import log_core
from holdfast.types import Hash
from holdfast.wire.document import ArtifactDocument, encode_artifact
from holdfast.wire.record import Commit, Entry, Kind
from tests.crash.test_damage import Record, records
from tests.crash.world import ROOT, World, crash_after, fill, new_world, piece


def forge(data: bytearray, record: Record, change: Callable[[bytearray], None]) -> None:
    """Change a record's payload in a segment, and let its checksums say that it was always so."""
    payload = data[record.offset + 64 : record.stop]
    change(payload)
    assert len(payload) == record.stop - record.offset - 64
    data[record.offset + 64 : record.stop] = payload
    struct.pack_into("<I", data, record.offset + 24, _native.crc32c(payload))
    header = data[record.offset : record.offset + 60]
    struct.pack_into("<I", data, record.offset + 60, _native.crc32c(header))


def forged(world: World, kind: str, change: Callable[[bytearray], None], number: int = 0) -> World:
    """Give a twin with one record of a kind forged."""
    twin = world.twin()
    files = twin.disk.files(ROOT)
    record = [found for found in records(files) if found.kind == kind][number]
    data = bytearray(files[record.path])
    forge(data, record, change)
    twin.disk.overwrite(record.path, bytes(data))
    return twin


def flip(at: int) -> Callable[[bytearray], None]:
    def change(payload: bytearray) -> None:
        payload[at] ^= 1

    return change


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Sealed and closed segments with a large blob, a small one, and what names them."""
    with new_world() as world:
        with world.open() as store:
            world.ledger.put(store, piece("large", 30_000))
            world.ledger.put(store, piece("small", 300))
            world.ledger.put(store, piece("another", 25_000))
            for number in range(6):
                world.ledger.put(store, piece(f"filler-{number}", 12_000))
            world.ledger.delete(store, "small")
            world.ledger.restore(store, "small")
        yield world


def right_or_refused(store: Store, world: World) -> int:
    """Read everything; wrong bytes are an error. Give how much was refused."""
    refused = 0
    for name, key in world.ledger.ids.items():
        content = world.ledger.content(name)
        for read in (
            lambda k=key: store.read(k),
            lambda k=key, c=content: c[:7] + store.read(k, 7, len(c) - 7),
            lambda k=key: b"".join(store.iter_bytes(k)),
        ):
            try:
                assert read() == content
            except (IntegrityError, NotFound):
                refused += 1
    return refused


@pytest.mark.parametrize("kind", ["data", "blob", "manifest page", "outboard page"])
@pytest.mark.parametrize("keep", [True, False])
def test_forged_payloads_are_never_given_out(kind: str, keep: bool, world: World) -> None:
    """Whoever changes bytes and their checksum does not change their hash."""
    files = world.disk.files(ROOT)
    for number, record in enumerate(r for r in records(files) if r.kind == kind):
        for at in {0, 1, (record.stop - record.offset - 64) // 2, record.stop - record.offset - 65}:
            twin = forged(world, kind, flip(at), number)
            catalog = twin.catalog if keep else twin.no_catalog()
            with twin.open(catalog=catalog) as store:
                right_or_refused(store, twin)
                if kind == "data":
                    assert not store.scrub().ok
            twin.end()


def test_forged_documents_are_left_out_and_told_of(world: World) -> None:
    """An artifact, a tombstone: what does not match its hash says nothing, and is reported."""
    for kind in ("artifact", "tombstone"):
        files = world.disk.files(ROOT)
        for number, record in enumerate(r for r in records(files) if r.kind == kind):
            for at in range(1, record.stop - record.offset - 64, 29):
                twin = forged(world, kind, flip(at), number)
                with twin.open(catalog=twin.no_catalog()) as store:
                    before = {a.filename: (a.size_bytes, a.hash) for a in store.find()}
                    for name, (size, hash_) in before.items():
                        content = world.ledger.content(str(name))
                        assert (size, hash_) == (len(content), Hash(_native.blake3(content)))
                    assert store.rebuild().damaged
                twin.end()


def test_details_that_cannot_be_read_hide_no_other_artifact() -> None:
    """A document whose sums are right, as somebody who knows the format may make it."""
    with new_world() as world:
        with world.open() as store:
            kept = store.put(b"sound")
            told = ArtifactDocument(bytes(range(16)), 1, kept.hash.digest, 5, 0, 1 << 40, 1 << 40, 1, b"{")
            group = log_core(store).backend.group()
            group.add_one(Kind.ARTIFACT, encode_artifact(told))
            group.commit()
        with world.open(catalog=world.no_catalog()) as store:
            assert [artifact.id for artifact in store.find()] == [kept.id]
            assert store.read(kept) == b"sound"
            assert store.rebuild().damaged


@pytest.mark.parametrize("at", [3, 17, 24, 40, 70])
def test_a_forged_commit_is_told_of(at: int, world: World) -> None:
    """Its id, its time, its count, its digest, its extents."""
    with world.open(world.disk.clone(), catalog=world.copy_catalog()) as store:
        facts = dump_catalog(store)
    twin = forged(world, "commit", flip(at), 1)
    with twin.open(catalog=twin.no_catalog()) as store:
        assert store.rebuild().damaged
        right_or_refused(store, twin)
        times = {line.split()[0]: line for line in dump_catalog(store)}
        assert times.keys() <= {line.split()[0] for line in facts}
    twin.end()


def test_a_forged_index_of_a_sealed_segment_is_not_believed(world: World) -> None:
    """The segment is walked instead, and the index told of; what the forged one says is nowhere."""
    with world.open(world.disk.clone(), catalog=world.copy_catalog()) as store:
        facts = dump_catalog(store)
    for at in (2, 6, 14, 46 + 20):
        twin = forged(world, "footer", flip(at))
        with twin.open(catalog=twin.no_catalog()) as store:
            assert dump_catalog(store) == facts
            assert not right_or_refused(store, twin)
        twin.end()


def test_a_forged_index_of_a_sealed_segment_is_made_anew(world: World) -> None:
    sealed = next(found for found in records(world.disk.files(ROOT)) if found.kind == "footer")
    whole = world.disk.files(ROOT)[sealed.path]
    for at in (6, 46 + 20):
        twin = forged(world, "footer", flip(at))
        with twin.open(twin.disk) as store:
            assert not store.scrub().ok
            assert store.repair().ok
            assert store.scrub().ok
            assert twin.disk.files(ROOT)[sealed.path] == whole
        twin.end()


@pytest.mark.parametrize("clean", [True, False])
def test_a_group_that_does_not_match_its_commit(clean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clean segment that is damage and is told of; in an unclean tail the group never existed."""
    with new_world() as world:
        fill(world, 1, 200)
        stale = world.copy_catalog()
        monkeypatch.setattr(
            commits,
            "Commit",
            lambda id, time, count, _, extents: Commit(id, time, count, bytes(32), extents),
        )
        if clean:
            with world.open() as store:
                store.put(b"lied about", filename="liar")
        else:
            crash_after(world, lambda store: store.put(b"lied about", filename="liar"))
            world.catalog = stale
        monkeypatch.undo()
        with world.open(catalog=world.no_catalog()) as store:
            names = {artifact.filename for artifact in store.find()}
            report = store.rebuild()
            if clean:
                assert report.damaged
            else:
                assert names == {"old-0"}


def compacted(world: World) -> None:
    """Leave a store in which a compaction said what it retired, and since when the blobs are there that it moved."""
    fill(world, 12, 9_000)
    with world.open() as store:
        for number in range(0, 12, 2):
            store.delete(world.ledger.ids[f"old-{number}"])
            world.ledger.forget(f"old-{number}")
        store.gc(min_age_seconds=0)
        store.compact()


def is_there(kind: Kind) -> str:
    """Give the name that `records` has for a kind without one."""
    return f"{int(kind):#x}"


def test_a_forged_word_that_segments_are_retired_takes_none_away() -> None:
    with new_world() as world:
        compacted(world)

        def all_of_them(payload: bytearray) -> None:
            struct.pack_into("<II", payload, 4, 1, 1_000)

        twin = forged(world, is_there(Kind.RETIRED), all_of_them)
        with twin.open(catalog=twin.no_catalog()) as store:
            assert not right_or_refused(store, twin)
            assert store.rebuild().damaged
            assert not right_or_refused(store, twin)


def test_forged_times_of_blobs_are_not_believed() -> None:
    with new_world() as world:
        compacted(world)
        twin = forged(world, is_there(Kind.TIMES), lambda payload: payload.__setitem__(9, payload[9] ^ 0x40))
        with twin.open(catalog=twin.no_catalog()) as store:
            assert not right_or_refused(store, twin)
            assert store.rebuild().damaged


def test_a_catalog_that_leads_to_another_blob_is_not_believed(world: World) -> None:
    """Two blobs change places in the catalog: each reads as itself, or is refused."""
    twin = world.twin()
    with twin.open() as store:
        store.count()
    connection = connect(twin.catalog)  # with its checksums, which then say that all is well
    rows = connection.execute("SELECT hash, location, stored FROM blobs").fetchall()
    assert len(rows) > 1
    for (hash_, _, _), (_, location, stored) in zip(rows, rows[1:] + rows[:1], strict=True):
        connection.execute(
            "UPDATE blobs SET location = ?, stored = ? WHERE hash = ?", (location, stored, hash_)
        )
    connection.close()
    with twin.open() as store:
        assert not right_or_refused(store, twin), "a rebuild puts all right"
    twin.end()


def test_the_description_of_another_blob_tells_no_pieces(world: World) -> None:
    twin = world.twin()
    with twin.open() as store:
        payloads = log_core(store).backend.payloads
        row = log_core(store).blob(store.info(world.ledger.ids["large"]).hash)
        document = payloads.read_document(row.hash, row.location, row.stored)
        assert list(iter_pieces(payloads, row.hash, document))
        with pytest.raises(IntegrityError, match="another blob"):
            list(iter_pieces(payloads, bytes(32), document))
    twin.end()


def test_a_catalog_that_leads_to_another_blob_lets_nothing_be_collected() -> None:
    """The blob that is kept is led to the description of one that goes: its own pieces stay all the same."""
    with new_world() as world:
        with world.open() as store:
            kept, gone = (store.put(random.Random(name).randbytes(30_000)) for name in ("kept", "gone"))
            content = store.read(kept)
            store.delete(gone)
        connection = connect(world.catalog)
        ((location, stored),) = connection.execute(
            "SELECT location, stored FROM blobs WHERE hash = ?", (gone.hash.digest,)
        ).fetchall()
        connection.execute(
            "UPDATE blobs SET location = ?, stored = ? WHERE hash = ?", (location, stored, kept.hash.digest)
        )
        connection.close()
        with world.open() as store:
            with suppress(IntegrityError):
                store.gc(min_age_seconds=0)
            store.compact()
            store.rebuild()
            assert store.read(kept) == content


def test_a_forged_document_is_no_reason_to_let_its_copy_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with new_world() as world:
        with world.open() as store:
            world.ledger.put(store, piece("one", 300))
            first = next(found for found in records(world.disk.files(ROOT)) if found.kind == "artifact")
            document = world.disk.files(ROOT)[first.path][first.offset + 64 : first.stop]
            fillers = [store.put(random.Random(number).randbytes(12_000)) for number in range(12)]
            group = log_core(store).backend.group()
            group.add_one(Kind.ARTIFACT, document)
            group.commit()
            fillers += [store.put(random.Random(number).randbytes(12_000)) for number in range(12, 24)]
            store.delete(*fillers)
            monkeypatch.setattr("holdfast.gc.collector.compact_segments", lambda *_, **__: None)
            assert store.gc(min_age_seconds=0).complete
        twin = forged(world, "artifact", flip(30))
        with twin.open() as store:
            assert store.compact().segments
        with twin.open(catalog=twin.no_catalog()) as store:
            assert not right_or_refused(store, twin)


@pytest.mark.parametrize("part", ["nothing", "payload", "header"])
def test_another_record_of_a_document_is_sound_if_all_of_it_is(part: str, world: World) -> None:
    files = world.disk.files(ROOT)
    record = next(found for found in records(files) if found.kind == "artifact")
    document = files[record.path][record.offset + 64 : record.stop]
    twin = forged(world, "artifact", flip(30)) if part == "payload" else world.twin()
    if part == "header":  # its hash, and its checksum put right
        data = bytearray(files[record.path])
        data[record.offset + 28] ^= 1
        crc = _native.crc32c(data[record.offset : record.offset + 60])
        struct.pack_into("<I", data, record.offset + 60, crc)
        twin.disk.overwrite(record.path, bytes(data))
    segment = int(record.path[-14:-4])
    entry = Entry(Kind.ARTIFACT, 0, 64, len(document), len(document), _native.blake3(document))
    with twin.open() as store:
        core: Any = log_core(store)
        places, payloads = CatalogPlaces(core.catalog), core.backend.payloads
        nowhere: Any = None
        work = Evacuation(
            core.backend.disk, ROOT, b"", payloads, places, nowhere, bool, drops_tombstones=False
        )
        assert work.is_sound(segment << 32 | record.offset, entry) == (part == "nothing")
    twin.end()


def test_a_place_has_the_record_of_one_payload_and_no_other(world: World) -> None:
    """By this a catalog that lies is told from bytes that are damaged."""
    twin = world.twin()
    with twin.open() as store:
        core = log_core(store)
        rows = list(core.catalog.iter_sorted("SELECT hash FROM data ORDER BY hash"))[:2]
        (one, place), (other, _) = (
            (hash_, Place._make(core.catalog.find_data((hash_,))[hash_])) for (hash_,) in rows
        )
        assert core.backend.payloads._is_record_of(one, place)
        assert not core.backend.payloads._is_record_of(other, place)
    twin.end()


def test_a_segment_of_another_store_is_not_taken_in(world: World) -> None:
    """It lies there under an id of its own, sound in every way, and belongs to somebody else."""
    with new_world() as foreign:
        for number in range(30):
            with foreign.open() as store:
                foreign.ledger.put(store, piece(f"foreign-{number}", 12_000))
        theirs = foreign.disk.files(f"{ROOT}/segments")
    ours = world.disk.files(f"{ROOT}/segments")
    twin = world.twin()
    for path, data in theirs.items():
        if path not in ours:
            twin.disk.overwrite(path, data)
    assert len(twin.disk.files(f"{ROOT}/segments")) > len(ours)
    for catalog in (twin.copy_catalog(), twin.no_catalog()):
        with suppress(IntegrityError), twin.open(twin.disk.clone(), catalog=catalog) as again:
            assert not [a for a in again.find() if str(a.filename).startswith("foreign")]
            right_or_refused(again, twin)
    twin.end()
