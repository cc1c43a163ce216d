"""What a collection asks of the catalog, and what it does there: each change is one short transaction.

How far a cycle has come stands in the catalog too (`Cycle`, in `meta`), written in the transaction that goes with
it: whichever process collects next goes on from there, and with a catalog that is lost the cycle is lost as well.
`meta.collecting` is 1 while there are condemned rows: then `claim` keeps the books.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple, cast

import apsw
import msgspec

from holdfast.catalog import labels
from holdfast.catalog.catalog import Catalog
from holdfast.catalog.queries import PAGE_ROWS, Reader
from holdfast.catalog.unusable import MET, translate
from holdfast.facts import FLAG_BLOB, FLAG_CONDEMNED, FLAG_UNNAMED, KIND_BLOB, KIND_MASK
from holdfast.types import HASH_BYTES

CYCLE: Final = "cycle"
COLLECTED: Final = "collected_ms"
"""In `meta`: when the last whole collection ended."""
MARKED: Final = FLAG_CONDEMNED | FLAG_UNNAMED

Touch = tuple[bytes, int]
"""A blob that somebody relies on, and whether it is to be followed as a hash seq (1)."""


class Cycle(msgspec.Struct, frozen=True):
    """How far a collection has come. `done`: the rows of the phase's table up to this hash are through."""

    phase: Literal["condemn blobs", "condemn data", "wait", "drop blobs", "drop data"]
    epoch: int = 0
    done: bytes = b""
    started_ms: int = 0


class Dropped(NamedTuple):
    """What one transaction took away."""

    hashes: list[bytes]
    freed_bytes: int


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Cycle).decode


# -- how far a cycle is


def read_cycle(catalog: Catalog) -> Cycle | None:
    """Give the cycle that is under way, if one is."""
    text = catalog.get_meta(CYCLE)
    return None if text is None else _decode(text)


def write_cycle(catalog: Catalog, cycle: Cycle) -> None:
    """Note how far the cycle is."""
    catalog._write(lambda cursor: _note(cursor, cycle))


def _note(cursor: apsw.Cursor, cycle: Cycle) -> None:
    _set(cursor, CYCLE, _encode(cycle).decode())


def _set(cursor: apsw.Cursor, key: str, value: int | str) -> None:
    cursor.execute(
        "INSERT INTO meta VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value", (key, value)
    )


def advance_epoch(catalog: Catalog, cycle: Cycle) -> Cycle:
    """End the condemning: what pins from here on misses what was condemned, what pinned before is waited for."""

    def change(cursor: apsw.Cursor) -> None:
        nonlocal cycle
        cursor.execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'")
        ((epoch,),) = cursor.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchall()
        cycle = msgspec.structs.replace(cycle, phase="wait", epoch=cast("int", epoch), done=b"")
        _note(cursor, cycle)

    catalog._write(change)
    return cycle


def go_back(catalog: Catalog) -> None:
    """Let a cycle that drops already wait and mark once more: names come to light that its mark did not know of.

    To be done before they are applied: who finds them applied must find this as well.
    """
    cycle = read_cycle(catalog)
    if cycle is not None and cycle.phase in ("drop blobs", "drop data"):
        advance_epoch(catalog, cycle)


def end_cycle(catalog: Catalog, time_ms: int) -> None:
    """Nothing is condemned any more."""

    def change(cursor: apsw.Cursor) -> None:
        cursor.execute("DELETE FROM touched")
        cursor.execute("DELETE FROM meta WHERE key = ?", (CYCLE,))
        _set(cursor, "collecting", 0)
        _set(cursor, COLLECTED, time_ms)

    catalog._write(change)


# -- roots


_EXPIRED: Final = "deleted_ms IS NOT NULL AND deleted_ms <= ?1"
FOREVER_MS: Final = 1 << 62


def forget_expired(catalog: Catalog, until_ms: int, limit: int) -> list[tuple[bytes, bytes]]:
    """Forget up to `limit` artifacts that were deleted until then; gives id and hash of each. Tombstones stay."""
    if not _page(catalog, f"SELECT 1 FROM artifacts WHERE {_EXPIRED} LIMIT 1", until_ms):
        return []
    forgotten: list[tuple[bytes, bytes]] = []

    def change(cursor: apsw.Cursor) -> None:
        rows = cursor.execute(f"SELECT id, hash FROM artifacts WHERE {_EXPIRED} LIMIT ?2", (until_ms, limit))
        forgotten.extend(cast("list[tuple[bytes, bytes]]", rows.fetchall()))
        _forget(cursor, [id_ for id_, _ in forgotten])

    catalog._write(change)
    return forgotten


