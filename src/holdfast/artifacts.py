"""Artifacts: what people store, with the words that go with it. Stored, listed, deleted, restored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.commit import Group
from holdfast.catalog import ArtifactEntry
from holdfast.core import Core, Watch
from holdfast.errors import ArtifactNotFound, BlobNotFound, Conflict, EmptyData, InvalidInput, TooLarge
from holdfast.ingest import BlobStream, Ingest, Stored
from holdfast.sources import WINDOW_BYTES, iter_windows, source_name, source_size
from holdfast.types import (
    BLOCK_BYTES,
    Artifact,
    BlobFormat,
    BytesLike,
    Hash,
    ProgressCallback,
    PutItem,
    Scalar,
    Source,
    id_text,
    new_ids,
    now_ms,
    parse_id,
    to_datetime,
)
from holdfast.wire.document import (
    ArtifactDocument,
    Details,
    Tombstone,
    encode_artifact,
    encode_details,
    encode_tombstone,
    parse_details,
)
from holdfast.wire.record import Kind

FORMATS: Final = (BlobFormat.RAW, BlobFormat.HASH_SEQ)
BATCH_BYTES: Final = 8 << 20
BATCH_ITEMS: Final = 4_096
MAX_TEXT_BYTES: Final = 4_096
"""The longest filename, tag, link, creator or metadata key."""


class Words(NamedTuple):
    """What a caller says about an artifact, as it came in."""

    filename: str | None = None
    content_type: str | None = None
    tags: Iterable[str] = ()
    links: Iterable[str] = ()
    requires: Iterable[Hash | Artifact | str] = ()
    metadata: Mapping[str, Scalar] | None = None
    created_by: str | None = None


def describe(core: Core, words: Words, default_name: str | None = None) -> Details:
    """Check the words and make them what is stored; `InvalidInput` says which one will not do."""
    filename = words.filename if words.filename is not None else default_name
    return Details(
        filename=_text("filename", filename),
        content_type=_text("content_type", words.content_type)
        or guess_type(filename)
        or core.options.default_content_type,
        created_by=_text("created_by", words.created_by),
        tags=_texts("tags", words.tags),
        links=_texts("links", words.links),
        requires=_requirements(core, words.requires),
        metadata=_metadata(words.metadata),
    )


def _text(what: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidInput(f"{what} is text, not {type(value).__name__}")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} is not valid UTF-8: {value!r:.100}") from None
    if length > MAX_TEXT_BYTES:
        raise InvalidInput(f"{what} has {length} bytes; {MAX_TEXT_BYTES} are allowed")
    return value


def _texts(what: str, values: Iterable[str]) -> tuple[str, ...]:
    if not values:
        return ()
    if isinstance(values, (str, bytes)):
        raise InvalidInput(f"{what} is a list of texts, not one: [{values!r:.100}]")
    kept = dict.fromkeys(_text(what, value) for value in values)
    if None in kept or "" in kept:
        raise InvalidInput(f"{what} holds an empty text")
    return tuple(filter(None, kept))


def _metadata(values: Mapping[str, Scalar] | None) -> dict[str, Scalar]:
    if not values:
        return {}
    checked: dict[str, Scalar] = {}
    for key, value in values.items():
        name = _text("a metadata key", key) or ""
        if isinstance(value, float) and value - value != 0:
            raise InvalidInput(f"metadata {key!r:.100} is {value}; JSON has no such number")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise InvalidInput(f"metadata {key!r:.100} does not fit 64 bits: store it as text")
        if value is not None and not isinstance(value, (str, int, float, bool)):
            raise InvalidInput(
                f"metadata {key!r:.100} is {type(value).__name__}; text, numbers, true, false and null are kept"
            )
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise InvalidInput(f"metadata {key!r:.100} is not valid UTF-8") from None
        checked[name] = value
    return checked


def _requirements(core: Core, values: Iterable[Hash | Artifact | str]) -> tuple[str, ...]:
    """Write requirements as `blake3:HEX` or an id; all of them must be here."""
    if not values:
        return ()
    if isinstance(values, (str, bytes, Hash, Artifact)):
        raise InvalidInput("requires is a list of hashes and artifacts, not one")
    written = []
    for value in values:
        if isinstance(value, Hash):
            core.blob(value)
            written.append(f"blake3:{value}")
        elif isinstance(value, str) and value.startswith("blake3:"):
            hash_ = Hash.parse(value)
            core.blob(hash_)
            written.append(f"blake3:{hash_}")
        elif isinstance(value, (Artifact, str)):
            written.append(id_text(core.artifact(value).id))
        else:
            raise InvalidInput(f"requires holds hashes, artifacts and ids, not {type(value).__name__}")
    return tuple(dict.fromkeys(written))


@lru_cache(1024)
def _type_of(ending: str) -> str | None:
    import mimetypes  # reads the system's tables: only who needs a type pays for it

    return mimetypes.guess_type(f"name.{ending}")[0]


def guess_type(filename: str | None) -> str | None:
    """Guess a content type from the ending of a name."""
    if not filename:
        return None
    _, dot, ending = filename.rpartition(".")
    return _type_of(ending.lower()) if dot and len(ending) < 20 else None


class Artifacts:
    """The room of artifacts."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # -- storing

    def put(self, source: Source, words: Words, progress: ProgressCallback | None) -> Artifact:
        core = self._core
        with core.adding() as (group, ingest):
            details = describe(core, words, source_name(source))
            if isinstance(source, bytes) and len(source) <= BLOCK_BYTES and progress is None:
                ingest.check_size(len(source))
                (stored,) = ingest.add_many((source,))
            else:
                size = source_size(source)
                if size is not None:
                    ingest.check_size(size)
                stored = ingest.add(iter_windows(source, core.pool), Watch(progress, "put", source))
            self.check_empty(stored)
            return self.acknowledge(group, [(stored, details, 0)])[0]

    def put_many(
        self,
        items: Iterable[PutItem | Source],
        words: Words,
        *,
        max_items: int,
        progress: ProgressCallback | None,
    ) -> list[Artifact]:
        core = self._core
        watch = Watch(progress, "put")
        with core.adding() as (group, ingest):
            common = describe(core, words)
            batch = SourceBatch(ingest)
            described: list[Details] = []
            for item in items:
                if len(described) == max_items:
                    raise TooLarge(f"more than {max_items} items in one call", limit=max_items)
                source: Source = item.source if isinstance(item, PutItem) else item
                described.append(self._details_of(item, source, words, common))
                watch(batch.add(source))
            stored = batch.finish()
            for one in stored:
                self.check_empty(one)
            if not stored:
                return []
            return self.acknowledge(group, [(s, d, 0) for s, d in zip(stored, described, strict=True)])

    def _details_of(self, item: Any, source: Source, words: Words, common: Details) -> Details:
        """Give the words of one item: its own in place of the call's."""
        if not isinstance(item, PutItem):
            if isinstance(source, bytes):
                return common
            own = words
        else:
            given = (
                item.filename,
                item.content_type,
                item.tags,
                item.links,
                item.requires,
                item.metadata,
                item.created_by,
            )
            pairs: Any = zip(given, words, strict=True)
            own = Words._make(mine if mine is not None else default for mine, default in pairs)
        return describe(self._core, own, source_name(source))

    def check_empty(self, stored: Stored) -> None:
        """Refuse an empty blob where the configuration does not allow it."""
        if not stored.size_bytes and not self._core.options.allow_empty:
            raise EmptyData("the source has no bytes; set limits.allow_empty if empty data is meant")

    def acknowledge(self, group: Group, items: Sequence[tuple[Stored, Details, int]]) -> list[Artifact]:
        """Append the artifacts' documents, commit, and give them: (blob, words, format) each."""
        time_ms = now_ms()
        ids = new_ids(len(items), time_ms)
        encoded: dict[int, bytes] = {}
        documents: list[bytes] = []
        for raw, (stored, details, format_) in zip(ids, items, strict=True):
            json = encoded.get(id(details))
            if json is None:
                json = encoded[id(details)] = encode_details(details)
            documents.append(
                encode_artifact(
                    ArtifactDocument(
                        raw,
                        1,
                        stored.hash,
                        stored.size_bytes,
                        format_,
                        time_ms,
                        time_ms,
                        stored.chunk_count,
                        json,
                    )
                )
            )
        add_documents(group, Kind.ARTIFACT, documents)
        durability = group.commit()
        time = to_datetime(time_ms)
        return [
            Artifact(
                id=id_text(raw),
                hash=Hash(stored.hash),
                size_bytes=stored.size_bytes,
                format=FORMATS[format_],
                filename=details.filename,
                content_type=details.content_type,
                checksum=details.checksum,
                chunk_count=stored.chunk_count,
                created_at=time,
                modified_at=time,
                created_by=details.created_by,
                tags=details.tags,
                links=details.links,
                requires=details.requires,
                metadata=details.metadata,
                durability=durability,
            )
            for raw, (stored, details, format_) in zip(ids, items, strict=True)
        ]

    # -- finding

    def info(self, ref: Artifact | str) -> Artifact:
        return self.view(self._core.artifact(ref))

    def find(
        self, *, deleted: bool = False, limit: int | None = None, after: Artifact | str | None = None
    ) -> Iterator[Artifact]:
        core = self._core
        if limit is not None and limit < 0:
            raise InvalidInput(f"limit is {limit}; it cannot be negative")
        start = None if after is None else parse_id(after.id if isinstance(after, Artifact) else after)
        for entry in core.catalog.iter_artifacts(deleted=deleted, after=start, limit=limit):
            yield self.view(entry)

    def view(self, entry: ArtifactEntry) -> Artifact:
        """Make a row what people see."""
        details = parse_details(entry.doc)
        deleted_ms = entry.deleted_ms
        return Artifact(
            id=id_text(entry.id),
            hash=Hash(entry.hash),
            size_bytes=entry.size,
            format=FORMATS[entry.format],
            filename=details.filename,
            content_type=details.content_type,
            checksum=details.checksum,
            chunk_count=entry.chunks,
            created_at=to_datetime(entry.created_ms),
            modified_at=to_datetime(entry.modified_ms),
            revision=entry.revision,
            created_by=details.created_by,
            tags=details.tags,
            links=details.links,
            requires=details.requires,
            metadata=details.metadata,
            durability=self._core.backend.durability,
            deleted_at=None if deleted_ms is None else to_datetime(deleted_ms),
        )

    # -- deleting and restoring

    def delete(self, ref: Artifact | str) -> None:
        with self._core.changing() as group:
            entry = self._core.artifact(ref)
            tombstone = Tombstone(entry.id, entry.revision + 1, now_ms())
            add_documents(group, Kind.TOMBSTONE, [encode_tombstone(tombstone)])

    def restore(self, ref: Artifact | str) -> Artifact:
        core = self._core
        with core.changing() as group:
            try:
                entry = core.artifact(ref, deleted=True)
            except ArtifactNotFound:
                core.artifact(ref)
                raise Conflict("the artifact is not deleted", id=str(ref)) from None
            try:
                core.blob(entry.hash)
            except BlobNotFound as error:
                raise ArtifactNotFound(
                    f"the bytes of artifact {id_text(entry.id)} are gone", id=id_text(entry.id)
                ) from error
            document = ArtifactDocument(
                entry.id,
                entry.revision + 2,  # the tombstone has the one between
                entry.hash,
                entry.size,
                entry.format,
                entry.created_ms,
                now_ms(),
                entry.chunks,
                entry.doc,
            )
            add_documents(group, Kind.ARTIFACT, [encode_artifact(document)])
        return self.info(id_text(entry.id))


