"""What the catalog of a store in a bucket keeps beside the facts: hints, which a rebuild may find anew or lose.

`seen`: the objects of names that were read, with their e_tags, so that `refresh` reads only what is new. `bad`: objects
that were found damaged, until they are repaired. `hidden_…`: names whose blob was collected before they were
acknowledged; they are in no answer, and come back when the blob does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, cast

import apsw

from holdfast.catalog import labels
from holdfast.catalog.apply import apply_names
from holdfast.catalog.catalog import Catalog
from holdfast.catalog.queries import PAGE_ROWS
from holdfast.facts import ArtifactRow, Facts, TagRow

_HIDDEN: Final = ", ".join(ArtifactRow._fields)
_TAG_COLUMNS: Final = "name, hash, format, revision, modified_ms, deleted, location"
_LACKING: Final = """
SELECT hash FROM (SELECT hash FROM artifacts WHERE deleted_ms IS NULL UNION SELECT hash FROM tags WHERE NOT deleted)
WHERE hash NOT IN (SELECT hash FROM blobs) ORDER BY hash"""
LACKING_COUNT: Final = f"SELECT count(*) FROM ({_LACKING})"
HIDDEN_COUNT: Final = "SELECT (SELECT count(*) FROM hidden_artifacts) + (SELECT count(*) FROM hidden_tags)"
BAD_COUNT: Final = "SELECT count(*) FROM bad"
SIZES: Final = """
SELECT DISTINCT a.hash, a.size, b.size FROM artifacts AS a JOIN blobs AS b USING(hash)
WHERE a.size <> b.size AND a.format = 0"""
"""Blobs whose object has another length than the artifacts that name them say."""


class Bad(NamedTuple):
    """A damaged object. `hash`: the blob's, empty for one that holds names."""

    key: str
    hash: bytes
    reason: str


def iter_seen(catalog: Catalog, prefix: str) -> Iterator[tuple[str, str]]:
    """Give key and e_tag of what was read under a prefix, in the order of keys, in pages."""
    after = prefix
    sql = "SELECT key, e_tag FROM seen WHERE key > ? AND key < ? ORDER BY key LIMIT ?"
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    while True:
        page = cast("list[tuple[str, str]]", catalog.ask(sql, (after, end, PAGE_ROWS)))
        yield from page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1][0]


def is_seen(catalog: Catalog, key: str) -> bool:
    """Whether an object of names was read, in whatever state."""
    return bool(catalog.ask("SELECT EXISTS(SELECT 1 FROM seen WHERE key = ?)", (key,))[0][0])


def forget_seen(catalog: Catalog, keys: Iterable[str]) -> None:
    """Objects of names are gone, and others say what they said."""
    rows = [(key,) for key in keys]
    catalog._write(lambda cursor: cursor.executemany("DELETE FROM seen WHERE key = ?", rows))


def iter_places(catalog: Catalog) -> Iterator[int]:
    """Give the numbers of the objects on which rows of artifacts rest, in order."""
    sql = "SELECT location FROM artifacts UNION SELECT location FROM hidden_artifacts ORDER BY 1"
    return (cast("int", row[0]) for row in catalog.iter_sorted(sql))


def note_bad(catalog: Catalog, found: Iterable[Bad]) -> int:
    """Remember damage; gives how much of it was new."""
    rows = list(found)
    added = 0

    def change(cursor: apsw.Cursor) -> None:
        nonlocal added
        before = cursor.connection.total_changes()
        cursor.executemany("INSERT INTO bad VALUES(?, ?, ?) ON CONFLICT DO NOTHING", rows)
        added = cursor.connection.total_changes() - before

    if rows:
        catalog._write(change)
    return added


def release_bad(catalog: Catalog, keys: Iterable[str]) -> None:
    """Forget damage that was put right."""
    rows = [(key,) for key in keys]
    if rows:
        catalog._write(lambda cursor: cursor.executemany("DELETE FROM bad WHERE key = ?", rows))


def release_blobs(catalog: Catalog, hashes: Iterable[bytes]) -> None:
    """Forget the damage of blobs that were put right."""
    rows = [(hash_,) for hash_ in hashes]
    if rows:
        catalog._write(lambda cursor: cursor.executemany("DELETE FROM bad WHERE hash = ?", rows))