def forget(catalog: Catalog, ids: Sequence[bytes]) -> None:
    """Forget deleted artifacts."""
    catalog._write(lambda cursor: _forget(cursor, ids))


def _forget(cursor: apsw.Cursor, ids: Sequence[bytes]) -> None:
    if ids:
        labels.follow(cursor, labels.find_states(cursor, ids), {})
        cursor.executemany("DELETE FROM artifacts WHERE id = ?", [(id_,) for id_ in ids])


def iter_expired(catalog: Catalog, until_ms: int) -> Iterator[tuple[bytes, bytes, int]]:
    """Give id, hash and time of deletion of each artifact that would be forgotten."""
    after = b""
    sql = f"SELECT id, hash, deleted_ms FROM artifacts WHERE {_EXPIRED} AND id > ?2 ORDER BY id LIMIT ?3"
    while True:
        page = _page(catalog, sql, until_ms, after, PAGE_ROWS)
        yield from cast("list[tuple[bytes, bytes, int]]", page)
        if len(page) < PAGE_ROWS:
            return
        after = page[-1][0]


def _names(reader: Reader, until_ms: int) -> Iterator[tuple[bytes, int, bytes]]:
    live = "(deleted_ms IS NULL OR deleted_ms > ?1)"
    for sql in (
        f"SELECT hash, format, id FROM artifacts WHERE {live}",
        f"""SELECT name, 0, id FROM requires WHERE length(name) = 32
        AND EXISTS(SELECT 1 FROM artifacts WHERE artifacts.id = requires.id AND {live})""",
        "SELECT hash, format, x'' FROM tags WHERE NOT deleted AND ?1 = ?1",
    ):
        yield from cast(
            "Iterator[tuple[bytes, int, bytes]]", reader.connection.cursor().execute(sql, (until_ms,))
        )


def iter_names(
    catalog: Catalog, until_ms: int = -1, without: Collection[bytes] = ()
) -> Iterator[tuple[bytes, int]]:
    """Give (hash, format) of whatever a name keeps, all from one view, so that no rename falls between two looks.

    Artifacts that can be restored count; with `until_ms` not those that were deleted until then. `without`: ids
    that do not count either.
    """
    for hash_, format_, id_ in _in_one_view(catalog, lambda reader: _names(reader, until_ms)):
        if id_ not in without:
            yield hash_, format_


def _in_one_view(catalog: Catalog, rows: Callable[[Reader], Iterator[Any]]) -> Iterator[Any]:
    try:
        reader = catalog._pool.take()
        try:
            reader.all("BEGIN")
            try:
                yield from rows(reader)
            finally:
                reader.end_view()
        finally:
            catalog._pool.give(reader)
    except MET as error:
        raise translate(error, catalog.path) from error


# -- rows by hash


def blob_page(catalog: Catalog, after: bytes, below: bytes, limit: int) -> list[tuple[bytes, int, int, int]]:
    """Give hash, location, stored bytes and whether it is condemned of large blobs, in the order of their hashes."""
    sql = "SELECT hash, location, stored, condemned FROM blobs WHERE hash > ? AND hash < ? ORDER BY hash LIMIT ?"
    return cast("list[tuple[bytes, int, int, int]]", _page(catalog, sql, after, below, limit))


def data_page(catalog: Catalog, after: bytes, below: bytes, limit: int) -> list[tuple[bytes, int, int]]:
    """Give hash, flags and stored bytes of payloads, in the order of their hashes."""
    sql = "SELECT hash, flags, stored FROM data WHERE hash > ? AND hash < ? ORDER BY hash LIMIT ?"
    return cast("list[tuple[bytes, int, int]]", _page(catalog, sql, after, below, limit))


def condemned_page(catalog: Catalog, table: str, after: bytes, limit: int) -> list[tuple[bytes, int]]:
    """Give hash and flags of rows of `blobs` or `data` that are condemned, in the order of their hashes.

    `blobs` gives payloads with a blob role that is condemned as well.
    """
    if table == "blobs":
        large = "SELECT hash, 0 FROM blobs WHERE hash > ?1 AND condemned AND ?2 = ?2"
        small = f"SELECT hash, flags FROM data WHERE hash > ?1 AND flags & {FLAG_UNNAMED}"
        sql = f"SELECT * FROM ({large} UNION ALL {small}) WHERE hash < ?2 ORDER BY hash LIMIT ?3"
    else:
        sql = f"SELECT hash, flags FROM data WHERE hash > ?1 AND hash < ?2 AND flags & {MARKED} ORDER BY hash LIMIT ?3"
    return cast("list[tuple[bytes, int]]", _page(catalog, sql, after, b"\xff" * 33, limit))


