"""Repair in a bucket: what is known to be damaged or missing comes back from elsewhere, verified; wrong bytes are kept.

Of a blob only the blocks that are wrong are fetched, as long as its outboard tells which those are. Objects of names
come back from the catalog that has read them, by one flipped bit, or from a copy of the same bucket.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from holdfast import _native
from holdfast.backend.objects.backend import Generations
from holdfast.backend.objects.layout import ARTIFACTS, TAGS, tag_key
from holdfast.backend.objects.names import parse_names, place_of, read_named, revision_of
from holdfast.backend.objects.spool import Spool
from holdfast.backend.objects.waiting import Waiting
from holdfast.bao import OutboardBuilder
from holdfast.care.framing import mend_bit
from holdfast.care.origins import Origin, StoreOrigin
from holdfast.catalog.objects import (
    Bad,
    drop_blobs,
    iter_lacking,
    known_bad,
    release_bad,
    set_size,
    show_again,
)
from holdfast.core import MENDABLE
from holdfast.errors import BackendError, CorruptBlob, CorruptObject, HoldfastError, MissingChunk
from holdfast.facts import ArtifactRow, Facts
from holdfast.object_checks import WINDOW_BYTES, BlobCheck
from holdfast.object_core import ObjectCore
from holdfast.object_group import stored_bytes
from holdfast.object_listing import Listed
from holdfast.reports import Mended, Problem, RepairReport
from holdfast.types import BLOCK_BYTES, BytesLike, Hash, Progress, ProgressCallback, parse_id
from holdfast.wire.bundle import MAX_BUNDLE_BYTES, Document, encode_bundle
from holdfast.wire.document import (
    ArtifactDocument,
    TagDocument,
    Tombstone,
    encode_artifact,
    encode_tag,
    encode_tombstone,
)
from holdfast.wire.record import Kind

MAX_LISTED: Final = 10_000
HERE: Final = "this bucket"
COMPUTED: Final = "computed"
CATALOG: Final = "the catalog"
_NOTHING_RIGHT: Final = (HoldfastError, OSError, *MENDABLE)
SIZE: Final = """
SELECT size FROM (SELECT size, 0 AS n FROM artifacts WHERE hash = ?1 AND format = 0
  UNION ALL SELECT size, 1 FROM blobs WHERE hash = ?1) ORDER BY n LIMIT 1"""


class Repair:
    """One call."""

    def __init__(
        self, core: ObjectCore, origins: Sequence[Origin], progress: ProgressCallback | None
    ) -> None:
        self._core = core
        self._backend = core.backend
        self._origins = origins
        self._progress = progress
        self._mended: list[Mended] = []
        self._missing: list[Problem] = []
        self._fetched = 0

    def run(self, *, give_up: bool) -> RepairReport:
        started = time.monotonic()
        core = self._core
        core.check_writable()
        core.write_down_damage()
        catalog = core.catalog
        bad = known_bad(catalog)
        for hash_ in {one.hash: None for one in bad if one.hash}:
            keys = [one.key for one in bad if one.hash == hash_]
            if self._mend_blob(hash_):
                release_bad(catalog, keys)
            elif give_up:
                self._give_up(keys)
                drop_blobs(catalog, [hash_])
            self._tell()
        for one in bad:
            if not one.hash:
                if self._mend_names(one, give_up=give_up):
                    release_bad(catalog, [one.key])
                elif give_up:
                    self._give_up([one.key])
                self._tell()
        told = {problem.hash.digest for problem in self._missing if problem.hash is not None}
        for hash_ in list(iter_lacking(catalog)):
            if hash_ not in told:
                self._supply(hash_, self._backend.find(hash_))
                self._tell()
        show_again(catalog)
        self._backend.take_damage()  # what was met on the way is mended, or in the report
        return RepairReport(
            ok=not self._missing,
            repaired=tuple(self._mended[:MAX_LISTED]),
            repaired_count=len(self._mended),
            missing=tuple(self._missing[:MAX_LISTED]),
            missing_count=len(self._missing),
            fetched_bytes=self._fetched,
            seconds=time.monotonic() - started,
        )

    # -- blobs

    def _mend_blob(self, hash_: bytes) -> bool:
        """Put a blob right of which something is damaged; False when nothing has what is needed."""
        backend = self._backend
        found = backend.find(hash_)
        if found.best is None:
            drop_blobs(self._core.catalog, [hash_])
            return True  # if it is named, it is missing, and supplied below
        size = self._size(hash_, found.data[found.best])
        has_outboard = size <= BLOCK_BYTES or found.best in found.outboards
        check = BlobCheck(backend, hash_, size, has_outboard=has_outboard)
        wrong = [one.key for start, stop in check.windows() for one in check.check(start, stop)]
        if not wrong and found.data[found.best] == size:
            return True
        if wrong == [backend.outboard_key(hash_)]:
            backend.remake_outboard(hash_, size).close()
            self._note("outboard", hash_, COMPUTED)
            return True
        with Spool() as spool:
            source = self._assemble(hash_, size, found, spool)
            if source is None:
                self._missing.append(
                    Problem(
                        kind=CorruptBlob.kind,
                        message="no source has this blob",
                        hash=Hash(hash_),
                        path=wrong[0] if wrong else None,
                    )
                )
                return False
            blob = self._waiting(hash_, size, spool)
            backend.heal(blob, spool)
            set_size(self._core.catalog, hash_, size, stored_bytes(size))
        self._note("blob", hash_, source)
        return True

    def _size(self, hash_: bytes, listed: int) -> int:
        """Give how long a blob is: as its artifacts say, else as the catalog does, else as it is listed."""
        rows = self._core.catalog.ask(SIZE, (hash_,))
        return rows[0][0] if rows else listed

    def _assemble(self, hash_: bytes, size: int, found: Generations, spool: Spool) -> str | None:
        """Gather the right bytes of a blob in a spool; gives where they came from."""
        for number in found.data:
            if number != found.best and found.data[number] == size:
                key = self._backend.data_key(hash_, number)
                if self._copy(self._backend.bucket.iter(key, 0, size) or iter(()), hash_, size, spool):
                    return HERE
        if size > BLOCK_BYTES and found.best in found.outboards:
            source = self._patch(hash_, size, found.data[found.best], spool)
            if source is not None:
                return source
        for origin in self._origins:
            for pieces in origin.blobs(hash_, size):
                if self._copy(pieces, hash_, size, spool):
                    self._fetched += size
                    return origin.name
        return None

    def _copy(self, pieces: Iterator[bytes], hash_: bytes, size: int, spool: Spool) -> bool:
        """Take a whole blob from somewhere, if it is the one."""
        spool.clear()
        hasher = _native.BlobHasher()
        try:
            for piece in pieces:
                if spool.size_bytes + len(piece) > size:
                    return False
                hasher.update(piece)
                hasher.take_groups()
                spool.append(bytes(piece))
        except _NOTHING_RIGHT:
            return False
        return spool.size_bytes == size and hasher.finish()[0] == hash_

    def _patch(self, hash_: bytes, size: int, have: int, spool: Spool) -> str | None:
        """Take from the bucket what is right there, of `have` bytes, and from elsewhere the blocks that are not."""
        spool.clear()
        check = BlobCheck(self._backend, hash_, size, has_outboard=True).first_bad
        sources: dict[str, None] = {}
        try:
            for start in range(0, size, WINDOW_BYTES):
                stop = min(start + WINDOW_BYTES, size)
                there = self._backend.fetch(hash_, start, min(stop, have)) if start < have else b""
                data = bytearray(there.ljust(stop - start, b"\0"))
                at = 0
                while at < len(data):
                    bad = check(memoryview(data)[at:], (start + at) // BLOCK_BYTES)
                    if bad < 0:
                        break
                    at += bad * BLOCK_BYTES
                    length = min(BLOCK_BYTES, len(data) - at)
                    got = self._range(check, hash_, size, start + at, length)
                    if got is None:
                        return None
                    data[at : at + length], name = got
                    sources[name] = None
                    at += length
                spool.append(bytes(data))
        except (BackendError, *MENDABLE):
            raise
        except HoldfastError:
            return None
        return ", ".join(sources) or HERE

    def _range(
        self, check: Callable[[BytesLike, int], int], hash_: bytes, size: int, offset: int, length: int
    ) -> tuple[bytes, str] | None:
        for origin in self._origins:
            for part in origin.ranges(hash_, size, offset, length):
                if len(part) == length and check(part, offset // BLOCK_BYTES) < 0:
                    self._fetched += length
                    return part, origin.name
        return None

    def _supply(self, hash_: bytes, found: Generations) -> None:
        """Bring a blob that is named and not in the bucket."""
        catalog = self._core.catalog
        if found.best is None:
            rows = catalog.ask(SIZE, (hash_,))
            with Spool() as spool:
                for origin in self._origins:
                    for pieces in origin.blobs(hash_, rows[0][0] if rows else None):
                        size = rows[0][0] if rows else 1 << 62
                        if not self._copy_any(pieces, hash_, size, spool):
                            continue
                        self._fetched += spool.size_bytes
                        self._backend.put_at(self._waiting(hash_, spool.size_bytes, spool), spool, found.next)
                        self._note("blob", hash_, origin.name)
                        catalog.apply(Facts(blobs=[Listed.of(hash_, self._backend.look(hash_)).row()]))
                        return
            message = "it is named, and neither the bucket nor a source has it"
            self._missing.append(Problem(kind=MissingChunk.kind, message=message, hash=Hash(hash_)))
            return
        catalog.apply(Facts(blobs=[Listed.of(hash_, found).row()]))

    def _copy_any(self, pieces: Iterator[bytes], hash_: bytes, size: int, spool: Spool) -> bool:
        if self._copy(pieces, hash_, size, spool):
            return True
        if size < 1 << 62:
            return False
        hasher = _native.BlobHasher()  # its length is not known: whatever has the hash is it
        for piece in spool.iter(0, spool.size_bytes):
            hasher.update(piece)
            hasher.take_groups()
        return spool.size_bytes > 0 and hasher.finish()[0] == hash_

    def _waiting(self, hash_: bytes, size: int, spool: Spool) -> Waiting:
        """Compute the outboard of what lies in a spool, behind it."""
        outboard = spool.size_bytes
        if size > BLOCK_BYTES:
            hasher = _native.BlobHasher()
            with OutboardBuilder() as builder:
                for piece in spool.iter(0, size):
                    hasher.update(piece)
                    builder.feed(hasher.take_groups())
                root, rest = hasher.finish()
                if root != hash_:
                    raise CorruptBlob(f"blob {hash_.hex()} changed while it was repaired", hash=Hash(hash_))
                builder.feed(rest)
                for part in builder.finish(size):
                    spool.append(part)
        return Waiting(hash_, size, 0, outboard)

    # -- names

    def _mend_names(self, bad: Bad, *, give_up: bool) -> bool:
        """Put an object of names right. What the catalog read of an older state counts only before it is given up."""
        key, bucket = bad.key, self._backend.bucket
        try:
            if read_named(bucket, key) is not None:
                return True
        except CorruptObject:
            pass
        found = bucket.get(key, max_bytes=MAX_BUNDLE_BYTES)
        raw, e_tag = (None, None) if found is None else (found[0], found[1].e_tag)
        documents = self._from_catalog(key)
        is_older = e_tag is not None and not self._was_read(key, e_tag)
        made = self._right_bytes(key, raw, [] if is_older and not give_up else documents)
        if made is None:
            message = "no source has what it said"
            if documents:
                message += ": it was changed since this catalog read it; with give_up it becomes again what that knows"
            self._missing.append(Problem(kind=CorruptObject.kind, message=message, path=key))
            return False
        data, source = made
        meta = self._backend.keep_damaged(key)
        if meta is None or meta.e_tag is None:
            bucket.create(key, data)
        else:
            bucket.replace(key, data, meta.e_tag)
        named = read_named(bucket, key)
        if named is not None:
            self._core.keeper.take_named(named)
        self._note("object of names", b"", source)
        return True

    def _right_bytes(self, key: str, raw: bytes | None, known: list[Document]) -> tuple[bytes, str] | None:
        def is_right(data: bytes) -> bool:
            try:
                parse_names(data, key)
            except HoldfastError:
                return False
            return True

        if raw is not None and (mended := mend_bit(raw, is_right)) is not None:
            return mended, COMPUTED
        found: list[tuple[int, bytes, str]] = []
        if known:
            found.append((_revision(known), encode_bundle(known, key), CATALOG))
        for origin in self._origins:
            if isinstance(origin, StoreOrigin):
                data = origin.object_at(self._core.keeper.store_id, key)
                if data is not None and is_right(data):
                    found.append((_revision(parse_names(data, key).documents), data, origin.name))
        if not found:
            return None
        _, data, source = max(
            found, key=lambda one: one[0]
        )  # others may have changed it since a catalog or copy
        self._fetched += 0 if source == CATALOG else len(data)
        return data, source

    def _from_catalog(self, key: str) -> list[Document]:
        """Give what an object said and still counts, if the catalog has read it."""
        catalog = self._core.catalog
        if not self._was_read(key):
            return []
        if key.startswith(ARTIFACTS):
            id_ = parse_id(key.removeprefix(ARTIFACTS))
            rows = catalog.ask(f"SELECT {_ARTIFACT} FROM artifacts WHERE id = ?", (id_,))
            documents: list[Document] = [(Kind.ARTIFACT, _encode(row)) for row in rows]
            deleted = catalog.ask("SELECT id, revision, deleted_ms FROM tombstones WHERE id = ?", (id_,))
            return documents + [(Kind.TOMBSTONE, encode_tombstone(Tombstone(*row))) for row in deleted]
        if key.startswith(TAGS):
            return [
                (Kind.TAG, encode_tag(TagDocument(*tag[:5], bool(tag.deleted))))
                for tag in catalog.iter_tags()
                if tag_key(tag.name) == key
            ]
        rows = catalog.ask(f"SELECT {_ARTIFACT} FROM artifacts WHERE location = ?", (place_of(key),))
        return [(Kind.ARTIFACT, _encode(row)) for row in rows]

    def _was_read(self, key: str, e_tag: str | None = None) -> bool:
        """Whether the catalog has read an object; with `e_tag`, as it is now."""
        rows = self._core.catalog.ask("SELECT e_tag FROM seen WHERE key = ?", (key,))
        return bool(rows) and e_tag in (None, rows[0][0])

    def _give_up(self, keys: Sequence[str]) -> None:
        """Take damaged objects away, but for a copy under `damaged/`."""
        for key in keys:
            if self._backend.keep_damaged(key) is not None:
                self._backend.bucket.delete([key])
        release_bad(self._core.catalog, keys)

    # -- telling

    def _note(self, what: str, hash_: bytes, source: str) -> None:
        self._mended.append(Mended(what=what, hash=Hash(hash_) if hash_ else None, source=source))

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(Progress(phase="repair", done_bytes=self._fetched, done_items=len(self._mended)))


_ARTIFACT: Final = ", ".join(ArtifactRow._fields[:-1])


def _revision(documents: Sequence[Document]) -> int:
    return max(map(revision_of, documents), default=0)


def _encode(row: tuple[object, ...]) -> bytes:
    return encode_artifact(ArtifactDocument._make(row))


def repair(
    core: ObjectCore, origins: Sequence[Origin], progress: ProgressCallback | None, *, give_up: bool
) -> RepairReport:
    """Bring back what is damaged or missing, as far as the origins have it."""
    return Repair(core, origins, progress).run(give_up=give_up)
