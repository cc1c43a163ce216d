"""Where a repair finds what is damaged or missing: in the store itself, in the sources, or computed from its blob.

Whatever is given here has been verified against its hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from holdfast import _native
from holdfast.backend.log.payloads import OFFSET_MASK, Place
from holdfast.backend.log.segment import slice_entries
from holdfast.bao import OutboardBuilder
from holdfast.care.compare import read_segment
from holdfast.care.framing import mend_bit
from holdfast.care.origins import Origin, right
from holdfast.care.rows import Row, iter_rows
from holdfast.care.wanted import Owner, Wanted
from holdfast.core import MENDABLE
from holdfast.errors import BackendError, HoldfastError
from holdfast.facts import FLAG_BLOB
from holdfast.log_core import LogCore
from holdfast.wire.pages import StreamWriter
from holdfast.wire.record import HEADER_BYTES, Kind, iter_entries

HERE: Final = "this store"
COMPUTED: Final = "computed"
COPY: Final = "another copy of this store"
CATALOG: Final = "the catalog"

Found = tuple[bytes, str]
"""What was looked for, and where it comes from."""


class Finder:
    """Looks for pieces and documents. `owners`: which blobs a piece belongs to, and where in them."""

    def __init__(self, core: LogCore, origins: Sequence[Origin]) -> None:
        self.owners: Mapping[bytes, Sequence[Owner]] = {}
        self.fetched_bytes = 0
        self._core = core
        self._backend = core.backend
        self._origins = origins
        self._documents: dict[bytes, Found] | None = None

    def copy_of(self, segment: int, start: int, stop: int, later: bytes) -> bytes | None:
        """Give a stretch of a segment from another copy of this very store; not one that was let go of."""
        if start in self._core.catalog.repaired(segment):
            return None
        for origin in self._origins:
            data = origin.stretch(segment, start, stop, later)
            if data is not None:
                self.fetched_bytes += len(data)
                return data
        return None

    def payload(self, one: Wanted) -> Found | None:
        """Give a payload: as it lies, as an origin has it, or out of one of the blobs that it belongs to."""
        assert one.row is not None
        payloads = self._backend.payloads
        try:
            _, stored, plain, flags = one.row.columns
            data: bytes | None = payloads.read(one.hash, Place(one.row.location, stored, plain, flags))
        except (HoldfastError, FileNotFoundError):
            data = None
        if data is not None:
            return data, HERE
        for origin in self._origins:
            data = right(origin.payload(one.hash, one.flags), one.hash, one.flags)
            if data is not None:
                self.fetched_bytes += len(data)
                return data, origin.name
        for owner in self.owners.get(one.hash, ()):
            found = self._from_owner(one, owner)
            if found is not None:
                return found
        if one.flags & FLAG_BLOB:
            return self.range(one, one.hash, one.row.columns[2], 0, one.row.columns[2])
        return None

    def _from_owner(self, one: Wanted, owner: Owner) -> Found | None:
        assert one.row is not None
        if owner.offset is not None:
            return self.range(one, owner.blob, owner.size, owner.offset, one.row.columns[2])
        if owner.kind == Kind.OUTBOARD_PAGE:
            for page in self.outboard_pages(owner.blob):
                if _native.blake3(page) == one.hash:
                    return page, COMPUTED
        return None

    def range(self, one: Wanted, blob: bytes, size: int, offset: int, length: int) -> Found | None:
        """Give a piece as a range of its blob, from an origin."""
        for origin in self._origins:
            for part in origin.ranges(blob, size, offset, length):
                data = right(part, one.hash, one.flags)
                if data is not None:
                    self.fetched_bytes += len(data)
                    return data, origin.name
        return None

    def outboard_pages(self, blob: bytes) -> Iterator[bytes]:
        """Compute the outboard of a blob from its data, and give its pages, inner ones too."""
        core = self._core
        pages: list[bytes] = []

        def emit(page: bytes) -> bytes:
            pages.append(page)
            return _native.blake3(page)

        try:
            reader = core.backend.reader(core.blob(blob))
            hasher = _native.BlobHasher()
            writer = StreamWriter(emit)
            with OutboardBuilder() as builder:
                for piece in reader.iter_bytes(0, reader.size_bytes):
                    hasher.update(piece)
                    builder.feed(hasher.take_groups())
                root, rest = hasher.finish()
                builder.feed(rest)
                for part in builder.finish(reader.size_bytes):
                    writer.write(part)
                    yield from _drain(pages)
                writer.finish()
            if root == blob:
                yield from _drain(pages)
        except (HoldfastError, *MENDABLE):
            return

    def document(self, one: Wanted) -> Found | None:
        """Give the document of a record: what its row says, its own bytes but for one bit, or another store's."""
        known = None if one.row is None else one.row.document
        if known is not None and (not one.hash or _native.blake3(known) == one.hash):
            return known, CATALOG
        raw = self._raw(one)
        if raw is not None and one.hash:
            if _native.blake3(raw) == one.hash:
                return raw, HERE
            mended = mend_bit(raw, lambda trial: _native.blake3(trial) == one.hash)
            if mended is not None:
                return mended, COMPUTED
        if one.kind == Kind.BLOB and one.row is not None:
            for origin in self._origins if one.hash else ():
                document = origin.blob_document(one.row.key)
                if document is not None and _native.blake3(document) == one.hash:
                    return document, origin.name
            return self._description(one.row)
        return self._all_documents().get(one.hash) or self._from_copy(one)

    def _description(self, row: Row) -> Found | None:
        """Give what describes a blob as it lies here, there or elsewhere.

        It may be sound where the end of its segment, or its commit, is gone; and it may have been put once more.
        """
        stored = row.columns[2 if row.table == "blobs" else 1]
        try:
            return self._backend.payloads.read_document(row.key, row.location, stored), HERE
        except (HoldfastError, *MENDABLE):
            return None

    def _from_copy(self, one: Wanted) -> Found | None:
        """Give a payload as another copy of this very store has it at the same place."""
        index = None if one.place is None else read_segment(self._core, one.place >> 32)
        if one.place is None or index is None:
            return None
        start = one.place & OFFSET_MASK
        for entry in iter_entries(slice_entries(index.entries, start, start + 1)):
            later = slice_entries(index.entries, start, 1 << 32)
            record = self.copy_of(one.place >> 32, start, entry.stop, later)
            if record is not None and _native.blake3(record[HEADER_BYTES:]) == one.hash:
                return record[HEADER_BYTES:], COPY
        return None

    def _raw(self, one: Wanted) -> bytes | None:
        """Read a damaged payload as it lies."""
        if one.place is None:
            return None
        index = read_segment(self._core, one.place >> 32)
        offset = one.place & OFFSET_MASK
        for entry in iter_entries(index.entries) if index is not None else ():
            if entry.offset == offset:
                try:
                    return self._backend.payloads.handles.read(
                        one.place >> 32, offset + HEADER_BYTES, entry.stored_bytes
                    )
                except (BackendError, OSError):
                    return None
        return None

    def _all_documents(self) -> dict[bytes, Found]:
        """Give, by hash, the documents that this catalog or another store has: looked for once, when one is needed."""
        if self._documents is None:
            wanted = {hash_ for _, hash_, _ in self._core.catalog.quarantined()}
            found: dict[bytes, Found] = {}
            places: Iterable[tuple[str, Iterable[Row]]] = [
                (CATALOG, iter_rows(self._core.catalog)),
                *((origin.name, origin.rows()) for origin in self._origins),
            ]
            for name, rows in places:
                for row in rows:
                    document = row.document
                    if document is not None and (hash_ := _native.blake3(document)) in wanted:
                        found.setdefault(hash_, (document, name))
            self._documents = found
        return self._documents


def _drain(pages: list[bytes]) -> Iterator[bytes]:
    while pages:
        yield pages.pop(0)