class SourceBatch:
    """Gathers sources so that blobs in memory are hashed and looked up together."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._held: list[BytesLike] = []
        self._bytes = 0
        self._stored: list[Stored] = []

    def add(self, source: Source) -> int:
        """Take one source; gives its size in bytes."""
        if isinstance(source, bytes) and len(source) <= WINDOW_BYTES:
            return self._hold(source)
        windows = iter_windows(source)
        first = next(windows, b"")
        if len(first) < WINDOW_BYTES:
            return self._hold(first)
        self._flush()
        with self._ingest.stream() as stream:
            stream.push(first)
            for window in windows:
                stream.push(window)
            self._stored.append(stream.finish())
        return self._stored[-1].size_bytes

    def finish(self) -> list[Stored]:
        """Give all blobs in order."""
        self._flush()
        return self._stored

    def _hold(self, data: BytesLike) -> int:
        self._ingest.check_size(len(data))
        self._held.append(data)
        self._bytes += len(data)
        if self._bytes >= BATCH_BYTES or len(self._held) >= BATCH_ITEMS:
            self._flush()
        return len(data)

    def _flush(self) -> None:
        if self._held:
            self._stored += self._ingest.add_many(self._held)
            self._held, self._bytes = [], 0


def add_documents(group: Group, kind: Kind, documents: list[bytes]) -> None:
    """Append documents, hashed in one call."""
    count = len(documents)
    group.add(
        bytes((kind,)) * count,
        bytes(count),
        _native.blake3_list(documents),
        [len(document) for document in documents],
        documents,
    )


class Writer:
    """A put that is pushed: `write`, then `commit` (on leaving the `with` block) or `abort` (on an exception).

    Memory is bounded: `write` blocks while the store cannot keep up. One thread at a time.
    """

    def __init__(self, core: Core, artifacts: Artifacts, words: Words) -> None:
        self._core = core
        self._artifacts = artifacts
        self._details = describe(core, words)
        self._adding = core.adding()
        self._group, ingest = self._adding.__enter__()
        self._stream: BlobStream | None = ingest.stream()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._artifact: Artifact | None = None
        self.offset_bytes = 0
        """How many bytes were written."""

    @property
    def artifact(self) -> Artifact:
        """What was stored, after the commit."""
        if self._artifact is None:
            raise InvalidInput("nothing was committed yet")
        return self._artifact

    def write(self, data: BytesLike) -> int:
        """Append bytes; gives their number."""
        stream = self._open_stream()
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InvalidInput(f"bytes are needed, not {type(data).__name__}")
        piece = bytes(data)
        self._pending.append(piece)
        self._pending_bytes += len(piece)
        self.offset_bytes += len(piece)
        if self._pending_bytes >= WINDOW_BYTES:
            whole = self._take_pending()
            try:
                for start in range(0, len(whole), WINDOW_BYTES):
                    stream.push(memoryview(whole)[start : start + WINDOW_BYTES])
            except BaseException as error:
                self._end(error)
                raise
        return len(piece)

    def commit(self) -> Artifact:
        """Make it durable; gives the artifact."""
        stream = self._open_stream()
        try:
            stream.push(self._take_pending())
            stored = stream.finish()
            self._artifacts.check_empty(stored)
            artifact = self._artifacts.acknowledge(self._group, [(stored, self._details, 0)])[0]
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)
        self._artifact = artifact
        return artifact

    def abort(self) -> None:
        """Forget what was written; nothing of it stays. Harmless when it has ended."""
        if self._stream is not None:
            self._end(InvalidInput("aborted"))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if kind is not None:
            self.abort()
        elif self._stream is not None:
            self.commit()

    def _open_stream(self) -> BlobStream:
        self._core.check()
        if self._stream is None:
            raise InvalidInput("this writer was committed or aborted: open another one")
        return self._stream

    def _take_pending(self) -> bytes:
        whole = b"".join(self._pending)
        self._pending, self._pending_bytes = [], 0
        return whole

    def _end(self, error: BaseException | None) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
            try:
                self._adding.__exit__(type(error) if error else None, error, None)
            except BaseException as raised:
                if raised is not error:
                    raise