def _page(catalog: Catalog, sql: str, *values: object) -> list[tuple[Any, ...]]:
    return catalog._read(lambda reader: reader.all(sql, values))


# -- condemning, pardoning, dropping


def condemn(
    catalog: Catalog, blobs: Iterable[bytes], data: Iterable[tuple[int, bytes]], cycle: Cycle
) -> None:
    """Mark blobs, and payloads with the given flags: deduplication misses them from here on, readers do not."""

    def change(cursor: apsw.Cursor) -> None:
        _set(cursor, "collecting", 1)
        cursor.executemany("UPDATE blobs SET condemned = 1 WHERE hash = ?", [(hash_,) for hash_ in blobs])
        cursor.executemany("UPDATE data SET flags = flags | ? WHERE hash = ?", data)
        _note(cursor, cycle)

    catalog._write(change)


def pardon(catalog: Catalog, blobs: Iterable[bytes], data: Iterable[tuple[int, bytes]]) -> None:
    """Take the marks off again: of blobs, and the given flags of payloads."""

    def change(cursor: apsw.Cursor) -> None:
        cursor.executemany(
            "UPDATE blobs SET condemned = 0 WHERE hash = ? AND condemned", [(hash_,) for hash_ in blobs]
        )
        cursor.executemany("UPDATE data SET flags = flags & ~?1 WHERE hash = ?2 AND flags & ?1", data)

    catalog._write(change)


_KEYS: Final = "carray(?1) AS keys CROSS JOIN"
_LARGE_DOOMED: Final = f"SELECT hash, stored FROM {_KEYS} blobs ON hash = keys.value WHERE condemned"
_SMALL_DOOMED: Final = f"SELECT hash, 0 FROM {_KEYS} data ON hash = keys.value WHERE flags & {FLAG_UNNAMED}"
_DATA_DOOMED: Final = (
    f"SELECT hash, stored FROM {_KEYS} data ON hash = keys.value WHERE flags & {FLAG_CONDEMNED}"
)
_COPIES_BYTES: Final = (
    f"SELECT ifnull(sum(stored), 0) FROM {_KEYS} copies ON hash = keys.value WHERE flags & {KIND_MASK}"
)
_OF_BLOBS: Final = f"= {KIND_BLOB}"
_OF_DATA: Final = f"<> {KIND_BLOB}"


def drop_blobs(catalog: Catalog, hashes: Sequence[bytes], cycle: Cycle) -> Dropped | None:
    """Drop those of the blobs that are still condemned; None, and nothing is done, while somebody's touch stands."""

    def change(cursor: apsw.Cursor) -> Dropped:
        keys = apsw.carray(tuple(hashes))
        small = cursor.execute(_SMALL_DOOMED, (keys,)).fetchall()
        large = cursor.execute(_LARGE_DOOMED, (keys,)).fetchall()
        cursor.executemany(
            f"UPDATE data SET flags = flags & ~{FLAG_BLOB | FLAG_UNNAMED}, created_ms = NULL WHERE hash = ?",
            [(hash_,) for hash_, _ in small],
        )
        freed = _drop(cursor, "blobs", large, _OF_BLOBS)
        found = dict.fromkeys([cast("bytes", hash_) for hash_, _ in (*small, *large)])
        return Dropped(list(found), freed)

    return _drop_untouched(catalog, change, cycle)


def drop_data(catalog: Catalog, hashes: Sequence[bytes], cycle: Cycle) -> Dropped | None:
    """Drop those of the payloads that are still condemned; None, and nothing is done, while a touch stands."""

    def change(cursor: apsw.Cursor) -> Dropped:
        doomed = cursor.execute(_DATA_DOOMED, (apsw.carray(tuple(hashes)),)).fetchall()
        freed = _drop(cursor, "data", doomed, _OF_DATA)
        return Dropped([cast("bytes", hash_) for hash_, _ in doomed], freed)

    return _drop_untouched(catalog, change, cycle)


