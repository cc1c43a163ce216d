"""The catalog: what goes in comes out, whatever the order; several connections, threads, processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import apsw
import pytest

from holdfast.catalog import ArtifactBlob, BlobRow, Catalog, CatalogUnusable
from holdfast.catalog import base as catalog_base
from holdfast.catalog.queries import BATCH_KEYS, PAGE_ROWS
from holdfast.catalog.schema import MIGRATIONS
from holdfast.errors import NeedsReopen
from holdfast.facts import (
    FLAG_BLOB,
    FLAG_CONDEMNED,
    FLAG_UNNAMED,
    FLAG_ZSTD,
    KIND_BLOB,
    KIND_DATA,
    KIND_OUTBOARD,
    ArtifactRow,
    DataRow,
    Facts,
)

STORE = b"s" * 16
BLOB = KIND_DATA | FLAG_BLOB


@pytest.fixture(params=["file", "memory", "aside"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    path = tmp_path / "catalog.db"
    if request.param == "aside":
        made: Catalog = Catalog.create_aside(path, STORE)
    else:
        made = Catalog.open(path if request.param == "file" else None, STORE)
    yield made
    made.close()


def key(number: int, size: int = 32) -> bytes:
    return Random(number).randbytes(size)


def data(
    number: int, location: int, *, plain: int | None = None, flags: int = KIND_DATA, ms: int | None = None
) -> DataRow:
    return (key(number), location, 100 + number, plain, flags, ms)


def artifact(number: int, revision: int = 1, *, hash: bytes | None = None, doc: bytes = b"{}") -> ArtifactRow:
    return ArtifactRow(
        number.to_bytes(16), revision, hash or key(number), 100 + number, 0, 5, 5 + revision, 1, doc
    )


def test_a_new_catalog_knows_itself_and_nothing_else(catalog: Catalog) -> None:
    assert len(catalog.id) == 16
    assert catalog.epoch == 1
    assert catalog.is_current()
    assert list(catalog.dump()) == []
    assert catalog.counts().artifacts == 0
    assert catalog.segments() == {}


def test_payloads_are_found_in_batches(catalog: Catalog) -> None:
    rows = [data(n, n << 32) for n in range(BATCH_KEYS + 2)]
    catalog.apply(Facts(data=rows))
    found = catalog.find_data([row[0] for row in rows] + [key(-1), rows[0][0]])
    assert found == {row[0]: (row[1], row[2], row[2], KIND_DATA) for row in rows}
    assert catalog.find_data([]) == {}


def test_the_lowest_location_is_the_one_and_the_others_are_copies(catalog: Catalog) -> None:
    for location in (20, 30, 10, 20):
        catalog.apply(Facts(data=[(key(1), location, location, 200, KIND_DATA | FLAG_ZSTD, None)]))
    assert catalog.find_data([key(1)]) == {key(1): (10, 10, 200, KIND_DATA | FLAG_ZSTD)}
    assert catalog.copies(key(1)) == [
        (20, 20, 200, KIND_DATA | FLAG_ZSTD),
        (30, 30, 200, KIND_DATA | FLAG_ZSTD),
    ]


def test_the_role_of_any_copy_is_the_role_of_the_payload(catalog: Catalog) -> None:
    catalog.apply(Facts(data=[data(1, 10)]))
    assert catalog.find_blob(key(1)) is None
    catalog.apply(Facts(data=[data(1, 30, flags=BLOB, ms=70)]))
    catalog.apply(Facts(data=[data(1, 20, flags=BLOB, ms=60)]))
    assert catalog.find_blob(key(1)) == BlobRow(key(1), 101, 60, 10, 101, 101, BLOB, 1)


def test_a_large_blob_is_found_by_its_record(catalog: Catalog) -> None:
    catalog.apply(Facts(blobs=[(key(1), 50_000, 7, 20, 300, 3), (key(1), 50_000, 6, 30, 300, 3)]))
    want = BlobRow(key(1), 50_000, 6, 20, 300, 300, KIND_BLOB, 3)
    assert catalog.find_blob(key(1)) == want
    assert catalog.find_blobs([key(1), key(2)]) == {key(1): want}
    assert catalog.copies(key(1)) == [(30, 300, 300, KIND_BLOB)]
    catalog.apply(Facts(blobs=[(key(1), 50_000, 9, 10, 200, 2)]))
    assert catalog.find_blob(key(1)) == BlobRow(key(1), 50_000, 6, 10, 200, 200, KIND_BLOB, 2)


def test_a_blob_that_is_one_record_hides_the_record_that_describes_it(catalog: Catalog) -> None:
    catalog.apply(Facts(data=[data(1, 10, flags=BLOB, ms=5)], blobs=[(key(1), 101, 5, 20, 300, 1)]))
    found = catalog.find_blob(key(1))
    assert found is not None
    assert found.location == 10
    assert [blob.location for blob in catalog.iter_blobs()] == [10]
    assert catalog.counts().blobs == 1


def test_an_artifact_leads_to_its_small_blob_in_one_query(catalog: Catalog) -> None:
    catalog.apply(
        Facts(
            data=[data(1, 10, plain=400, flags=BLOB | FLAG_ZSTD, ms=5), data(2, 20)],
            blobs=[(key(2), 50_000, 7, 20, 300, 3)],
            artifacts=[artifact(1), artifact(2), artifact(3)],
            tombstones=[((3).to_bytes(16), 2, 99, 0)],
        )
    )
    find = catalog.find_artifact_blob
    assert find((1).to_bytes(16)) == ArtifactBlob(key(1), 101, 10, 101, 400, BLOB | FLAG_ZSTD)
    assert find((2).to_bytes(16)) == ArtifactBlob(key(2), 102, None, 0, 0, 0)
    assert find((3).to_bytes(16)) is None
    assert find((4).to_bytes(16)) is None


def test_a_tombstone_hides_lower_revisions_whichever_comes_first(catalog: Catalog) -> None:
    id = (1).to_bytes(16)
    catalog.apply(Facts(tombstones=[(id, 2, 99, 0)]))
    assert catalog.find_artifact(id) is None
    catalog.apply(Facts(artifacts=[artifact(1)]))
    deleted = catalog.find_artifact(id)
    assert deleted is not None
    assert deleted.deleted_ms == 99
    catalog.apply(Facts(artifacts=[artifact(1, 3)]))
    restored = catalog.find_artifact(id)
    assert restored == (*artifact(1, 3)[:-1], None)
    catalog.apply(Facts(tombstones=[(id, 4, 100, 0)], artifacts=[artifact(1, 2)]))
    again = catalog.find_artifact(id)
    assert again == (*artifact(1, 3)[:-1], 100)


def test_tags_and_segments_only_move_forward(catalog: Catalog) -> None:
    catalog.apply(
        Facts(tags=[("b", key(1), 0, 2, 7, 0, 0), ("a", key(1), 1, 1, 7, 1, 0)], segments={1: (500, 1)})
    )
    catalog.apply(Facts(tags=[("b", key(2), 0, 1, 9, 0, 0)], segments={1: (400, 0), 2: (10, 0)}))
    assert catalog.find_tag("b") == ("b", key(1), 0, 2, 7, 0)
    assert catalog.find_tag("c") is None
    assert [tag.name for tag in catalog.iter_tags()] == ["a", "b"]
    assert catalog.segments() == {1: (500, 1), 2: (10, 0)}


def test_artifacts_come_newest_first_in_pages(catalog: Catalog) -> None:
    count = PAGE_ROWS * 2 + 1
    dead = [(n.to_bytes(16), 2, 9, 0) for n in range(0, count, 10)]
    catalog.apply(Facts(artifacts=[artifact(n) for n in range(count)], tombstones=dead))
    every = [int.from_bytes(row.id) for row in catalog.iter_artifacts(deleted=None)]
    assert every == list(range(count))[::-1]
    live = [int.from_bytes(row.id) for row in catalog.iter_artifacts()]
    assert live == [n for n in every if n % 10]
    assert [int.from_bytes(row.id) for row in catalog.iter_artifacts(deleted=True)] == [
        n for n in every if not n % 10
    ]
    assert [int.from_bytes(r.id) for r in catalog.iter_artifacts(after=(15).to_bytes(16), limit=5)] == [
        14,
        13,
        12,
        11,
        9,
    ]
    assert len(list(catalog.iter_artifacts(limit=PAGE_ROWS + 1))) == PAGE_ROWS + 1
    assert list(catalog.iter_artifacts(limit=0)) == []


def test_no_transaction_is_open_between_pages(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.db", STORE)
    catalog.apply(Facts(artifacts=[artifact(n) for n in range(PAGE_ROWS + 1)]))
    rows = catalog.iter_artifacts()
    next(rows)
    catalog.checkpoint()
    assert (tmp_path / "catalog.db-wal").stat().st_size == 0, "a reader would have kept the log"
    assert len(list(rows)) == PAGE_ROWS
    catalog.close()


def test_prefixes_find_ids_and_blobs(catalog: Catalog) -> None:
    hashes = sorted([b"\xab" + key(n, 31) for n in range(5)] + [b"\xac" * 32, b"\x01" * 32])
    catalog.apply(
        Facts(
            data=[(h, n, 1, None, BLOB, 1) for n, h in enumerate(hashes)],
            artifacts=[artifact(n) for n in range(9)],
        )
    )
    low, high = b"\xab" + bytes(31), b"\xab" + b"\xff" * 31
    assert [b.hash for b in catalog.blobs_with_prefix(low, high, None, 10)] == hashes[1:6]
    assert [b.hash for b in catalog.blobs_with_prefix(low, high, hashes[2], 2)] == hashes[3:5]


def test_counts_are_those_of_the_rows(catalog: Catalog) -> None:
    catalog.apply(
        Facts(
            data=[
                data(1, 10, plain=400, flags=BLOB, ms=1),
                data(2, 20),
                (key(2), 25, 102, None, KIND_DATA, None),
                data(3, 30, flags=KIND_OUTBOARD),
            ],
            blobs=[(key(5), 5_000, 1, 40, 77, 2)],
            artifacts=[artifact(1), artifact(2), artifact(3)],
            tombstones=[((3).to_bytes(16), 2, 9, 0)],
            tags=[("a", key(1), 0, 1, 1, 0, 0), ("b", key(1), 0, 1, 1, 1, 0)],
            quarantine=[(30, key(3), "bad checksum")],
            segments={1: (1, 0)},
        )
    )
    counts = catalog.counts()
    assert (counts.artifacts, counts.deleted_artifacts, counts.blobs, counts.chunks, counts.tags) == (
        2,
        1,
        2,
        2,
        1,
    )
    assert (counts.logical_bytes, counts.unique_bytes, counts.stored_bytes) == (
        101 + 102,
        400 + 102,
        101 + 102,
    )
    assert (counts.tree_bytes, counts.copy_bytes, counts.segments, counts.quarantined) == (103, 102, 1, 1)
    assert counts.catalog_bytes % 4096 == 0


def places_of(catalog: Catalog) -> list[tuple[object, ...]]:
    sql = "SELECT hash, location FROM data UNION ALL SELECT hash, location FROM blobs"
    return catalog._read(lambda reader: reader.all(sql))


def test_many_batches_are_taken_as_they_come(catalog: Catalog) -> None:
    held: list[Facts] = []

    def batches() -> Iterator[Facts]:
        for n in range(5):
            held.append(
                Facts(data=[data(n, 50 - n), data(7, 50 - n)], blobs=[(key(20), 9000, 1, 90 - n, 5, 2)])
            )
            yield held[-1]

    catalog.apply(Facts(data=[data(7, 48)]))
    catalog.apply_all(batches())
    places = sorted([(row[0], row[1]) for facts in held for row in facts.data[:1]] + [(key(7), 46)])
    assert places_of(catalog) == [*places, (key(20), 86)]
    assert [copy[0] for copy in catalog.copies(key(7))] == [47, 48, 49, 50]


def test_batches_that_break_off_leave_nothing(tmp_path: Path) -> None:
    def batches() -> Iterator[Facts]:
        yield Facts(data=[data(1, 1)])
        raise KeyboardInterrupt

    catalog = Catalog.open(tmp_path / "catalog.db", STORE)
    with pytest.raises(KeyboardInterrupt):
        catalog.apply_all(batches())
    assert places_of(catalog) == []
    catalog.apply(Facts(data=[data(1, 1)]))
    catalog.close()


def test_hints_are_kept_and_forgotten_and_no_fact(catalog: Catalog) -> None:
    catalog.set_meta("hint.scrub", 17)
    catalog.set_meta("hint.scrub", b"\x01")
    assert catalog.get_meta("hint.scrub") == b"\x01"
    assert list(catalog.dump()) == []
    catalog.set_meta("hint.scrub", None)
    assert catalog.get_meta("hint.scrub") is None


@pytest.mark.parametrize("where", ["file", "memory"])
def test_an_apply_is_wholly_done_or_not_at_all(where: str, tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.db" if where == "file" else None, STORE)
    bad = Facts(data=[data(1, 10)], tags=[("a", None, 0, 1, 1, 0, 0)])  # type: ignore[list-item]
    with pytest.raises(apsw.ConstraintError):
        catalog.apply(bad)
    assert catalog.find_data([key(1)]) == {}
    catalog.apply(Facts(data=[data(1, 10)]))
    assert len(catalog.find_data([key(1)])) == 1
    catalog.close()


def test_an_aside_catalog_that_failed_is_never_published(tmp_path: Path) -> None:
    aside = Catalog.create_aside(tmp_path / "catalog.db", STORE)
    with pytest.raises(apsw.ConstraintError):
        aside.apply(Facts(tags=[("a", None, 0, 1, 1, 0, 0)]))  # type: ignore[list-item]
    with pytest.raises(CatalogUnusable):
        aside.publish(tmp_path / "catalog.db")
    aside.discard()
    assert list(tmp_path.iterdir()) == []


def test_two_catalogs_of_one_file_see_each_other(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    one, two = Catalog.open(path, STORE), Catalog.open(path, STORE)
    assert one.id == two.id
    for n in range(20):
        (one, two)[n % 2].apply(Facts(data=[data(n, n)]))
        assert len((two, one)[n % 2].find_data([key(n)])) == 1
    one.close()
    assert len(two.find_data([key(n) for n in range(20)])) == 20
    two.close()
    assert [item.name for item in tmp_path.iterdir()] == ["catalog.db"]


@pytest.mark.parametrize("where", ["file", "memory"])
def test_many_threads_read_and_write_at_once(where: str, tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.db" if where == "file" else None, STORE)
    problems: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for n in range(thread * 1000, thread * 1000 + 40):
                catalog.apply(Facts(data=[data(n, n, flags=BLOB, ms=1)], artifacts=[artifact(n)]))
                assert catalog.find_artifact_blob(n.to_bytes(16)) is not None
                assert list(catalog.iter_artifacts(limit=3))
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert catalog.counts().artifacts == 12 * 40
    catalog.close()


def test_the_log_stays_bounded_under_steady_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.catalog.catalog.CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(catalog_base, "RESET_PAGES", 200)
    catalog = Catalog.open(tmp_path / "catalog.db", STORE)
    for n in range(1000):
        catalog.apply(Facts(data=[data(n, n)]))
        next(catalog.iter_blobs(), None)
    assert (tmp_path / "catalog.db-wal").stat().st_size < 100 * 4200
    catalog.close()


def test_after_close_every_call_says_to_open_anew(catalog: Catalog) -> None:
    catalog.close()
    catalog.close()
    for call in (
        lambda: catalog.find_data([key(1)]),
        lambda: catalog.find_artifact_blob(key(1)),
        lambda: catalog.apply(Facts(data=[data(1, 1)])),
        lambda: list(catalog.dump()),
        lambda: catalog.epoch,
    ):
        with pytest.raises(NeedsReopen):
            call()


def test_files_are_private(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        catalog = Catalog.open(tmp_path / "catalog.db", STORE)
        catalog.apply(Facts(data=[data(1, 1)]))
        modes = {item.name: item.stat().st_mode & 0o777 for item in tmp_path.iterdir()}
    finally:
        os.umask(previous)
    assert modes == {"catalog.db": 0o600, "catalog.db-wal": 0o600, "catalog.db-shm": 0o600}
    catalog.close()


@pytest.mark.parametrize("name", ["a b", "q?mark", "100%25", "häsh#1", "semi;colon"])
def test_any_directory_name_will_do(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    Catalog.open(tmp_path / name / "catalog.db", STORE).close()
    assert [item.name for item in (tmp_path / name).iterdir()] == ["catalog.db"]
    aside = Catalog.create_aside(tmp_path / name / "catalog.db", STORE)
    aside.apply(Facts(data=[data(1, 1)]))
    aside.publish(tmp_path / name / "catalog.db")
    assert [item.name for item in (tmp_path / name).iterdir()] == ["catalog.db"]


def test_a_catalog_with_a_table_that_nobody_writes_loses_it(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    tables = "SELECT count(*) FROM sqlite_master WHERE name = 'holds'"
    for migrations, count in ((MIGRATIONS[:6], 1), (MIGRATIONS, 0)):
        catalog = Catalog.open(path, STORE, migrations=migrations)
        assert catalog._read(lambda reader: reader.all(tables)) == [(count,)]
        catalog.close()


def test_a_catalog_with_other_numbers_for_objects_is_rebuilt(tmp_path: Path) -> None:
    """One of a store in a bucket: one of the log has none, and goes on."""
    path = tmp_path / "catalog.db"
    Catalog.open(path, STORE, migrations=MIGRATIONS[:8]).close()
    Catalog.open(path, STORE).close()
    path.unlink()
    older = Catalog.open(path, STORE, migrations=MIGRATIONS[:8])
    older.apply(Facts(seen=[("commits/x", "e")]))
    older.close()
    with pytest.raises(CatalogUnusable, match="by which of two objects"):
        Catalog.open(path, STORE)


def test_who_brings_condemned_bytes_again_makes_them_live() -> None:
    """A payload and its blob role are condemned apart: bytes that come as a chunk do not bring the role back."""
    catalog = Catalog.open(None, STORE)
    hash_ = b"c" * 32
    place, both = 1 << 32, FLAG_CONDEMNED | FLAG_UNNAMED
    catalog.apply(Facts(data=[(hash_, place + 64, 5, None, KIND_DATA | FLAG_BLOB, 1)]))
    catalog.apply(Facts(blobs=[(hash_, 99, 1, place + 200, 40, 3)]))

    def condemn() -> None:
        catalog._write(lambda cursor: cursor.execute(f"UPDATE data SET flags = flags | {both}"))
        catalog._write(lambda cursor: cursor.execute("UPDATE blobs SET condemned = 1"))

    def flags() -> int:
        return catalog.find_data([hash_])[hash_][3] & both

    for later in (place + 4096, place + 32):  # above the old place, and below it
        condemn()
        catalog.apply(Facts(data=[(hash_, later, 5, None, KIND_DATA, None)]))
        assert flags() == FLAG_UNNAMED
        condemn()
        catalog.apply(Facts(data=[(hash_, later + 8, 5, None, KIND_DATA | FLAG_BLOB, 1)]))
        assert flags() == 0
    catalog.apply(Facts(blobs=[(hash_, 99, 1, place + 9000, 40, 3)]))
    assert catalog._read(lambda reader: reader.all("SELECT condemned FROM blobs")) == [(0,)]
    copies = catalog.copies(hash_)
    assert copies
    assert not any(copy[3] & both for copy in copies)
