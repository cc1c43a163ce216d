"""Order and repetition of facts change nothing; a rebuilt catalog equals the one that grew; dictionaries agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.catalog import Catalog
from holdfast.catalog.labels import names_of
from holdfast.catalog.schema import MIGRATIONS
from holdfast.facts import FLAG_BLOB, KIND_DATA, KIND_MANIFEST, ArtifactRow, Facts
from holdfast.types import id_text
from holdfast.wire.document import Details, encode_details

STORE = b"s" * 16

hashes = st.integers(0, 5).map(lambda n: bytes([n]) * 32)
ids = st.integers(0, 3).map(lambda n: bytes([n]) * 16)
small = st.integers(0, 4)
times = st.integers(1, 5)
labels = st.lists(st.sampled_from(["a", "ab", "é", "\0", "", "z" * 2000]), max_size=2, unique=True)
required = st.sampled_from([f"blake3:{bytes([1]).hex() * 32}", id_text(bytes(16)), "nothing", "blake3:00"])
documents = st.binary(max_size=2) | st.builds(
    lambda tags, links, requires: encode_details(Details(tags=tags, links=links, requires=requires)),
    labels.map(tuple),
    labels.map(tuple),
    st.lists(required, max_size=2).map(tuple),
)


def place(number: int) -> int:
    """A place in a segment of its own."""
    return number << 32 | 64


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    """A handful of facts over few keys, so that they meet. What a location holds is one record, always the same."""
    out = Facts()
    for number in draw(st.lists(st.integers(0, 40), max_size=6)):
        hash, blob = bytes([number % 5]) * 32, number % 3 == 0
        kind = KIND_MANIFEST if number % 7 == 0 else KIND_DATA
        plain = None if number % 2 else 77
        out.data.append(
            (hash, place(number), 50, plain, kind | blob * FLAG_BLOB, number % 11 if blob else None)
        )
        if draw(st.integers(0, 7)) == 0:  # damaged, and stored anew with its role and its time
            out.repaired.append((place(number), hash))
            out.data.append((hash, place(number + 100), *out.data[-1][2:]))
    for number in draw(st.lists(st.integers(50, 70), max_size=3)):
        out.blobs.append(
            (bytes([number % 4]) * 32, 9_000 + number % 4, number % 5, place(number), 60, number % 3)
        )
        if draw(st.integers(0, 7)) == 0:
            out.repaired.append((place(number), bytes([number % 4]) * 32))
            blob_row = out.blobs[-1]
            out.blobs.append((*blob_row[:3], place(number + 100), *blob_row[4:]))
    for _ in range(draw(small)):
        out.artifacts.append(
            ArtifactRow(
                draw(ids),
                draw(times),
                draw(hashes),
                draw(small),
                0,
                1,
                draw(times),
                1,
                draw(documents),
                draw(small),
            )
        )
    out.tombstones += draw(st.lists(st.tuples(ids, times, times, small), max_size=3))
    out.tags += draw(
        st.lists(
            st.tuples(st.text(max_size=1), hashes, small, times, times, st.integers(0, 1), small), max_size=3
        )
    )
    out.quarantine += draw(
        st.lists(st.tuples(st.integers(0, 70).map(place), hashes, st.sampled_from("ab")), max_size=2)
    )
    out.uploads += draw(
        st.lists(
            st.tuples(ids, small, st.integers(0, 3), times, st.sampled_from((b"a", b"b")), small), max_size=3
        )
    )
    out.segments.update(draw(st.dictionaries(small, st.tuples(small, st.integers(0, 3)), max_size=2)))
    out.spilled += draw(st.lists(small, max_size=2))
    out.retired += [(n, n + 1) for n in draw(st.lists(small, max_size=1))]
    return out


def tables(catalog: Catalog) -> dict[str, list[Any]]:
    """Every row of every table, locations too, but for the identity."""
    names = [
        "segments",
        "spilled",
        "retired",
        "data",
        "copies",
        "blobs",
        "artifacts",
        "tombstones",
        "tags",
        "quarantine",
        "uploads",
        "repaired",
        "labels",
        "requires",
    ]
    return {name: catalog._read(lambda reader, n=name: reader.all(f"SELECT * FROM {n}")) for name in names}  # type: ignore[misc]


def grown(groups: list[Facts]) -> Catalog:
    catalog = Catalog.open(None, STORE)
    for group in groups:
        catalog.apply(group)
    return catalog


def merged(groups: list[Facts]) -> Facts:
    out = Facts()
    for group in groups:
        out.data += group.data
        out.blobs += group.blobs
        out.artifacts += group.artifacts
        out.tombstones += group.tombstones
        out.tags += group.tags
        out.quarantine += group.quarantine
        out.spilled += group.spilled
        out.retired += group.retired
        out.uploads += group.uploads
        out.repaired += group.repaired
        for id, (applied, state) in group.segments.items():
            known = out.segments.get(id, (0, 0))
            out.segments[id] = max(known[0], applied), max(known[1], state)
    return out


@given(st.lists(facts(), max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_neither_order_nor_repetition_nor_grouping_matters(groups: list[Facts], random: Any) -> None:
    want = grown(groups)
    again = groups + groups[:2]
    random.shuffle(again)
    assert tables(grown(again)) == tables(want)
    everything = merged(groups)
    for rows in (
        everything.data,
        everything.blobs,
        everything.artifacts,
        everything.tombstones,
        everything.tags,
        everything.uploads,
    ):
        random.shuffle(rows)
    assert tables(grown([everything])) == tables(want)
    assert list(grown([everything]).dump()) == list(want.dump())


@given(st.lists(facts(), max_size=5), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_rebuilt_catalog_equals_the_one_that_grew(
    tmp_path_factory: Any, groups: list[Facts], settle_at: int
) -> None:
    path = Path(tmp_path_factory.mktemp("rebuilt")) / "catalog.db"
    aside = Catalog.create_aside(path, STORE)
    for number, group in enumerate(groups[::-1]):
        if number == settle_at:
            aside.settle()
        aside.apply(group)
    want = grown(groups)
    assert tables(aside) == tables(want)
    aside.publish(path)
    published = Catalog.open(path, STORE)
    assert tables(published) == tables(want)
    assert list(published.dump()) == list(want.dump())
    published.check()
    published.close()
    assert apsw.Connection(str(path)).pragma("journal_mode") == "wal"


@given(st.lists(facts(), max_size=5))
@settings(max_examples=150, deadline=None)
def test_queries_agree_with_a_slow_model(groups: list[Facts]) -> None:
    catalog, everything = grown(groups), merged(groups)
    keys = [bytes([n]) * 32 for n in range(7)]
    retired = {segment for first, stop in everything.retired for segment in range(first, stop)}
    bad = {row[0] for row in everything.quarantine if row[0] >> 32 not in retired}
    gone = {row[0] for row in everything.repaired}
    data = {row for row in everything.data if row[1] not in gone}
    large = {row for row in everything.blobs if row[3] not in gone}
    assert [row[0] for row in catalog.quarantined()] == sorted(bad - gone)
    found, blobs = catalog.find_data(keys), catalog.find_blobs(keys)
    for key in keys:
        rows = sorted((row for row in data if row[0] == key), key=lambda row: (row[1] in bad, row[1]))
        records = sorted((row for row in large if row[0] == key), key=lambda row: (row[3] in bad, row[3]))
        role = FLAG_BLOB if any(row[4] & FLAG_BLOB for row in rows) else 0
        if not rows:
            assert key not in found
        else:
            _, location, stored, plain, flags, _ = rows[0]
            assert found[key] == (location, stored, plain or stored, flags | role)
        assert [c[0] for c in catalog.copies(key)] == sorted(
            [r[1] for r in rows[1:]] + [r[3] for r in records[1:]]
        )
        assert catalog.find_blob(key) == blobs.get(key)
        if role:
            assert blobs[key].created_ms == min(row[5] for row in rows if row[5] is not None)
            assert blobs[key].location == rows[0][1]
        elif records:
            assert blobs[key].created_ms == min(row[2] for row in records)
            assert blobs[key].chunks == records[0][5]
        else:
            assert key not in blobs
    assert [blob.hash for blob in catalog.iter_blobs()] == sorted(blobs)
    assert catalog.counts().blobs == len(blobs)
    for number in range(4):
        id = bytes([number]) * 16
        states = [row for row in everything.artifacts if row.id == id]
        dead = max(((row[1], row[2]) for row in everything.tombstones if row[0] == id), default=(0, 0))
        entry = catalog.find_artifact(id)
        if not states:
            assert entry is None
            continue
        assert entry is not None
        assert entry.revision == max(row.revision for row in states)
        assert entry.deleted_ms == (dead[1] if dead[0] > entry.revision else None)
        assert (catalog.find_artifact_blob(id) is None) == (entry.deleted_ms is not None)


def derived(catalog: Catalog) -> tuple[set[tuple[int, str, bytes]], set[tuple[bytes, bytes]], int]:
    """The slow definition of what artifacts are found by, and how many live ones there are."""
    entries = list(catalog.iter_artifacts(deleted=None))
    live = [entry for entry in entries if entry.deleted_ms is None]
    labels = {(kind, name, entry.id) for entry in live for kind, name in names_of(entry.doc).labels}
    requires = {(name, entry.id) for entry in entries for name in names_of(entry.doc).requires}
    return labels, requires, len(live)


@given(st.lists(facts(), max_size=6), st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_names_and_the_count_follow_from_the_artifacts(groups: list[Facts], count_from: int) -> None:
    catalog = Catalog.open(None, STORE)
    for number, group in enumerate(groups):
        if number == count_from:
            catalog.live_artifacts()
        catalog.apply(group)
    labels, requires, live = derived(catalog)
    found = tables(catalog)
    assert found["labels"] == sorted(labels)
    assert found["requires"] == sorted(requires)
    assert catalog.live_artifacts() == live
    assert list(catalog.iter_names(0)) == [
        (name, sum(1 for row in labels if row[:2] == (0, name)))
        for name in sorted({name for kind, name, _ in labels if not kind})
    ]


@given(st.lists(facts(), max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_catalog_without_names_gets_them_when_it_is_migrated(
    tmp_path_factory: Any, groups: list[Facts]
) -> None:
    path = Path(tmp_path_factory.mktemp("migrated")) / "catalog.db"
    for group in groups:
        group.uploads.clear()  # there were none then
        group.repaired.clear()  # nothing was, in those days
    want = grown(groups)
    Catalog.open(path, STORE).close()
    old = Catalog.open(path, STORE)
    old.apply_all(groups)
    old._write(
        lambda cursor: cursor.execute(
            "DROP TABLE labels; DROP TABLE requires; DROP TABLE touched; DROP TABLE uploads;"
            "DROP INDEX deleted_artifacts; ALTER TABLE blobs DROP COLUMN condemned; PRAGMA user_version=1"
        ).fetchall()
    )
    old.close()
    before_places = MIGRATIONS[:4]  # the next one refuses rows that do not say where they lie
    new = Catalog.open(path, STORE, migrations=before_places)
    assert tables(new) == tables(want)
    assert list(new.dump()) == list(want.dump())
    assert new._read(lambda reader: reader.connection.pragma("user_version")) == len(before_places)
    new.close()