def _drop_untouched(catalog: Catalog, drop: Callable[[apsw.Cursor], Dropped], cycle: Cycle) -> Dropped | None:
    dropped: Dropped | None = None

    def change(cursor: apsw.Cursor) -> None:
        nonlocal dropped
        if not cursor.execute("SELECT 1 FROM touched LIMIT 1").fetchall():
            dropped = drop(cursor)
            _note(cursor, cycle)

    catalog._write(change)
    return dropped


def _drop(cursor: apsw.Cursor, table: str, rows: Sequence[Any], copies_of: str) -> int:
    """Delete rows and their further copies; gives the stored bytes of all."""
    if not rows:
        return 0
    keys = [(hash_,) for hash_, _ in rows]
    packed = apsw.carray(tuple(hash_ for hash_, _ in rows))
    ((copies,),) = cursor.execute(f"{_COPIES_BYTES} {copies_of}", (packed,)).fetchall()
    if copies:
        cursor.executemany(f"DELETE FROM copies WHERE hash = ? AND flags & {KIND_MASK} {copies_of}", keys)
    cursor.executemany(f"DELETE FROM {table} WHERE hash = ?", keys)
    return sum(cast("int", stored) for _, stored in rows) + cast("int", copies)


# -- touches


def touched(catalog: Catalog) -> list[Touch]:
    """Give the blobs that somebody came to rely on while the collection ran."""
    return cast("list[Touch]", catalog._read(lambda reader: reader.all("SELECT hash, format FROM touched")))


def untouch(catalog: Catalog, touches: Sequence[Touch]) -> None:
    """What these touches need has been pardoned."""
    catalog._write(
        lambda cursor: cursor.executemany("DELETE FROM touched WHERE hash = ? AND format = ?", touches)
    )


# -- who names a hash


class Named(NamedTuple):
    """Something that names a hash. `key`: an artifact's id, a tag's name. `format` 1: as a hash seq."""

    kind: str
    key: bytes
    format: int


_NAMED: Final = """
SELECT iif(deleted_ms IS NULL, 'artifact', 'deleted artifact'), id, format FROM artifacts WHERE hash = ?1
UNION ALL SELECT 'requires', id, 0 FROM requires WHERE name = ?1
UNION ALL SELECT 'tag', CAST(name AS BLOB), format FROM tags WHERE hash = ?1 AND NOT deleted
LIMIT ?2"""


def names_of(catalog: Catalog, hash_: bytes, limit: int = 1_000) -> list[Named]:
    """Give what names exactly this hash. Scans artifacts and tags: 0.1 s for a million."""
    return [Named._make(row) for row in _page(catalog, _NAMED, hash_, limit)]


def iter_deleted_tags(catalog: Catalog) -> Iterator[tuple[bytes, str]]:
    """Give hash and name of deleted tags."""
    for entry in catalog.iter_tags():
        if entry.deleted:
            yield entry.hash, entry.name


def required_by(catalog: Catalog, ids: Iterable[bytes]) -> list[bytes]:
    """Give the hashes that artifacts require."""
    found: set[bytes] = set()
    for id_ in ids:
        entry = catalog.find_artifact(id_)
        if entry is not None:
            found.update(name for name in labels.names_of(entry.doc).requires if len(name) == HASH_BYTES)
    return sorted(found)


def copies_bytes(catalog: Catalog, hashes: Sequence[bytes], *, of_blobs: bool) -> int:
    """Give the stored bytes of the further copies of payloads, or of the records of large blobs."""
    if not hashes:
        return 0
    sql = f"{_COPIES_BYTES} {_OF_BLOBS if of_blobs else _OF_DATA}"
    ((total,),) = _page(catalog, sql, apsw.carray(tuple(hashes)))
    return int(total)


def blob_records(catalog: Catalog, hashes: Sequence[bytes]) -> list[tuple[bytes, int]]:
    """Give hash and stored bytes of the records of those that are large blobs."""
    if not hashes:
        return []
    sql = f"SELECT hash, stored FROM {_KEYS} blobs ON hash = keys.value"
    return cast("list[tuple[bytes, int]]", _page(catalog, sql, apsw.carray(tuple(hashes))))


def drop_rows(catalog: Catalog, hashes: Sequence[bytes]) -> None:
    """Take large blobs out of a catalog that is being rebuilt."""
    if hashes:
        rows = [(hash_, 0) for hash_ in hashes]
        catalog._write(lambda cursor: _drop(cursor, "blobs", rows, _OF_BLOBS))
