"""Where repair takes bytes from: other stores, and plain files or directories. Nothing they give is trusted.

A store gives payloads by their hash where it has them as such, else ranges of blobs. A file gives ranges of whatever
blob has its length: the hash of what is wanted decides whether it is the one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

from holdfast import _native
from holdfast.backend.log.payloads import matches
from holdfast.care.compare import read_segment
from holdfast.care.rows import Row, iter_rows
from holdfast.core import MENDABLE
from holdfast.errors import HoldfastError, InvalidInput, SourceNotFound
from holdfast.log_core import LogCore
from holdfast.types import Hash
from holdfast.wire.record import Kind, iter_entries

if TYPE_CHECKING:
    from holdfast.store import Store

PIECE_BYTES: Final = 1 << 20


class Origin(Protocol):
    """One place to take bytes from. None, or nothing, means: not here."""

    name: str

    def payload(self, hash_: bytes, flags: int) -> bytes | None:
        """Give a payload by its own hash."""

    def ranges(self, blob: bytes, size: int, offset: int, length: int) -> Iterable[bytes]:
        """Give what may be this range of this blob of `size` bytes."""

    def blobs(self, blob: bytes, size: int | None) -> Iterable[Iterator[bytes]]:
        """Give, in pieces, what may be this whole blob."""

    def blob_document(self, blob: bytes) -> bytes | None:
        """Give the document that describes a large blob."""

    def rows(self) -> Iterable[Row]:
        """Give the rows of what it has under names."""

    def stretch(self, segment: int, start: int, stop: int, later: bytes) -> bytes | None:
        """Give the whole records of this stretch of a segment, where it is a copy of the very same segment.

        `later`: entries of what stands behind. A commit among them that is here too proves it: its id is random.
        """

    def close(self) -> None:
        """Let go of it."""


class StoreOrigin:
    """Another store, of any backend."""

    def __init__(self, store: Store, *, owned: bool) -> None:
        self.name = store.location
        self._store = store
        self._log = store._core if isinstance(store._core, LogCore) else None
        self._owned = owned

    def payload(self, hash_: bytes, flags: int) -> bytes | None:
        core = self._log
        if core is None:
            return None
        try:
            found = core.catalog.find_data((hash_,)).get(hash_)
            return None if found is None else core.backend.payloads.load(hash_)
        except (HoldfastError, *MENDABLE):
            return None

    def ranges(self, blob: bytes, size: int, offset: int, length: int) -> Iterator[bytes]:
        try:
            yield self._store.read(Hash(blob), offset, length)
        except HoldfastError:
            return

    def blobs(self, blob: bytes, size: int | None) -> Iterator[Iterator[bytes]]:
        if self._store.exists(Hash(blob)):
            yield self._store.iter_bytes(Hash(blob))

    def blob_document(self, blob: bytes) -> bytes | None:
        core = self._log
        if core is None:
            return None
        row = core.catalog.find_blob(blob)
        try:
            return (
                None if row is None else core.backend.payloads.read_document(blob, row.location, row.stored)
            )
        except (HoldfastError, *MENDABLE):
            return None

    def rows(self) -> Iterator[Row]:
        return iter_rows(self._store._core.catalog)

    def stretch(self, segment: int, start: int, stop: int, later: bytes) -> bytes | None:
        core = self._log
        if core is None:
            return None
        try:
            index = read_segment(core, segment)
            if index is None or stop > index.size_bytes:
                return None
            ids = {entry for entry in iter_entries(index.entries) if entry.kind == Kind.COMMIT}
            if not any(entry in ids for entry in iter_entries(later) if entry.kind == Kind.COMMIT):
                return None
            data = core.backend.payloads.handles.read(segment, start, stop - start)
        except (HoldfastError, OSError):
            return None
        _, consumed, _ = _native.scan(data, segment, start, deep=True)
        return data if consumed == stop - start == len(data) else None

    def object_at(self, store_id: bytes, key: str) -> bytes | None:
        """Give the object at a key, where this is a copy of the very same store in a bucket."""
        from holdfast.object_core import ObjectCore
        from holdfast.wire.bundle import MAX_BUNDLE_BYTES

        core = self._store._core
        if not isinstance(core, ObjectCore) or core.keeper.store_id != store_id:
            return None
        found = core.backend.bucket.get(key, max_bytes=MAX_BUNDLE_BYTES)
        return None if found is None else found[0]

    def close(self) -> None:
        if self._owned:
            self._store.close()


class FileOrigin:
    """A plain file, or a directory with plain files somewhere in it, that hold original bytes."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._by_size: dict[int, list[str]] = {}
        if os.path.isdir(path):
            for directory, _, names in os.walk(path):
                for name in names:
                    self._add(f"{directory}/{name}")
        elif os.path.exists(path):
            self._add(path)
        else:
            raise SourceNotFound(f"there is nothing at {path} to repair from", path=path)

    def _add(self, path: str) -> None:
        if os.path.isfile(path) and not os.path.islink(path):
            self._by_size.setdefault(os.path.getsize(path), []).append(path)

    def payload(self, hash_: bytes, flags: int) -> bytes | None:
        return None

    def ranges(self, blob: bytes, size: int, offset: int, length: int) -> Iterator[bytes]:
        for path in self._by_size.get(size, ()):
            try:
                with open(path, "rb", buffering=0) as file:
                    yield os.pread(file.fileno(), length, offset)
            except OSError:
                continue

    def blobs(self, blob: bytes, size: int | None) -> Iterator[Iterator[bytes]]:
        for length, paths in self._by_size.items():
            if size is None or length == size:
                yield from map(_pieces, paths)

    def blob_document(self, blob: bytes) -> bytes | None:
        return None

    def rows(self) -> tuple[Row, ...]:
        return ()

    def stretch(self, segment: int, start: int, stop: int, later: bytes) -> bytes | None:
        return None

    def close(self) -> None:
        pass


def _pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def open_origin(source: Store | str | os.PathLike[str]) -> Origin:
    """Give the origin for a store, the location of one, a file or a directory."""
    import holdfast

    if not isinstance(source, (str, os.PathLike)):
        if not hasattr(source, "iter_bytes"):
            raise InvalidInput(f"a source is a store, its location, or a path, not {type(source).__name__}")
        return StoreOrigin(source, owned=False)
    text = os.fspath(source)
    if "://" in text or os.path.exists(f"{text}/store.json"):
        return StoreOrigin(holdfast.open(text, read_only=True), owned=True)
    return FileOrigin(text)


def right(data: bytes | None, hash_: bytes, flags: int) -> bytes | None:
    """Give the data if it is what the hash names."""
    return data if data is not None and matches(data, hash_, flags) else None
