"""Rows that say which artifacts bear a tag or link, and which require something: derived, to be found by.

They are a function of the `artifacts` table alone, kept so by whatever changes it, whatever the order:

- `labels`: (kind, name, id) for each tag and link of each *live* artifact;
- `requires`: (name, id) for each requirement of each artifact, deleted ones too, because what may be restored
  keeps what it requires. `name` is the 32 bytes of a blob's hash, or the 16 of an artifact's id.

An artifact without tags, links and requirements has no row here and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple, TypeAlias, cast

import apsw
import msgspec

from holdfast.facts import ArtifactRow

TAG: Final = 0
LINK: Final = 1
LIVE_COUNT: Final = "live_artifacts"
"""In `meta`, once somebody asked for an exact count: kept up in each transaction from then on."""

Label: TypeAlias = tuple[int, str]
"""kind, name"""
State: TypeAlias = tuple[bytes, int | None]
"""doc, deleted_ms"""

TABLES: Final = """
CREATE TABLE labels(kind INTEGER NOT NULL, name TEXT NOT NULL, id BLOB NOT NULL, PRIMARY KEY(kind, name, id))
  STRICT, WITHOUT ROWID;
CREATE TABLE requires(name BLOB NOT NULL, id BLOB NOT NULL, PRIMARY KEY(name, id)) STRICT, WITHOUT ROWID;
"""
_TOPS: Final = (
    "SELECT ifnull((SELECT max(id) FROM artifacts), x''), ifnull((SELECT max(id) FROM tombstones), x'')"
)
_STATES: Final = """
SELECT a.id, a.doc, a.deleted_ms FROM carray(?) AS keys CROSS JOIN artifacts AS a ON a.id = keys.value"""
_ADD: Final = "INSERT INTO labels VALUES(?, ?, ?) ON CONFLICT DO NOTHING"
_DROP: Final = "DELETE FROM labels WHERE kind = ? AND name = ? AND id = ?"
_ADD_REQUIRED: Final = "INSERT INTO requires VALUES(?, ?) ON CONFLICT DO NOTHING"
_DROP_REQUIRED: Final = "DELETE FROM requires WHERE name = ? AND id = ?"
_MIGRATED_ROWS: Final = 10_000


class Names(NamedTuple):
    """What a document gives to be found by."""

    labels: frozenset[Label]
    requires: frozenset[bytes]


class _Document(msgspec.Struct):
    tags: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()


_decode: Final = msgspec.json.Decoder(_Document).decode
_NOTHING: Final = Names(frozenset(), frozenset())


def names_of(doc: bytes) -> Names:
    """Read a document of an artifact; one that cannot be read gives nothing to be found by."""
    if b'"tags"' not in doc and b'"links"' not in doc and b'"requires"' not in doc:
        return _NOTHING
    try:
        read = _decode(doc)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _NOTHING
    labels = [(TAG, tag) for tag in read.tags] + [(LINK, link) for link in read.links]
    return Names(frozenset(labels), frozenset(filter(None, map(required_key, read.requires))))


def required_key(text: str) -> bytes | None:
    """Give what a requirement (`blake3:HEX`, or an id) is found by."""
    try:
        key = bytes.fromhex(text.removeprefix("blake3:").replace("-", ""))
    except ValueError:
        return None
    return key if len(key) == (32 if text.startswith("blake3:") else 16) else None


def find_states(cursor: apsw.Cursor, ids: Sequence[bytes]) -> dict[bytes, State]:
    """Give what stands in `artifacts` now for those of the ids that are there."""
    return {row[0]: (row[1], row[2]) for row in cursor.execute(_STATES, (apsw.carray(tuple(sorted(ids))),))}


def are_new(cursor: apsw.Cursor, ids: Sequence[bytes]) -> bool:
    """Whether all ids differ and lie above every one that is known, as those of a put do: then nothing can be stale."""
    if len(set(ids)) != len(ids):
        return False
    tops = cast("list[tuple[bytes, bytes]]", cursor.execute(_TOPS).fetchall())
    return min(ids) > max(tops[0])


def add_new(cursor: apsw.Cursor, rows: Sequence[ArtifactRow]) -> None:
    """Write the names of live artifacts that were not known before."""
    labels, requires = [], []
    read: dict[bytes, Names] = {}
    for row in rows:
        doc = row[8]
        names = read.get(doc)
        if names is None:
            names = read[doc] = names_of(doc)
        if names is not _NOTHING:
            id_ = row[0]
            labels += [(kind, name, id_) for kind, name in names.labels]
            requires += [(name, id_) for name in names.requires]
    if labels:
        labels.sort()  # neighbours in the B-tree follow each other
        cursor.executemany(_ADD, labels)
    if requires:
        cursor.executemany(_ADD_REQUIRED, requires)
    _count(cursor, len(rows))


def follow(cursor: apsw.Cursor, old: Mapping[bytes, State], new: Mapping[bytes, State]) -> None:
    """Write what changed from the old states of some artifacts to their new ones."""
    added, dropped, required, released = [], [], [], []
    live = 0
    for id_ in old.keys() | new.keys():
        before, after = old.get(id_), new.get(id_)
        if before == after:
            continue
        live += _is_live(after) - _is_live(before)
        had, has = _names(before), _names(after)
        added += [(kind, name, id_) for kind, name in has.labels - had.labels]
        dropped += [(kind, name, id_) for kind, name in had.labels - has.labels]
        required += [(name, id_) for name in has.requires - had.requires]
        released += [(name, id_) for name in had.requires - has.requires]
    for sql, rows in (
        (_DROP, dropped),
        (_ADD, added),
        (_DROP_REQUIRED, released),
        (_ADD_REQUIRED, required),
    ):
        if rows:
            cursor.executemany(sql, sorted(rows))
    _count(cursor, live)


def _names(state: State | None) -> Names:
    if state is None:
        return _NOTHING
    names = names_of(state[0])
    return names if state[1] is None else Names(frozenset(), names.requires)


def _is_live(state: State | None) -> int:
    return int(state is not None and state[1] is None)


def _count(cursor: apsw.Cursor, more: int) -> None:
    if more:  # touches no page where nobody asked for the count
        cursor.execute(f"UPDATE meta SET value = value + ? WHERE key = '{LIVE_COUNT}'", (more,))


def migrate_labels(connection: apsw.Connection) -> None:
    """Take a catalog of schema 1 to schema 2: make the tables, and fill them from the artifacts."""
    connection.execute(TABLES).fetchall()
    rows = connection.cursor().execute("SELECT id, doc, deleted_ms FROM artifacts ORDER BY id")
    while batch := _take(rows):
        follow(connection.cursor(), {}, batch)


def _take(rows: Iterable[tuple[bytes, bytes, int | None]]) -> dict[bytes, State]:
    return {id: (doc, deleted_ms) for id, doc, deleted_ms in islice(rows, _MIGRATED_ROWS)}
