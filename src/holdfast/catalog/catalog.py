"""The catalog of one store in one process: what is where, found quickly. A cache; storage is the truth.

The catalog knows no segment files and no documents. It is thread-safe, and holds no transaction open between two
calls. A call that meets damage raises `CatalogUnusable`; whoever holds the catalog then rebuilds it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import apsw

from holdfast.catalog.apply import apply_facts, without_places_in
from holdfast.catalog.base import CHECKPOINT_PAGES, CatalogFile
from holdfast.catalog.connection import SharedPool
from holdfast.catalog.damage import DOUBTFUL, ROLE, damaged_among
from holdfast.catalog.dump import iter_dump
from holdfast.catalog.labels import LIVE_COUNT, Label
from holdfast.catalog.queries import HIGHEST, LOWEST, PAGE_ROWS, Reader
from holdfast.catalog.rows import ArtifactBlob, ArtifactEntry, BlobRow, Counts, Location, TagEntry
from holdfast.catalog.schema import MIGRATIONS, Migration
from holdfast.catalog.search import (
    Search,
    begin_count,
    count_found,
    distinct_names,
    holders,
    iter_found,
    names_page,
    prefix_end,
)
from holdfast.catalog.unusable import MET, CatalogUnusable, translate
from holdfast.facts import (
    FLAG_BLOB,
    FLAG_CONDEMNED,
    FLAG_UNNAMED,
    KIND_BLOB,
    KIND_DATA,
    KIND_MASK,
    Facts,
    QuarantineRow,
)

if TYPE_CHECKING:
    from holdfast.catalog.aside import AsideCatalog

T = TypeVar("T")
P = ParamSpec("P")
_SET_META = "INSERT INTO meta VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value"
_HAS_BLOB = f"""
SELECT 1 FROM blobs WHERE hash = ?1 UNION ALL SELECT 1 FROM data WHERE hash = ?1 AND flags & {FLAG_BLOB}"""
NAMED = """
SELECT hash, max(format) FROM (
  SELECT hash, format FROM artifacts WHERE deleted_ms IS NULL
  UNION ALL SELECT hash, format FROM tags WHERE NOT deleted
  UNION ALL SELECT r.name, 0 FROM requires AS r JOIN artifacts AS a USING(id)
    WHERE length(r.name) = 32 AND a.deleted_ms IS NULL
) GROUP BY hash ORDER BY hash"""
"""What is named, each hash once; format 1 where something takes it for a sequence of hashes."""


class Catalog(CatalogFile):
    """See the module. Made by `Catalog.open` and `Catalog.create_aside`."""

    @classmethod
    def open(
        cls,
        path: Path | None,
        store_id: bytes,
        *,
        read_only: bool = False,
        migrations: Sequence[Migration] = MIGRATIONS,
    ) -> Catalog:
        """Open the catalog, migrate an older one, or create it where there is none (None: in memory).

        Creating and migrating are for who holds the store's lock. Raises `CatalogUnusable` when it is newer,
        damaged or of another store: the caller rebuilds. Only the header, the identity, the length and both ends of
        each table are looked at: all pages of 100 MB would take a second at every start. Damage elsewhere is met as
        `CatalogUnusable` by the call that touches it; a wrong location or hash is met by whoever verifies what is
        read there.

        `read_only` never writes the catalog. One without a write-ahead log is opened as immutable, which needs no
        right to write; `is_current` turns False once somebody changes it. One with a log is read together with
        its writers, which needs the shared memory file beside it or the right to make one; else `CatalogUnusable`.
        """
        self = cls(path, store_id)
        try:
            self._start(read_only, migrations)
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def create_aside(cls, path: Path, store_id: bytes) -> AsideCatalog:
        """Make an empty catalog beside `path`, to be filled by a rebuild and then published there."""
        from holdfast.catalog.aside import AsideCatalog

        return AsideCatalog.create(path, store_id)

    # Writing

    def apply(self, facts: Facts) -> None:
        """Take facts in, in one transaction, all or nothing. In any order, and harmless twice.

        Not fsynced: after a power cut the catalog may be behind its segments, and they are replayed.
        """
        self._write(lambda cursor: apply_facts(cursor, facts))

    def apply_all(
        self,
        batches: Iterable[Facts],
        retired: Sequence[range] = (),
        notes: Callable[[], Mapping[str, bytes | int]] = dict,
    ) -> None:
        """Take many batches in, in one transaction, all or nothing; each is dropped before the next is asked for.

        `retired`: segments of which the batches say that they are of no use any more, as this catalog did not know.
        `notes`: what `set_meta` is to keep with them, asked for after the last one.
        """

        def change(cursor: apsw.Cursor) -> None:
            with without_places_in(cursor, retired):
                for facts in batches:
                    apply_facts(cursor, facts)
            cursor.executemany(_SET_META, notes().items())

        self._write(change)

    def set_meta(self, key: str, value: str | int | float | bytes | None) -> None:
        """Keep a hint, or (None) forget it. Nothing that must survive the loss of the catalog."""
        if value is None:
            self._write(lambda cursor: cursor.execute("DELETE FROM meta WHERE key = ?", (key,)))
        else:
            self._write(lambda cursor: cursor.execute(_SET_META, (key, value)))

    def _write(self, change: Callable[[apsw.Cursor], object], *, durable: bool = False) -> None:
        """Run one transaction. `durable`: synced when this returns, and with it all that came before."""
        with self._writing:
            try:
                writer = self._writer or self._open_writer()
                if durable:
                    writer.connection.pragma("synchronous", "FULL")
                cursor = writer.cursor
                if writer.connection.in_transaction:  # an interrupt came between two steps below
                    cursor.execute("ROLLBACK")
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    change(cursor)
                    cursor.execute("COMMIT")
                except BaseException:
                    if writer.connection.in_transaction:
                        cursor.execute("ROLLBACK")
                    raise
                finally:
                    if durable:
                        writer.connection.pragma("synchronous", "NORMAL")
            except MET as error:
                raise translate(error, self.path) from error
            if self._wal_pages >= CHECKPOINT_PAGES:
                self._checkpoint_some(writer)

    # Reading

    def _read(self, query: Callable[Concatenate[Reader, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            reader = self._pool.take()
            try:
                return query(reader, *args, **kwargs)
            finally:
                self._pool.give(reader)
        except MET as error:
            raise translate(error, self.path) from error

    def find_artifact_blob(self, id: bytes) -> ArtifactBlob | None:
        """Give the blob of a live artifact, with its place when it is small, in one statement: the hot path."""
        pool = self._pool
        try:
            reader = pool.take()
            try:
                return reader.artifact_blob(id)
            finally:
                pool.give(reader)
        except MET as error:
            raise translate(error, self.path) from error

    def find_data(self, hashes: Sequence[bytes]) -> dict[bytes, Location]:
        """Give location, stored, plain and flags of those of the payloads that are here."""
        return self._read(lambda reader: reader.data(hashes))

    def find_blob(self, hash: bytes) -> BlobRow | None:
        """Give a complete blob, small or large."""
        return self._read(lambda reader: reader.blob(hash))

    def claim(self, hash: bytes, format: int = 0) -> BlobRow | None:
        """Give a blob that the caller, who has pinned, relies on from here on without bringing its bytes.

        While no collection runs this is a look-up: one that begins later waits for the pin. Else, if the blob is
        condemned or (`format` 1) its children may be, it is one transaction with a note for the collector, who
        pardons them.
        """
        # In this order: a collection that ended between the two looks has dropped what it dropped.
        collecting = self.is_collecting
        row = self.find_blob(hash)
        if row is None or not collecting or not (format or row.flags & (FLAG_CONDEMNED | FLAG_UNNAMED)):
            return row
        if self._read(lambda reader: reader.is_touched(hash, format)):
            return row

        def touch(cursor: apsw.Cursor) -> None:
            if cursor.execute(_HAS_BLOB, (hash,)).fetchall():
                cursor.execute("INSERT INTO touched VALUES(?, ?) ON CONFLICT DO NOTHING", (hash, format))

        self._write(touch)
        return self.find_blob(hash)

    def find_blobs(self, hashes: Sequence[bytes]) -> dict[bytes, BlobRow]:
        """Give those of the blobs that are here."""
        return self._read(lambda reader: reader.blobs(hashes))

    def find_artifact(self, id: bytes) -> ArtifactEntry | None:
        """Give an artifact, deleted or not: see its `deleted_ms`."""
        return self._read(lambda reader: reader.artifact(id))

    def find_tombstone(self, id: bytes) -> int:
        """Give the revision at which an artifact was deleted last; 0: never."""
        return self._read(lambda reader: reader.tombstone(id))

    def find_tag(self, name: str) -> TagEntry | None:
        """Give a tag, deleted or not."""
        return self._read(lambda reader: reader.tag(name))

    def copies(self, hash: bytes) -> list[Location]:
        """Give the further copies of a payload or blob record, beside the one that the other calls give."""
        return self._read(lambda reader: reader.copies(hash))

    def blobs_with_prefix(self, low: bytes, high: bytes, after: bytes | None, limit: int) -> list[BlobRow]:
        """Give blobs with hashes from `low` to `high`, both included, above `after`, ascending."""
        return self._read(lambda reader: reader.blobs_range(low, high, after or LOWEST, limit))

    def iter_artifacts(
        self, *, deleted: bool | None = False, after: bytes | None = None, limit: int | None = None
    ) -> Iterator[ArtifactEntry]:
        """Stream artifacts, newest id first, below `after`: live ones, deleted ones, or (None) both.

        Each page sees the catalog as it is then: what is added or deleted meanwhile may or may not come.
        """
        before = HIGHEST if after is None else after
        while limit is None or limit > 0:
            size = PAGE_ROWS if limit is None else min(limit, PAGE_ROWS)
            page = self._read(Reader.artifacts_before, before, deleted, size)
            yield from page
            if len(page) < size:
                return
            before = page[-1].id
            limit = None if limit is None else limit - size

    def search(self, search: Search, limit: int | None = None) -> Iterator[ArtifactEntry]:
        """Stream the artifacts that match, newest id first, in pages like `iter_artifacts`."""
        return iter_found(self._read, search, limit)

    def count_found(self, search: Search) -> int:
        """Count the artifacts that match."""
        return count_found(self._read, search)

    def iter_names(self, kind: int, prefix: str = "", after: str | None = None) -> Iterator[tuple[str, int]]:
        """Stream the tags or links in use that begin with a prefix, in order, with how many artifacts bear them."""
        end = prefix_end(prefix)
        while True:
            page = self._read(names_page, kind, prefix, end, after, PAGE_ROWS)
            yield from page
            if len(page) < PAGE_ROWS:
                return
            after = page[-1][0]

    def names_with_prefix(self, kind: int, prefix: str, limit: int) -> list[Label]:
        """Give up to `limit` tags or links in use that begin with a prefix."""
        end = prefix_end(prefix)
        found = self._read(lambda reader: distinct_names(reader, kind, prefix, end, limit))
        return [(kind, name) for name in found]

    def holders(self, key: bytes, limit: int) -> list[bytes]:
        """Give ids of live artifacts that require a blob (by its hash) or an artifact (by its id)."""
        return self._read(lambda reader: holders(reader, key, limit))

    def live_artifacts(self) -> int:
        """Give the exact number of live artifacts: the first call counts, and has it kept up from then on."""
        known = self.get_meta(LIVE_COUNT)
        if known is None:
            self._write(begin_count)
            known = self.get_meta(LIVE_COUNT)
        return int(known)

    def iter_blobs(self, after: bytes | None = None) -> Iterator[BlobRow]:
        """Stream all blobs by hash, above `after`, in pages like `iter_artifacts`."""
        while True:
            page = self.blobs_with_prefix(LOWEST, HIGHEST, after, PAGE_ROWS)
            yield from page
            if len(page) < PAGE_ROWS:
                return
            after = page[-1].hash

    def iter_tags(self, after: str | None = None) -> Iterator[TagEntry]:
        """Stream all tags by name, deleted ones included, in pages like `iter_artifacts`."""
        while True:
            page = self._read(Reader.tags_after, after, PAGE_ROWS)
            yield from page
            if len(page) < PAGE_ROWS:
                return
            after = page[-1].name

    def tags_with_prefix(self, prefix: str) -> Iterator[TagEntry]:
        """Stream the live tags that begin with a prefix, in pages like `iter_artifacts`."""
        end, sign, after = prefix_end(prefix), ">=", prefix
        while True:
            page = self._read(Reader.tags_range, sign, after, end, PAGE_ROWS)
            yield from page
            if len(page) < PAGE_ROWS:
                return
            sign, after = ">", page[-1].name

    def find_upload(self, token: bytes) -> bytes | None:
        """Give the document of an upload, open or not."""
        rows = self._read(lambda reader: reader.all("SELECT doc FROM uploads WHERE token = ?", (token,)))
        return rows[0][0] if rows else None

    def iter_open_uploads(self) -> Iterator[bytes]:
        """Stream the documents of the uploads that are open, in pages like `iter_artifacts`."""
        after, sql = (
            LOWEST,
            "SELECT token, doc FROM uploads WHERE state = 0 AND token > ? ORDER BY token LIMIT 100",
        )
        while page := self._read(Reader.all, sql, (after,)):
            yield from (doc for _, doc in page)
            after = page[-1][0]

    def has_damage(self) -> bool:
        """Whether anything is in quarantine, or blobs may lack pieces."""
        sql = "SELECT 1 FROM quarantine UNION ALL SELECT 1 FROM meta WHERE key = ? LIMIT 1"
        return bool(self._read(lambda reader: reader.all(sql, (DOUBTFUL,))))

    @property
    def is_doubtful(self) -> bool:
        """Whether it learned from damaged storage: see `DOUBTFUL`."""
        return self.get_meta(DOUBTFUL) is not None

    def in_quarantine(self, places: Sequence[int]) -> set[int]:
        """Give those of the places that are in quarantine."""
        return self._read(lambda reader: damaged_among(reader, places))

    def known_damage(self, places: Sequence[int]) -> set[int]:
        """Give those of the places that are in quarantine, or were repaired."""
        return self._read(lambda reader: damaged_among(reader, places, repaired=True))

    def quarantined(self, segment: int | None = None) -> list[QuarantineRow]:
        """Give (location, hash, reason) of the damage that is not repaired, in a segment or everywhere, by place."""
        where = "" if segment is None else f"WHERE location >> 32 = {int(segment)} "
        sql = f"SELECT location, hash, reason FROM quarantine {where}ORDER BY location"
        return self._read(lambda reader: cast("list[QuarantineRow]", reader.all(sql)))

    def repaired(self, segment: int) -> set[int]:
        """Give the offsets in a segment that were repaired: what lies there is nobody's."""
        sql = "SELECT location & 0xFFFFFFFF FROM repaired WHERE location >> 32 = ?"
        return self._read(lambda reader: {offset for (offset,) in reader.all(sql, (segment,))})

    def set_segment_state(self, segment: int, state: int) -> None:
        """Say what state a segment is in, also a lower one than before: it was mended, or found broken."""
        sql = "UPDATE segments SET state = ? WHERE id = ?"
        self._write(lambda cursor: cursor.execute(sql, (state, segment)))

    def iter_named(self) -> Iterator[tuple[bytes, int]]:
        """Stream (hash, format) of each blob that a live artifact, something that it requires, or a tag names."""
        yield from cast("Iterator[tuple[bytes, int]]", self.iter_sorted(NAMED))

    def iter_sorted(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """Stream the rows of one long statement, from one view; SQLite sorts in a file where it must."""
        try:
            reader = self._pool.take()
            cursor = reader.connection.cursor()
            rows: list[tuple[Any, ...]] = []
            try:
                if isinstance(
                    self._pool, SharedPool
                ):  # others wait for the one connection: not while we are away
                    rows = cast("list[tuple[Any, ...]]", cursor.execute(sql).fetchall())
                else:
                    yield from cast("Iterator[tuple[Any, ...]]", cursor.execute(sql))
            finally:
                cursor.close(True)
                self._pool.give(reader)
            yield from rows
        except MET as error:
            raise translate(error, self.path) from error

    def ask(self, sql: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement of a caller that knows the schema (`care`)."""
        return self._read(lambda reader: reader.all(sql, bindings))

    def segments(self) -> dict[int, tuple[int, int]]:
        """Give (applied bytes, state) of each segment that is known."""
        rows = self._read(lambda reader: reader.all("SELECT id, applied, state FROM segments"))
        return {id: (applied, state) for id, applied, state in rows}

    def counts(self) -> Counts:
        """Count everything, in one view of the catalog: scans, about 0.2 s for a million rows."""
        return self._read(Reader.counts)

    def get_meta(self, key: str) -> Any:
        """Give what `set_meta` kept (or a fact of the catalog itself), or None."""
        rows = self._read(lambda reader: reader.all("SELECT value FROM meta WHERE key = ?", (key,)))
        return rows[0][0] if rows else None

    @property
    def epoch(self) -> int:
        """The number that a collection advances; read anew each time, because another process may."""
        return int(self.get_meta("epoch"))

    @property
    def is_collecting(self) -> bool:
        """Whether rows may be condemned."""
        return self._read(Reader.is_collecting)

    def dump(self) -> Iterator[str]:
        """Stream every fact as sorted text, from one view; equal for a catalog that was rebuilt. See `dump.py`."""
        try:
            reader = self._pool.take()
            try:
                reader.all("BEGIN")
                try:
                    yield from iter_dump(reader)
                finally:
                    reader.end_view()
            finally:
                self._pool.give(reader)
        except MET as error:
            raise translate(error, self.path) from error

    def check(self) -> None:
        """Read and compare every page; `CatalogUnusable` names the first fault. About a second for 100 MB."""
        (fault,) = self._read(lambda reader: reader.all("PRAGMA quick_check(1)"))
        if fault != ("ok",):
            raise CatalogUnusable(f"it is damaged ({fault[0]})", path=str(self.path))


class Reusable:
    """What a put may rely on instead of bringing it: what the catalog has, but for what is condemned or damaged."""

    __slots__ = ("_catalog", "_lost")

    def __init__(self, catalog: Catalog, lost: Container[int] = ()) -> None:
        """`lost`: segments that are not what the catalog knows."""
        self._catalog = catalog
        self._lost = lost

    @property
    def may_lack(self) -> bool:
        """Whether anything that the catalog knows may not be here."""
        return bool(self._lost) or self._catalog.has_damage()

    def find_here(self, hashes: Sequence[bytes]) -> dict[bytes, Location]:
        """Give the payloads that are here, condemned or not."""
        found = self._catalog.find_data(hashes)
        for hash_, row in list(found.items()):
            if row[0] >> 32 in self._lost:
                del found[hash_]
                for place, stored, plain, flags in self._catalog.copies(hash_):
                    if place >> 32 not in self._lost and flags & KIND_MASK != KIND_BLOB:
                        found[hash_] = (place, stored, plain, flags | row[3] & ROLE)
                        break
        if found and self._catalog.has_damage():
            bad = self._catalog.in_quarantine([row[0] for row in found.values()])
            found = {hash_: row for hash_, row in found.items() if row[0] not in bad}
        return found

    def find_data(self, hashes: Sequence[bytes]) -> dict[bytes, Location]:
        """Give the payloads that are here to stay; one whose blob role is condemned is not a blob."""
        found = self.find_here(hashes)
        for hash_, (location, stored, plain, flags) in list(found.items()):
            if flags & FLAG_CONDEMNED:
                del found[hash_]
            elif flags & FLAG_UNNAMED:
                found[hash_] = (location, stored, plain, flags & ~(FLAG_BLOB | FLAG_UNNAMED))
        return found

    def find_blobs(self, hashes: Sequence[bytes]) -> dict[bytes, BlobRow]:
        """Give the blobs that are here to stay.

        While anything is in quarantine, or pieces may be gone, no large blob is one: any of its chunks may be what is.
        """
        found = self._catalog.find_blobs(hashes)
        found = {hash_: row for hash_, row in found.items() if row.location >> 32 not in self._lost}
        if found and self.may_lack:
            bad = self._catalog.in_quarantine([row.location for row in found.values()])
            found = {
                hash_: row
                for hash_, row in found.items()
                if row.location not in bad and row.flags & KIND_MASK == KIND_DATA
            }
        return {hash_: row for hash_, row in found.items() if not row.flags & (FLAG_CONDEMNED | FLAG_UNNAMED)}
