"""What names the blobs of a bucket, read from the bucket itself, in bounded memory.

The names are listed as often as somebody asks, and each object is read that was not read before with the same e_tag:
an object with an e_tag that was seen a moment ago has the bytes that it had. What was a name once stays one here, so a
later reading can only add to what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, cast

import apsw

from holdfast.backend.objects.backend import ObjectBackend
from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.ends import list_whole
from holdfast.backend.objects.layout import ARTIFACTS, COMMITS, TAGS, artifact_key, is_names_key
from holdfast.backend.objects.names import GRAVE_BYTES, Named, facts_of, intended, read_named
from holdfast.catalog import labels
from holdfast.errors import FormatError, IntegrityError, Unavailable, UnreadableRoot
from holdfast.facts import Facts
from holdfast.object_listing import in_flight
from holdfast.types import HASH_BYTES, parse_id
from holdfast.wire.bundle import encode_bundle
from holdfast.wire.document import Tombstone, encode_tombstone
from holdfast.wire.record import Kind

TRIES: Final = 10
BATCH_ROWS: Final = 5_000
NAMES: Final = (COMMITS, ARTIFACTS, TAGS)
"""In this order: what a commit says first goes only when `artifacts/` says it too."""
ALWAYS: Final = 1 << 62
Root = tuple[bytes, int]

_TABLES: Final = """
PRAGMA journal_mode=OFF;
CREATE TABLE seen(key TEXT PRIMARY KEY NOT NULL, e_tag TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE commits(number INTEGER PRIMARY KEY, key TEXT NOT NULL, documents INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE states(
  id BLOB PRIMARY KEY NOT NULL, revision INTEGER NOT NULL, hash BLOB NOT NULL, format INTEGER NOT NULL,
  requires BLOB NOT NULL, home INTEGER) WITHOUT ROWID;
CREATE TABLE changed(id BLOB PRIMARY KEY NOT NULL) WITHOUT ROWID;
CREATE TABLE graves(
  id BLOB PRIMARY KEY NOT NULL, revision INTEGER NOT NULL, deleted_ms INTEGER NOT NULL,
  key TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tags(key TEXT NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL, hash BLOB NOT NULL,
  format INTEGER NOT NULL, deleted INTEGER NOT NULL, PRIMARY KEY(key, number)) WITHOUT ROWID;
BEGIN;
"""
_STATE: Final = """
INSERT INTO states VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET
  home = coalesce(excluded.home, home), revision = max(revision, excluded.revision),
  hash = iif(excluded.revision >= revision, excluded.hash, hash),
  format = iif(excluded.revision >= revision, excluded.format, format),
  requires = iif(excluded.revision >= revision, excluded.requires, requires)"""
_GRAVE: Final = """
INSERT INTO graves VALUES(?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET revision = excluded.revision,
  deleted_ms = excluded.deleted_ms WHERE excluded.revision > revision"""
_LIVE: Final = """
FROM states LEFT JOIN graves USING(id)
WHERE graves.id IS NULL OR graves.revision < states.revision OR graves.deleted_ms > ?1"""
_EXPIRED: Final = """
SELECT graves.id, graves.revision, graves.deleted_ms, e_tag FROM graves
JOIN states USING(id) JOIN seen USING(key)
WHERE graves.revision > states.revision AND graves.revision < ?2 AND graves.deleted_ms <= ?1
ORDER BY graves.id LIMIT ?3"""

_COMMITS: Final = """
SELECT key, documents, ifnull(dead, 0), bytes FROM commits LEFT JOIN (
  SELECT home, count(*) AS dead FROM states WHERE id IN (SELECT id FROM changed) GROUP BY home) ON home = number
ORDER BY key"""


class Grave(NamedTuple):
    """An artifact that was deleted so long ago that it is to be forgotten."""

    id: bytes
    revision: int
    deleted_ms: int
    e_tag: str


class Commit(NamedTuple):
    """An object of new artifacts. `dead`: how many of them `artifacts/` has newer words about."""

    key: str
    documents: int
    dead: int
    size_bytes: int


class BucketNames:
    """All names of a bucket, none read yet. `tell` gets the facts that are read, `watch` hears of objects."""

    def __init__(
        self,
        backend: ObjectBackend,
        tell: Callable[[Facts], None],
        watch: Callable[[int], None],
    ) -> None:
        self.objects = 0
        """How many there were, when they were listed last."""
        self._backend = backend
        self._tell = tell
        self._watch = watch
        self._facts = Facts()
        self._db = apsw.Connection("")  # a temporary file: any number, in bounded memory
        self._db.execute(_TABLES).fetchall()

    def close(self) -> None:
        """Give the temporary file back."""
        self._db.close()

    def read(self) -> None:
        """List all names, and read those that are new or other than they were; `UnreadableRoot` where that fails."""
        for _ in range(TRIES):
            self.objects = 0
            whole = [self._read(prefix) for prefix in NAMES]
            if all(whole):
                return
        raise Unavailable("the names of this bucket are rewritten faster than they can be read: try again")

    def _read(self, prefix: str) -> bool:
        """Read what is under a prefix; False when an object went between its listing and its reading."""
        backend = self._backend
        whole = True
        for meta, named in in_flight(backend, self._unread(prefix), self._get, lambda meta: meta.size_bytes):
            if named is None:
                whole = False
                continue
            if named.skipped:
                raise UnreadableRoot(
                    f"nothing is collected: {meta.key} says something that only a newer Holdfast understands,"
                    " and it may name blobs: collect with that one",
                    root=meta.key,
                )
            self._take(named, meta)
            self._watch(1)
        self._flush()
        return whole

    def _unread(self, prefix: str) -> Iterator[Meta]:
        """List what is to be read: what was not seen before as it is now."""
        for meta in list_whole(self._backend.bucket, prefix):
            if not is_names_key(meta.key):
                continue
            self.objects += 1
            if meta.e_tag and self._was_seen(meta.key, meta.e_tag):
                continue
            if prefix == ARTIFACTS and meta.size_bytes == GRAVE_BYTES:
                self._bury(parse_id(meta.key.removeprefix(ARTIFACTS)), meta)
                continue
            yield meta

    def _get(self, meta: Meta) -> Named | None:
        try:
            return read_named(self._backend.bucket, meta.key)
        except (IntegrityError, FormatError) as error:
            raise UnreadableRoot(
                f"nothing is collected: {meta.key} cannot be read, so nobody knows what it names ({error})."
                " Repair it, or put a copy of it back",
                **{**error.evidence, "root": meta.key},
            ) from error

    def _take(self, named: Named, meta: Meta) -> None:
        facts = Facts()
        facts_of(named.documents, facts, named.key)
        home = None
        if named.key.startswith(COMMITS):
            self._db.execute(
                "INSERT INTO commits(key, documents, bytes) VALUES(?, ?, ?)",
                (named.key, len(named.documents), meta.size_bytes),
            )
            home = self._db.last_insert_rowid()
        for row in facts.artifacts:
            requires = b"".join(one for one in labels.names_of(row.doc).requires if len(one) == HASH_BYTES)
            self._db.execute(_STATE, (row.id, row.revision, row.hash, row.format, requires, home))
            if home is None:
                self._db.execute("INSERT OR IGNORE INTO changed VALUES(?)", (row.id,))
        for id_, revision, deleted_ms, _ in facts.tombstones:
            self._db.execute(_GRAVE, (id_, revision, deleted_ms, named.key))
        states = [(name, hash_, format_, deleted) for name, hash_, format_, _, _, deleted, _ in facts.tags]
        states += [(tag.name, tag.hash, tag.format, 0) for tag in intended(named.documents)]
        if states:  # what somebody is about to name is kept as what is named
            self._db.execute("DELETE FROM tags WHERE key = ?", (named.key,))
            rows = [(named.key, number, *state) for number, state in enumerate(states)]
            self._db.executemany("INSERT INTO tags VALUES(?, ?, ?, ?, ?, ?)", rows)
        self._see(named.key, named.e_tag)
        mine = self._facts
        mine.artifacts += facts.artifacts
        mine.tombstones += facts.tombstones
        mine.tags += facts.tags
        mine.forgotten += facts.forgotten
        mine.seen.append((named.key, named.e_tag))
        if len(mine.artifacts) + len(mine.tags) >= BATCH_ROWS:
            self._flush()

    def _bury(self, id_: bytes, meta: Meta) -> None:
        """A tombstone alone: the artifact is forgotten for good. Its size says so, and nothing needs to be read."""
        self.forget(id_, meta.e_tag or "")
        self._facts.forgotten.append(id_)
        if len(self._facts.forgotten) >= BATCH_ROWS:
            self._flush()

    def forget(self, id_: bytes, e_tag: str) -> None:
        """Of an artifact only the tombstone is left, in an object with this e_tag."""
        self._db.execute("INSERT OR IGNORE INTO changed VALUES(?)", (id_,))
        key = artifact_key(id_)
        self._db.execute("INSERT OR REPLACE INTO graves VALUES(?, ?, -1, ?)", (id_, ALWAYS, key))
        self._see(key, e_tag)

    def _was_seen(self, key: str, e_tag: str) -> bool:
        return bool(
            self._db.execute("SELECT 1 FROM seen WHERE key = ? AND e_tag = ?", (key, e_tag)).fetchall()
        )

    def _see(self, key: str, e_tag: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO seen VALUES(?, ?)", (key, e_tag))

    def _flush(self) -> None:
        if self._facts.seen or self._facts.forgotten:
            self._tell(self._facts)
            self._facts = Facts()

    def iter_roots(self, until_ms: int) -> Iterator[Root]:
        """Give (hash, format) of all that is named; artifacts that were deleted until then are not."""
        for hash_, format_, requires in self._db.execute(
            f"SELECT hash, format, requires {_LIVE}", (until_ms,)
        ):
            yield cast("bytes", hash_), cast("int", format_)
            packed = cast("bytes", requires)
            for at in range(0, len(packed), HASH_BYTES):
                yield packed[at : at + HASH_BYTES], 0
        yield from cast("Iterator[Root]", self._db.execute("SELECT hash, format FROM tags WHERE NOT deleted"))

    def expired(self, until_ms: int, limit: int) -> list[Grave]:
        """Give artifacts that were deleted until then and are not forgotten yet."""
        rows = self._db.execute(_EXPIRED, (until_ms, ALWAYS, limit)).fetchall()
        return [Grave._make(cast("tuple[bytes, int, int, str]", row)) for row in rows]

    def count_expired(self, until_ms: int) -> int:
        """Count them."""
        sql = _EXPIRED.replace("graves.id, graves.revision, graves.deleted_ms, e_tag", "count(*)")
        ((count,),) = self._db.execute(sql, (until_ms, ALWAYS, 1)).fetchall()
        return cast("int", count)

    def iter_deleted(self) -> Iterator[tuple[bytes, bytes]]:
        """Give hash and id of each artifact that is deleted."""
        sql = "SELECT hash, id FROM states JOIN graves USING(id) WHERE graves.revision > states.revision"
        yield from cast("Iterator[tuple[bytes, bytes]]", self._db.execute(sql))

    def iter_deleted_tags(self) -> Iterator[tuple[bytes, str]]:
        """Give hash and name of each tag that is deleted."""
        yield from cast(
            "Iterator[tuple[bytes, str]]", self._db.execute("SELECT hash, name FROM tags WHERE deleted")
        )

    @property
    def has_sequences(self) -> bool:
        """Whether something names a hash seq."""
        sql = "SELECT 1 FROM states WHERE format UNION ALL SELECT 1 FROM tags WHERE format LIMIT 1"
        return bool(self._db.execute(sql).fetchall())

    def iter_commits(self) -> Iterator[Commit]:
        """Give the objects of new artifacts in the order of their keys."""
        rows = self._db.execute(_COMMITS)
        yield from (Commit._make(cast("tuple[str, int, int, int]", row)) for row in rows)

    def is_changed(self, id_: bytes) -> bool:
        """Whether `artifacts/` says something of an artifact."""
        return bool(self._db.execute("SELECT 1 FROM changed WHERE id = ?", (id_,)).fetchall())


def grave_of(id_: bytes, revision: int, deleted_ms: int) -> bytes:
    """Give the bytes of the object of an artifact that is forgotten."""
    document = encode_tombstone(Tombstone(id_, revision, deleted_ms))
    return encode_bundle([(Kind.TOMBSTONE, document)], artifact_key(id_))
