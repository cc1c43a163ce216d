"""What repair takes is held against the hash of what stood there: from the catalog, from here, from a source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast import _native
from holdfast.backend.log.segment import read_index
from holdfast.care.compare import Lack
from holdfast.care.finder import CATALOG, COMPUTED, COPY, HERE, Finder
from holdfast.care.framing import Framing
from holdfast.care.repair import Repair
from holdfast.care.rows import Row
from holdfast.care.wanted import Owner, Wanted
from holdfast.log_core import LogCore
from holdfast.reports import Problem
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.inside import log_core
from holdfast.types import Hash
from holdfast.wire.record import (
    FLAG_SHA256,
    HEADER_BYTES,
    Entry,
    Kind,
    frame_one,
    iter_entries,
)

RIGHT = b"what stood there"
OTHER = b"what stood not there"
HASH = _native.blake3(RIGHT)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store._open(tmp_path / "store", create=True, compression="none") as store:
        store.put(sample(3_000), filename="small")
        store.put(sample(3_000_000), filename="large")
        yield store


def wanted(place: int | None = None, row: Row | None = None, kind: int = Kind.ARTIFACT) -> Wanted:
    return Wanted(place, HASH, kind, 0, 0, row, "damaged")


def entries(core: LogCore) -> list[Entry]:
    """Give the records of the first segment."""
    path = f"{core.backend.root}/segments/0000000001.seg"
    handle = core.backend.disk.open(path, "r")
    try:
        return list(iter_entries(read_index(core.backend.disk, handle, 1, path).entries))
    finally:
        core.backend.disk.close(handle)


@pytest.fixture
def finder(store: Store) -> Any:
    """Give a finder of which a test says what it meets."""
    finder: Any = Finder(log_core(store), [])
    finder._all_documents = dict
    finder._from_copy = lambda _: None
    finder._raw = lambda _: None
    return finder


def test_what_the_catalog_says_counts_if_it_is_that(finder: Any) -> None:
    row = Row("tombstones", 64, (bytes(16), 2, 1_000))
    assert finder.document(wanted(row=row)) is None
    document = row.document
    assert document is not None
    right = wanted(row=row)._replace(hash=_native.blake3(document))
    assert finder.document(right) == (document, CATALOG)


def test_what_lies_there_counts_if_it_is_that_or_but_for_one_bit(finder: Any) -> None:
    finder._raw = lambda _: OTHER
    assert finder.document(wanted()) is None
    finder._raw = lambda _: RIGHT
    assert finder.document(wanted()) == (RIGHT, HERE)
    finder._raw = lambda _: RIGHT[:3] + bytes((RIGHT[3] ^ 8,)) + RIGHT[4:]
    assert finder.document(wanted()) == (RIGHT, COMPUTED)


def test_the_description_of_a_blob_counts_if_it_is_that(finder: Any) -> None:
    row = Row("blobs", 64, (bytes(32), 1, 2, 3))
    for document in (OTHER, RIGHT):
        finder._origins = [SimpleNamespace(name="source", blob_document=lambda _, d=document: d)]
        found = finder.document(wanted(row=row, kind=Kind.BLOB))
        assert found == (None if document is OTHER else (RIGHT, "source"))


def test_a_description_that_is_wanted_counts_if_it_lies_here_and_is_of_that_blob(
    finder: Any, store: Store
) -> None:
    core = log_core(store)
    (large,) = (row for row in core.catalog.iter_blobs() if row.chunks > 1)
    for place in (large.location, large.location + 1):  # or elsewhere: it may have been put once more
        for hash_, found in ((large.hash, True), (bytes(32), False)):
            row = Row("blobs", place, (hash_, large.size, large.stored, large.chunks))
            one = wanted(row=row, kind=Kind.BLOB)._replace(hash=b"")
            assert (finder.document(one) is not None) == found


def test_another_copy_of_the_store_counts_if_it_has_that(store: Store) -> None:
    finder: Any = Finder(log_core(store), [])
    place = 1 << 32 | entries(log_core(store))[0].offset
    for payload in (OTHER, RIGHT):
        finder.copy_of = lambda *_, p=payload: bytes(HEADER_BYTES) + p
        assert finder._from_copy(wanted(place)) == (None if payload is OTHER else (RIGHT, COPY))


def test_of_the_pages_that_are_computed_the_one_counts_that_is_that(store: Store) -> None:
    repair: Any = Repair(log_core(store), [], None)
    finder: Any = repair._finder
    finder.outboard_pages = lambda _: iter((OTHER, RIGHT))
    row = Row("data", 64, (HASH, 1, 1, 0))
    blob = store.info(next(a for a in store.find() if a.filename == "large")).hash.digest
    owner = Owner(blob, 3_000_000, None, Kind.OUTBOARD_PAGE)
    assert finder._from_owner(wanted(row=row), owner) == (RIGHT, COMPUTED)
    taken: list[bytes] = []
    repair._mending.append_payload = lambda _, data, __: taken.append(data)
    problem = Problem(kind="missing_chunk", message="a page is gone")
    repair._supply(Lack(blob, HASH, None, None, Kind.OUTBOARD_PAGE, problem))
    assert taken == [RIGHT]


def test_a_file_counts_if_it_is_the_blob(store: Store) -> None:
    repair: Any = Repair(log_core(store), [], None)
    assert not repair._ingest(HASH, iter((OTHER,)), 0, None, None)
    assert repair._ingest(HASH, iter((RIGHT,)), 0, None, None)
    assert repair._core.catalog.find_data((HASH,))


# -- headers and commits, in place


def framing(core: LogCore, copy: bytes | None = None) -> Framing:
    size = core.backend.segment_sizes()[1]
    return Framing(core.backend, 1, size, lambda *_: copy)


def test_a_header_is_made_for_the_payload_that_it_had(store: Store) -> None:
    work = framing(log_core(store))
    entry = Entry(Kind.DATA, 0, 64, len(RIGHT), len(RIGHT), HASH)
    sha256 = entry._replace(flags=FLAG_SHA256, hash=hashlib.sha256(RIGHT).digest())
    for one in (entry, sha256):
        assert work._is_payload(RIGHT, one)
        assert not work._is_payload(OTHER, one)
    work.close()


@pytest.mark.parametrize("of", ["itself", "a copy"])
def test_a_commit_is_put_back_if_it_is_that(of: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit is wrong, or all of it; what another copy has in its place may be something else."""
    core = log_core(store)
    commit = next(entry for entry in entries(core) if entry.kind == Kind.COMMIT)
    path = f"{core.backend.root}/segments/0000000001.seg"
    at = commit.offset + HEADER_BYTES
    with open(path, "r+b") as file:
        file.seek(at)
        right = file.read(commit.stored_bytes)
        file.seek(at)
        file.write(right[:20] + bytes((right[20] ^ 1,)) + right[21:] if of == "itself" else bytes(len(right)))

    def now() -> bytes:
        with open(path, "rb") as file:
            file.seek(at)
            return file.read(commit.stored_bytes)

    if of == "a copy":
        damaged = now()
        other, _ = frame_one(1, commit.offset, Kind.COMMIT, bytes(16) + right[16:])
        work = framing(core, other)
        assert commit.offset in [offset for offset, _ in work.mend().left]
        work.close()
        assert now() == damaged
    record, _ = frame_one(1, commit.offset, Kind.COMMIT, right)
    work = framing(core, record)
    synced: list[int] = []
    monkeypatch.setattr(core.backend.disk, "fsync", synced.append)
    assert not work.mend().left
    assert synced == [work._handle], "what is put back is durable before anybody relies on it"
    monkeypatch.undo()
    work.close()
    assert now() == right
    assert Hash(_native.blake3(now())).digest == commit.hash