def known_bad(catalog: Catalog) -> list[Bad]:
    """Give the damage that is known, by key."""
    return [Bad._make(row) for row in catalog.ask("SELECT key, hash, reason FROM bad ORDER BY key")]


def bad_among(catalog: Catalog, hashes: Sequence[bytes]) -> set[bytes]:
    """Give those of the blobs of which something is damaged."""
    if not hashes or not catalog.ask("SELECT 1 FROM bad LIMIT 1"):
        return set()
    return {hash_ for (hash_,) in catalog.ask("SELECT hash FROM bad WHERE hash <> x''")} & set(hashes)


def drop_blobs(catalog: Catalog, hashes: Iterable[bytes]) -> None:
    """Forget blobs that are not in the bucket any more; a look there finds one that is, after all."""
    rows = [(hash_,) for hash_ in hashes]
    if rows:
        catalog._write(lambda cursor: cursor.executemany("DELETE FROM blobs WHERE hash = ?", rows))


def set_size(catalog: Catalog, hash_: bytes, size_bytes: int, stored_bytes: int) -> None:
    """Say how long a blob is."""
    sql = "UPDATE blobs SET size = ?, stored = ? WHERE hash = ?"
    catalog._write(lambda cursor: cursor.execute(sql, (size_bytes, stored_bytes, hash_)))


def iter_lacking(catalog: Catalog) -> Iterator[bytes]:
    """Give the hashes that a live artifact or a tag names and that are not among the blobs."""
    return (cast("bytes", row[0]) for row in catalog.iter_sorted(_LACKING))


def hide(catalog: Catalog, hashes: Sequence[bytes]) -> None:
    """Take the names of some blobs out of every answer: they were never acknowledged."""

    def change(cursor: apsw.Cursor) -> None:
        keys = apsw.carray(tuple(hashes))
        among = "hash IN (SELECT value FROM carray(?))"
        ids = [
            cast("bytes", row[0])
            for row in cursor.execute(
                f"SELECT id FROM artifacts WHERE deleted_ms IS NULL AND {among}", (keys,)
            )
        ]
        if ids:
            these = apsw.carray(tuple(ids))
            cursor.execute(
                f"INSERT OR REPLACE INTO hidden_artifacts SELECT {_HIDDEN} FROM artifacts"
                " WHERE id IN (SELECT value FROM carray(?))",
                (these,),
            )
            labels.follow(cursor, labels.find_states(cursor, ids), {})
            cursor.executemany("DELETE FROM artifacts WHERE id = ?", [(id_,) for id_ in ids])
        cursor.execute(
            f"INSERT OR REPLACE INTO hidden_tags SELECT {_TAG_COLUMNS} FROM tags WHERE NOT deleted AND {among}",
            (keys,),
        )
        cursor.execute(f"DELETE FROM tags WHERE NOT deleted AND {among}", (keys,))

    if hashes:
        catalog._write(change)


def is_known(catalog: Catalog, id_: bytes) -> bool:
    """Whether an artifact was ever named, whatever became of it: also one that is hidden."""
    sql = "SELECT 1 FROM artifacts WHERE id = ?1 UNION SELECT 1 FROM hidden_artifacts WHERE id = ?1"
    return bool(catalog.ask(sql, (id_,)))


def show_again(catalog: Catalog) -> int:
    """Bring back the names that are hidden and whose blobs are there by now; gives how many."""
    if catalog.ask(HIDDEN_COUNT) == [(0,)]:
        return 0
    facts = Facts()

    def change(cursor: apsw.Cursor) -> None:
        there = "WHERE hash IN (SELECT hash FROM blobs)"
        facts.artifacts = [
            ArtifactRow._make(row)
            for row in cursor.execute(f"DELETE FROM hidden_artifacts {there} RETURNING {_HIDDEN}").fetchall()
        ]
        facts.tags = cast(
            "list[TagRow]",
            cursor.execute(f"DELETE FROM hidden_tags {there} RETURNING {_TAG_COLUMNS}").fetchall(),
        )
        apply_names(cursor, facts)

    catalog._write(change)
    return len(facts.artifacts) + len(facts.tags)
