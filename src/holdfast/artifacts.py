"""Artifacts: what people store, with the words that go with it. `finding` looks them up, `naming` changes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

import msgspec

from holdfast.arguments import items_of, whole_number
from holdfast.core import Core, Grouping, Ingesting, Stream, Watch, entered
from holdfast.errors import EmptyData, InvalidInput, TooLarge
from holdfast.finding import FORMATS
from holdfast.ingest import Stored
from holdfast.sources import WINDOW_BYTES, Rereadable, iter_windows, source_name, source_size
from holdfast.types import (
    BLOCK_BYTES,
    Artifact,
    BytesLike,
    Hash,
    ProgressCallback,
    PutItem,
    Source,
    id_text,
    new_ids,
    now_ms,
    to_datetime,
)
from holdfast.wire.document import (
    ArtifactDocument,
    Details,
    encode_artifact,
    encode_details,
)
from holdfast.wire.record import Kind
from holdfast.words import Words, describe

BATCH_BYTES: Final = 8 << 20
BATCH_ITEMS: Final = 4_096


class Artifacts:
    """The room of artifacts."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # -- storing

    def put(self, source: Source, words: Words, progress: ProgressCallback | None) -> Artifact:
        core = self._core
        core.check_room(1)
        with core.adding(checksum=True) as (group, ingest):
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
        whole_number("max_items", max_items)
        watch = Watch(progress, "put")
        with core.adding(checksum=True) as (group, ingest):
            common = describe(core, words)
            batch = SourceBatch(ingest)
            described: list[Details] = []
            for item in items_of("items", items):
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

    def acknowledge(
        self,
        group: Grouping,
        items: Sequence[tuple[Stored, Details, int]],
        ids: Sequence[bytes] | None = None,
    ) -> list[Artifact]:
        """Append the artifacts' documents, commit, and give them: (blob, words, format) each. `ids`: new ones.

        Only with `max_artifacts`, or where another artifact is required, does the store's lock span the commit: what
        is counted, or required, cannot change before this is visible. Other writers then wait for its fsync.
        """
        if any(one.sha256 for one, _, _ in items):
            items = [(stored, _with_checksum(stored, details), format_) for stored, details, format_ in items]
        time_ms = now_ms()
        ids = new_ids(len(items), time_ms) if ids is None else ids
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
        group.add_documents(Kind.ARTIFACT, documents)
        core = self._core
        required = {one for details in {id(d): d for _, d, _ in items}.values() for one in details.requires}
        required = {one for one in required if not one.startswith("blake3:")}
        if required or core.options.max_artifacts is not None:
            with core.lock():
                core.check_room(len(items))
                for one in required:
                    core.artifact(one)
                durability = group.commit(alone=True)
        else:
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


def _with_checksum(stored: Stored, details: Details) -> Details:
    if stored.sha256 is None:
        return details
    return msgspec.structs.replace(details, checksum=f"sha256:{stored.sha256.hex()}")


class SourceBatch:
    """Gathers sources so that blobs in memory are hashed and looked up together."""

    def __init__(self, ingest: Ingesting) -> None:
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
        if isinstance(windows, Rereadable):
            windows.put_back(first)
        else:
            windows = chain((first,), windows)
        self._stored.append(self._ingest.add(windows))
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


class Writer:
    """A put that is pushed: `write`, then `commit` (on leaving the `with` block) or `abort` (on an exception).

    Memory is bounded: `write` blocks while the store cannot keep up. One thread at a time.
    """

    def __init__(self, core: Core, artifacts: Artifacts, words: Words) -> None:
        self._core = core
        self._artifacts = artifacts
        core.check_room(1)
        self._adding = core.adding(checksum=True)
        self._group, ingest = self._adding.__enter__()
        try:
            self._details = describe(core, words)  # pinned: what it requires is to stay
        except BaseException as error:
            self._adding.__exit__(type(error), error, None)
            raise
        self._stream: Stream | None = ingest.stream()
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

    @entered
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

    @entered
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

    def _open_stream(self) -> Stream:
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
