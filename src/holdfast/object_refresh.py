"""A catalog of a store in a bucket is brought up to date with what others did: what is listed against what was seen.

Only what is new is read. Objects of names go when a collection gathers what they said in a new one. A row rests on the
newest of those that say it (`place_of`): what still rests on one that is gone, when all was read, is said by nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import groupby, islice
from typing import Final, cast

import apsw
import msgspec

from holdfast.backend.objects.backend import ObjectBackend
from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.ends import list_whole
from holdfast.backend.objects.layout import COMMITS, is_names_key
from holdfast.backend.objects.names import place_of
from holdfast.catalog import Catalog
from holdfast.catalog.objects import (
    SIZES,
    Bad,
    drop_blobs,
    forget_seen,
    hide,
    is_seen,
    iter_lacking,
    iter_places,
    iter_seen,
    note_bad,
    set_size,
    show_again,
)
from holdfast.errors import ArtifactNotFound, CorruptBlob
from holdfast.facts import Facts
from holdfast.object_group import stored_bytes
from holdfast.object_listing import (
    BATCH_ROWS,
    MAX_PROBLEMS,
    NAMES,
    TRIES,
    Listed,
    Tally,
    iter_blobs,
    name_facts,
)
from holdfast.reports import Problem, RefreshStats
from holdfast.types import Hash, Progress, ProgressCallback, id_text, now_ms

LISTED: Final = "listed"
"""In `meta`: what the last whole listing found beside the facts (`Listing`)."""
MAX_LOOKS: Final = 1_000


class Listing(msgspec.Struct):
    """What a listing found beside the facts."""

    listed_ms: int = 0
    foreign: int = 0
    without_outboard: int = 0
    base32: int = 0


_TABLES: Final = """
PRAGMA journal_mode=OFF;
CREATE TABLE names(key TEXT PRIMARY KEY NOT NULL, place INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX places ON names(place);
CREATE TABLE blobs(hash BLOB PRIMARY KEY NOT NULL) WITHOUT ROWID;
CREATE TABLE listed(hash BLOB PRIMARY KEY NOT NULL) WITHOUT ROWID;
CREATE TABLE artifacts(id BLOB PRIMARY KEY NOT NULL) WITHOUT ROWID;
BEGIN;
"""


_LIVE: Final = "SELECT id FROM artifacts WHERE deleted_ms IS NULL AND id > ? ORDER BY id LIMIT ?"
_KNOWN: Final = """
SELECT id FROM artifacts WHERE id BETWEEN ?1 AND ?2 UNION ALL SELECT id FROM tombstones WHERE id BETWEEN ?1 AND ?2"""


class Gone:
    """What was known and is not listed any more: any number, in a temporary file."""

    def __init__(self) -> None:
        self._db = apsw.Connection("")
        self._db.execute(_TABLES).fetchall()

    def close(self) -> None:
        """Give the temporary file back."""
        self._db.close()

    def add_name(self, key: str) -> None:
        """Take in an object of names."""
        self._db.execute("INSERT OR IGNORE INTO names VALUES(?, ?)", (key, place_of(key)))

    def remove_names(self, keys: Iterable[str]) -> None:
        """These are there after all."""
        self._db.executemany("DELETE FROM names WHERE key = ?", [(key,) for key in keys])

    def among(self, places: Iterable[int]) -> Iterator[str]:
        """Give the keys of the objects of names that have one of these numbers, which come in order."""
        sql = "SELECT place, key FROM names ORDER BY place"
        mine = cast("Iterator[tuple[int, str]]", self._db.execute(sql))
        one = next(mine, None)
        for place in places:
            while one is not None and one[0] <= place:
                if one[0] == place:
                    yield one[1]
                one = next(mine, None)

    def others(self, prefix: str, limit: int) -> list[str]:
        """Give keys of names that are not under a prefix."""
        sql = "SELECT key FROM names WHERE substr(key, 1, ?) <> ? LIMIT ?"
        return [cast("str", row[0]) for row in self._db.execute(sql, (len(prefix), prefix, limit))]

    def iter_names(self) -> Iterator[str]:
        """Give the keys of names."""
        return (cast("str", row[0]) for row in self._db.execute("SELECT key FROM names"))

    def add_blob(self, hash_: bytes) -> None:
        """Take in a blob."""
        self._db.execute("INSERT OR IGNORE INTO blobs VALUES(?)", (hash_,))

    def add_listed(self, hash_: bytes) -> None:
        """A blob is listed, at another place than the order of hashes has for it."""
        self._db.execute("INSERT OR IGNORE INTO listed VALUES(?)", (hash_,))

    def iter_blobs(self) -> Iterator[bytes]:
        """Give the blobs."""
        sql = "SELECT hash FROM blobs WHERE hash NOT IN (SELECT hash FROM listed)"
        return (cast("bytes", row[0]) for row in self._db.execute(sql))

    def add_artifacts(self, ids: Iterable[bytes]) -> None:
        """Take in artifacts that may be gone."""
        self._db.executemany("INSERT OR IGNORE INTO artifacts VALUES(?)", ((id_,) for id_ in ids))

    def iter_artifacts(self) -> Iterator[bytes]:
        """Give the artifacts, in the order of their ids."""
        return (cast("bytes", row[0]) for row in self._db.execute("SELECT id FROM artifacts ORDER BY id"))


def changed(
    backend: ObjectBackend, catalog: Catalog, prefix: str, gone: Callable[[str], None] = lambda _: None
) -> Iterator[Meta]:
    """Give what is listed and was not seen like that; `gone` is told of what was seen and is not listed."""
    seen = iter_seen(catalog, prefix)
    known = next(seen, None)
    for meta in list_whole(backend.bucket, prefix):
        while known is not None and known[0] < meta.key:
            gone(known[0])
            known = next(seen, None)
        if known is None or known[0] != meta.key:
            yield meta
            continue
        if known[1] != meta.e_tag or not meta.e_tag:
            yield meta
        known = next(seen, None)
    while known is not None:
        gone(known[0])
        known = next(seen, None)


def read_names(
    backend: ObjectBackend,
    catalog: Catalog,
    tally: Tally,
    *,
    gone: Callable[[str], None] = lambda _: None,
    progress: ProgressCallback | None = None,
) -> bool:
    """Read the objects of names that are new or other ones; False where they go faster than they can be read."""
    for prefix in NAMES:
        for _ in range(TRIES):
            vanished = tally.vanished
            for facts in watched(
                name_facts(backend, changed(backend, catalog, prefix, gone), tally), progress
            ):
                catalog.apply(facts)
            if tally.vanished == vanished:
                break
        else:
            return False
    return True


def settle(backend: ObjectBackend, catalog: Catalog, tally: Tally) -> None:
    """See to what the listings do not say by themselves, once all of it is in the catalog."""
    lacking: list[bytes] = []
    unacknowledged: list[bytes] = []
    for first, hashes in groupby(iter_lacking(catalog), key=lambda hash_: hash_[0]):
        collected = tally.collected.bucket(first)
        for hash_ in hashes:
            if hash_ in collected:
                unacknowledged.append(hash_)
            elif len(lacking) < MAX_LOOKS:
                lacking.append(hash_)
    found, lost = Facts(), list[bytes]()
    looked_at = lacking + unacknowledged
    for hash_, there in zip(looked_at, backend.pool.map(backend.find, looked_at), strict=True):
        if there.best is not None:  # it was put while we listed
            found.blobs.append(Listed.of(hash_, there).row())
        elif there.was_collected:
            lost.append(hash_)
    catalog.apply(found)
    hide(catalog, lost)
    show_again(catalog)
    for hash_, said, size in catalog.ask(SIZES):
        message = f"the object of blob {hash_.hex()} has {size} bytes, and {said} were stored"
        tally.problems.append(Problem(kind=CorruptBlob.kind, message=message, hash=Hash(hash_)))
        tally.bad.append(Bad(backend.data_key(hash_), hash_, message))
        set_size(catalog, hash_, said, stored_bytes(said))  # so that no reading ends early and says nothing
    listing = Listing(now_ms(), tally.foreign, tally.without_outboard, tally.base32)
    catalog.set_meta(LISTED, msgspec.json.encode(listing))
    tally.collected.close()


def _missing(backend: ObjectBackend, catalog: Catalog, gone: Gone) -> list[str]:
    """Give objects of names that are gone while rows rest on them; of so many that none is looked for, some."""
    wanted = gone.others(COMMITS, MAX_LOOKS + 1)
    wanted += islice(gone.among(iter_places(catalog)), MAX_LOOKS + 1)
    if len(wanted) > MAX_LOOKS:
        return wanted[:MAX_LOOKS]
    metas = list(zip(wanted, backend.pool.map(backend.bucket.head, wanted), strict=True))
    gone.remove_names(key for key, meta in metas if meta is not None)  # it was made while we listed
    return [key for key, meta in metas if meta is None]


def missing_names(backend: ObjectBackend, catalog: Catalog) -> list[str]:
    """Give objects of names that this catalog has read, and that are gone with what they said.

    None while others wait to be read: those may say it. One that was read, and is another now (of a later state, or
    copied with the whole bucket), says nothing of what others said.
    """
    with closing(Gone()) as gone:
        for prefix in NAMES:
            for meta in changed(backend, catalog, prefix, gone.add_name):
                if is_names_key(meta.key) and not is_seen(catalog, meta.key):
                    return []
        return _missing(backend, catalog, gone)


class Refresh:
    """Compares what the bucket lists with what the catalog has seen, and reads what is new."""

    def __init__(self, backend: ObjectBackend, catalog: Catalog, progress: ProgressCallback | None) -> None:
        self._backend = backend
        self._catalog = catalog
        self._progress = progress
        self._started = time.monotonic()
        self._requests = backend.bucket.requests.snapshot()
        self._tally = Tally()
        self._new_blobs = self._gone_blobs = 0
        self._is_rebuilt = False
        self._lost = 0
        self._gone = Gone()

    def close(self) -> None:
        """Give the temporary file back."""
        self._gone.close()

    def run(self) -> bool:
        """Do it; False when names are gone that nothing else says, so that only reading all tells what is left."""
        catalog, tally = self._catalog, self._tally
        backend, progress = self._backend, self._progress
        if not read_names(backend, catalog, tally, gone=self._gone.add_name, progress=progress):
            self._is_rebuilt = True
        for facts in watched(self._blobs(), progress):
            catalog.apply(facts)
        settle(backend, catalog, tally)
        note_bad(catalog, tally.bad)
        # what is damaged may say what is missed: then the catalog alone knows it
        self._is_rebuilt |= not any(not one.hash for one in tally.bad) and self._misses_names()
        return not self._is_rebuilt

    def _misses_names(self) -> bool:
        """Whether something that objects said that are gone is said by no other; if not, they are forgotten."""
        if _missing(self._backend, self._catalog, self._gone):
            return True
        names = self._gone.iter_names()
        while keys := list(islice(names, BATCH_ROWS)):
            forget_seen(self._catalog, keys)
        return False

    def remember(self) -> None:
        """Note the artifacts that the catalog knows, before it is made anew."""
        after = b""
        while page := self._catalog.ask(_LIVE, (after, BATCH_ROWS)):
            self._gone.add_artifacts(row[0] for row in page)
            after = page[-1][0]

    def compare(self, catalog: Catalog) -> None:
        """Say what was remembered and is in no object any more. Who deletes an artifact leaves a tombstone."""
        artifacts = self._gone.iter_artifacts()
        while page := list(islice(artifacts, BATCH_ROWS)):
            known = {row[0] for row in catalog.ask(_KNOWN, (page[0], page[-1]))}
            for id_ in page:
                if id_ not in known:
                    self._lose(id_text(id_))

    def _lose(self, id: str) -> None:
        self._lost += 1
        problems = self._tally.problems
        if len(problems) < MAX_PROBLEMS:
            message = (
                f"artifact {id} was known to this catalog, and no object of the bucket names it any more"
            )
            problems.append(Problem(kind=ArtifactNotFound.kind, message=message))

    def report(self) -> RefreshStats:
        requests = self._backend.bucket.requests
        return RefreshStats(
            names_read=self._tally.names,
            blobs_found=self._new_blobs,
            blobs_gone=self._gone_blobs,
            is_rebuilt=self._is_rebuilt,
            damaged=sum(one.kind != ArtifactNotFound.kind for one in self._tally.problems) + self._lost,
            problems=tuple(self._tally.problems[:MAX_PROBLEMS]),
            requests=requests.since(self._requests, requests.snapshot()),
            seconds=time.monotonic() - self._started,
        )

    def _blobs(self) -> Iterator[Facts]:
        """Give the rows that are new or other ones, and forget those of which there is nothing any more."""
        catalog = self._catalog
        rows = catalog.iter_blobs()
        known = next(rows, None)
        facts, gone = Facts(), self._gone
        for listed in iter_blobs(self._backend, self._tally):
            if listed.found.name:  # base32 sorts in another order
                gone.add_listed(listed.hash)
                facts.blobs.append(listed.row())
                continue
            while known is not None and known.hash < listed.hash:
                gone.add_blob(known.hash)
                known = next(rows, None)
            is_known = known is not None and known.hash == listed.hash
            if not is_known:
                self._new_blobs += 1
                facts.blobs.append(listed.row())
            elif known is not None and known.size != listed.size_bytes:
                set_size(catalog, listed.hash, listed.size_bytes, listed.row()[4])
            if is_known:
                known = next(rows, None)
            if len(facts.blobs) >= BATCH_ROWS:
                yield facts
                facts = Facts()
        while known is not None:
            gone.add_blob(known.hash)
            known = next(rows, None)
        blobs = gone.iter_blobs()
        while hashes := list(islice(blobs, BATCH_ROWS)):
            self._gone_blobs += len(hashes)
            drop_blobs(catalog, hashes)
        yield facts


def watched(batches: Iterator[Facts], progress: ProgressCallback | None) -> Iterator[Facts]:
    done = 0
    for facts in batches:
        yield facts
        done += len(facts.blobs) + len(facts.artifacts)
        if progress is not None:
            progress(Progress(phase="rebuild", done_items=done))
