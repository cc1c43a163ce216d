"""Payloads by their hash, verified before they are handed on; where one copy is bad another is tried."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Protocol, TypeVar

from holdfast import _native
from holdfast.backend.log.disk import Disk
from holdfast.backend.log.handles import Handles
from holdfast.backend.log.layout import segment_path
from holdfast.errors import (
    BackendError,
    CorruptBlob,
    FormatError,
    HoldfastError,
    IntegrityError,
    MissingChunk,
    Unavailable,
)
from holdfast.facts import FLAG_ZSTD, KIND_BLOB, KIND_MASK
from holdfast.types import Hash
from holdfast.wire.document import parse_blob_head
from holdfast.wire.record import ENTRY_BYTES, FLAG_SHA256, HEADER, HEADER_BYTES, MAX_RECORD_BYTES

OFFSET_MASK: Final = (1 << 32) - 1
HEADER_STORED: Final = 7
HEADER_HASH: Final = 10
"""Where a record header's fields have the stored length and the hash."""
MAX_FOUND: Final = 10_000
MAX_LOOKS: Final = 8
MAX_SUSPECTED: Final = 3
"""How many doubtful places lead to a rebuild of the catalog, in the life of one open store; one puts all right."""


class Place(NamedTuple):
    """Where a payload lies: a row of the catalog without its key."""

    location: int
    stored_bytes: int
    plain_bytes: int
    flags: int


AnyPlace = TypeVar("AnyPlace", Place, tuple[int, int])


class DocumentPlace(Protocol):
    """Where the record of a large blob is."""

    @property
    def location(self) -> int: ...
    @property
    def stored(self) -> int: ...
    @property
    def flags(self) -> int: ...


class Index(Protocol):
    """What reading needs from the catalog."""

    def find_blobs(self, hashes: Sequence[bytes]) -> Mapping[bytes, DocumentPlace]: ...

    def find_data(self, hashes: Sequence[bytes]) -> dict[bytes, tuple[int, int, int, int]]: ...
    def copies(self, hash: bytes) -> Sequence[tuple[int, int, int, int]]: ...
    def is_current(self) -> bool: ...


class StaleIndex(HoldfastError):
    """The catalog says what storage does not: it is to be rebuilt, and the question asked again. Never for users.

    `fault` is the error to raise where that cannot help.
    """

    kind = "stale_index"


def place_text(location: int) -> str:
    """Say where a record is, for messages."""
    return f"segment {location >> 32}, offset {location & OFFSET_MASK}"


class Payloads:
    """Payloads by their hash: read, decompressed, verified; another copy is tried where one is bad."""

    def __init__(self, disk: Disk, root: str, index: Callable[[], Index]) -> None:
        self.handles = Handles(disk, root)
        self._disk = disk
        self._root = root
        self._index = index
        self._local = threading.local()
        self._suspected: set[bytes] = set()
        self._last_suspected = b""
        self.found: dict[int, tuple[bytes, str]] = {}
        """Damage that was met and is not in the log yet: hash of the record and what is wrong, by place."""
        self.bad_outboards = 0
        """How often an outboard did not verify, and the chunks' own hashes decided."""

    def suspect(self, hash_: bytes, error: IntegrityError) -> HoldfastError:
        """Give the error to raise when the fault may be the catalog's: the first time for a hash it is asked anew."""
        if hash_ in self._suspected or len(self._suspected) >= MAX_SUSPECTED:
            return error
        self._suspected.add(hash_)
        self._last_suspected = hash_
        return StaleIndex(f"{error}; or the catalog is wrong", fault=error)

    def trust_again(self) -> None:
        """The catalog was right in its time: what was suspected before the last hash counts no longer."""
        self._suspected = {self._last_suspected}

    def find(self, hash_: bytes) -> Place:
        """Look a payload up; `MissingChunk` when the catalog has no row."""
        row = self._index().find_data((hash_,)).get(hash_)
        if row is None:
            missing = MissingChunk(f"the payload {hash_.hex()} is named and not here", hash=Hash(hash_))
            raise self.suspect(hash_, missing)
        return Place._make(row)

    def load(self, hash_: bytes) -> bytes:
        """Give the verified payload of a hash."""
        return self.read(hash_, self.find(hash_))

    def read(self, hash_: bytes, place: Place) -> bytes:
        """Give a verified payload from its place, or from another copy if that one is bad, unreadable or moved."""
        try:
            return self.read_at(hash_, place)
        except (FileNotFoundError, IntegrityError, BackendError) as error:
            return self._read_elsewhere(hash_, place, error)

    def read_at(self, hash_: bytes, place: Place) -> bytes:
        """Give a verified payload from exactly this place."""
        location, stored, plain, flags = place
        data = self._pread(location, stored)
        if flags & FLAG_ZSTD:
            data = self.decompress(data, plain, hash_, location)
        elif len(data) != plain:
            raise self.corrupt(hash_, location, "is cut off")
        if not matches(data, hash_, flags):
            raise self.corrupt(hash_, location, "does not match its hash")
        return data

    def read_document(self, blob: bytes, location: int, stored: int) -> bytes:
        """Give the payload of the record that describes a large blob, from its place, or from another copy."""
        try:
            return self._document_at(blob, (location, stored))
        except (FileNotFoundError, IntegrityError, FormatError, BackendError) as error:
            return self._document_elsewhere(blob, (location, stored), error)

    def _document_elsewhere(self, blob: bytes, tried: tuple[int, int], error: Exception) -> bytes:
        index = self._index()

        def places() -> list[tuple[int, int]]:
            rows = [one[:2] for one in index.copies(blob) if one[3] & KIND_MASK == KIND_BLOB]
            row = index.find_blobs((blob,)).get(blob)
            if row is not None and row.flags & KIND_MASK == KIND_BLOB:
                rows.insert(0, (row.location, row.stored))
            return rows

        found = _first_sound(places, tried, error, lambda place: self._document_at(blob, place))
        if found is not None:
            return found
        if isinstance(error, FileNotFoundError):
            raise self._gone(f"the record of blob {blob.hex()}", blob, tried[0]) from error
        if isinstance(error, IntegrityError):
            raise self.suspect(blob, error)
        raise error

    def _document_at(self, blob: bytes, place: tuple[int, int]) -> bytes:
        """Give the payload of the record at exactly this place, checked against the record's own header."""
        location, stored = place
        record = self._pread(location, stored, with_header=True)
        entries, consumed, _ = _native.scan(record, location >> 32, location & OFFSET_MASK, deep=True)
        payload = record[HEADER_BYTES:]
        is_whole = consumed == HEADER_BYTES + stored
        if is_whole and _native.blake3(payload) == entries[ENTRY_BYTES - 32 : ENTRY_BYTES]:
            if parse_blob_head(payload)[0] == blob:
                return payload
            raise self.corrupt(blob, location, "is not what describes it")
        if _native.find_header(record[:HEADER_BYTES], location >> 32, location & OFFSET_MASK, 0) == 0:
            hash_ = HEADER.unpack(record[:HEADER_BYTES])[HEADER_HASH]
            self.note(location, hash_, "read: does not match its hash")
        raise self.corrupt(blob, location, "does not match its record")

    def note(self, location: int, hash_: bytes, reason: str) -> None:
        """Remember damage, for who may write it down: a reader holds no lock and waits for no disk."""
        if len(self.found) < MAX_FOUND:
            self.found.setdefault(location, (hash_, reason))

    def decompress(self, data: bytes | memoryview, plain_bytes: int, hash_: bytes, location: int) -> bytes:
        """Undo compression; never makes more than the record says, nor than a record may have."""
        try:
            decompressor = self._local.decompressor
        except AttributeError:
            import zstandard

            decompressor = self._local.decompressor = zstandard.ZstdDecompressor()
            self._local.zstandard = zstandard
        zstandard = self._local.zstandard
        try:
            if plain_bytes > MAX_RECORD_BYTES or zstandard.frame_content_size(data) != plain_bytes:
                raise self.corrupt(hash_, location, "says another size than it has")
            plain: bytes = decompressor.decompress(data)
        except zstandard.ZstdError:
            raise self.corrupt(hash_, location, "cannot be decompressed") from None
        return plain

    def corrupt(self, hash_: bytes, location: int, why: str, offset_bytes: int | None = None) -> CorruptBlob:
        """Make the error for damage at a place."""
        segment, offset = location >> 32, location & OFFSET_MASK
        return CorruptBlob(
            f"the payload {hash_.hex()} in {place_text(location)} {why}: the bytes on disk are damaged",
            hash=Hash(hash_),
            segment=segment,
            offset_bytes=offset if offset_bytes is None else offset_bytes,
            path=segment_path(self._root, segment),
        )

    def _pread(self, location: int, stored: int, *, with_header: bool = False) -> bytes:
        segment = location >> 32
        offset = location & OFFSET_MASK
        try:
            if with_header:
                return self.handles.read(segment, offset, stored + HEADER_BYTES)
            return self.handles.read(segment, offset + HEADER_BYTES, stored)
        except (FileNotFoundError, BackendError):
            raise
        except OSError as error:
            path = segment_path(self._root, segment)
            raise Unavailable(
                f"cannot read {path} at {location & OFFSET_MASK}: {error}",
                path=path,
                segment=segment,
                offset_bytes=location & OFFSET_MASK,
                errno=error.errno,
            ) from error

    def _read_elsewhere(self, hash_: bytes, tried: Place, error: Exception) -> bytes:
        """Look again: the segment may have been compacted away, or there may be a second copy."""
        if isinstance(error, IntegrityError) and self._is_record_of(hash_, tried):
            self.note(tried.location, hash_, "read: does not match its hash")
        index = self._index()

        def places() -> list[Place]:
            return list(map(Place._make, [*index.find_data((hash_,)).values(), *index.copies(hash_)]))

        found = _first_sound(places, tried, error, lambda place: self.read_at(hash_, place))
        if found is not None:
            return found
        if isinstance(error, FileNotFoundError):
            raise self._gone(f"the payload {hash_.hex()}", hash_, tried.location) from error
        if isinstance(error, IntegrityError) and not self._is_record_of(hash_, tried):
            raise self.suspect(hash_, error)
        raise error

    def _gone(self, what: str, hash_: bytes, location: int) -> HoldfastError:
        path = segment_path(self._root, location >> 32)
        gone = MissingChunk(
            f"{what} should be in {place_text(location)}, and {path} is gone",
            hash=Hash(hash_),
            segment=location >> 32,
            offset_bytes=location & OFFSET_MASK,
            path=path,
        )
        return self.suspect(hash_, gone)

    def _is_record_of(self, hash_: bytes, place: Place) -> bool:
        """Whether the record at a place is, by its own header, the one that the catalog says is there."""
        segment, offset = place.location >> 32, place.location & OFFSET_MASK
        try:
            header = self.handles.read(segment, offset, HEADER_BYTES)
        except OSError:  # the payload could be read a moment ago: the disk's fault, not the catalog's
            return True
        if _native.find_header(header, segment, offset, 0) != 0:
            return False
        fields = HEADER.unpack(header)
        return bool(fields[HEADER_HASH] == hash_ and fields[HEADER_STORED] == place.stored_bytes)


def _first_sound(
    places: Callable[[], list[AnyPlace]], tried: AnyPlace, error: Exception, read: Callable[[AnyPlace], bytes]
) -> bytes | None:
    """Give what is read at the first of the places that is sound; they are looked up again while anything moves."""
    for _ in range(MAX_LOOKS):
        found = places()
        for place in found:
            if place == tried and not isinstance(error, FileNotFoundError):
                continue
            with suppress(FileNotFoundError, IntegrityError, FormatError, BackendError):
                return read(place)
        if found == places():
            break  # nothing moved while we looked
    return None


def matches(data: bytes | memoryview, hash_: bytes, flags: int) -> bool:
    """Whether a plain payload hashes to its name."""
    if flags & FLAG_SHA256:
        import hashlib

        return hashlib.sha256(data).digest() == hash_
    return _native.blake3(data) == hash_
