"""A put that goes on after a crash or a broken connection: what was written is durable at checkpoints."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, suppress
from typing import Final, Self

from holdfast import uploads
from holdfast.artifacts import Artifacts
from holdfast.backend.log.commit import Group
from holdfast.backend.log.layout import UPLOADS
from holdfast.core import entered
from holdfast.errors import HoldfastError, InvalidInput
from holdfast.growing import GrowingBlob
from holdfast.ingest import Ingest
from holdfast.log_core import LogCore
from holdfast.sources import WINDOW_BYTES
from holdfast.types import Artifact, BytesLike, Hash, new_ids, now_ms
from holdfast.wire.document import Details, encode_details, parse_details
from holdfast.wire.record import Kind
from holdfast.wire.upload import UploadDocument, UploadState, encode_upload
from holdfast.words import Words, describe

CHECKPOINT_BYTES: Final = 16 << 20
CHECKPOINT_SECONDS: Final = 1.0


class ResumableWriter:
    """A put that is pushed, and can go on in another process: `write`, then `commit`.

    What was written becomes durable with each `checkpoint`, which comes by itself in a `write` after 16 MiB, or a
    second after the last one. `store.writer(resume=token)` goes on behind the bytes that are durable, until the upload
    is committed, aborted, or has expired: `UploadNotFound` then says which. Nobody else can go on with it meanwhile
    (`Locked`). A `with` block commits at its end; on an exception it keeps what came, for the next one.

    Memory is bounded. One thread at a time.
    """

    def __init__(
        self, core: LogCore, artifacts: Artifacts, details: Details, document: UploadDocument
    ) -> None:
        """For `begin` and `resume`, which hold the claim."""
        self._core = core
        self._artifacts = artifacts
        self._details = details
        self._document = document
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._artifact: Artifact | None = None
        self._is_open = True
        self._is_whole = False  # not while something is half done: an interrupt must not be saved
        self._adding: AbstractContextManager[tuple[Group, Ingest]] | None = None
        self._group, ingest = self._new_group()
        self._blob = GrowingBlob(ingest)
        self._last = time.monotonic()

    @classmethod
    def begin(cls, core: LogCore, artifacts: Artifacts, words: Words) -> Self:
        """Begin an upload; its token counts from now on, whatever happens."""
        details = describe(core, words)
        core.check_room(1)
        time_ms = now_ms()
        document = UploadDocument(
            uploads.new_token(),
            1,
            UploadState.OPEN,
            time_ms,
            time_ms,
            time_ms,
            details=encode_details(details),
        )
        core.backend.committer  # noqa: B018  # refuses a store that was opened to read
        with core.backend.lock():
            core.backend.claims.take(UPLOADS, document.token.hex(), f"the upload {document.token.hex()}")
        return cls._started(core, artifacts, details, document, document.revision)

    @classmethod
    def resume(cls, core: LogCore, artifacts: Artifacts, token: str) -> Self:
        """Go on with an upload: `UploadNotFound`, `Locked`."""
        raw = uploads.parse_token(token)
        core.backend.committer  # noqa: B018
        with core.backend.lock():
            core.keeper.catch_up()
            uploads.find_open(core, raw, now_ms())
            core.backend.claims.take(UPLOADS, raw.hex(), f"the upload {raw.hex()}")
            try:
                document = uploads.find_open(core, raw, now_ms())
                details = parse_details(document.details)
            except BaseException:
                core.backend.claims.release(UPLOADS, raw.hex(), remove=False)
                raise
        return cls._started(core, artifacts, details, document, document.revision + uploads.RESUMED)

    @classmethod
    def _started(
        cls, core: LogCore, artifacts: Artifacts, details: Details, document: UploadDocument, revision: int
    ) -> Self:
        try:
            self = cls(core, artifacts, details, document)
        except BaseException:
            core.backend.claims.release(UPLOADS, document.token.hex(), remove=False)
            raise
        try:
            self._blob.restore(document, core.backend.payloads.load)
            self._save(document._replace(revision=revision))
        except BaseException as error:
            self._end(error)
            raise
        return self

    @property
    def token(self) -> str:
        """What `store.writer(resume=…)` takes."""
        return self._document.token.hex()

    @property
    def offset_bytes(self) -> int:
        """How much is durable: where whoever resumes goes on."""
        return self._document.offset_bytes

    @property
    def written_bytes(self) -> int:
        """How much was written, what is not durable yet included."""
        return self._blob.size_bytes + self._pending_bytes

    @property
    def artifact(self) -> Artifact:
        """What was stored, after the commit."""
        if self._artifact is None:
            raise InvalidInput("nothing was committed yet")
        return self._artifact

    @entered
    def write(self, data: BytesLike) -> int:
        """Append bytes; gives their number. An error ends this writer; what is durable stays, to be resumed."""
        self._check_open()
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InvalidInput(f"bytes are needed, not {type(data).__name__}")
        piece = bytes(data)
        with _Ending(self):
            self._blob.ingest.check_size(self.written_bytes + len(piece))
            self._pending.append(piece)
            self._pending_bytes += len(piece)
            if self._pending_bytes >= WINDOW_BYTES:
                self._push()
            unsaved = self.written_bytes - self.offset_bytes
            is_time = time.monotonic() - self._last >= CHECKPOINT_SECONDS
            if unsaved >= CHECKPOINT_BYTES or (unsaved and is_time):
                self._checkpoint()
        return len(piece)

    @entered
    def checkpoint(self) -> int:
        """Make all that was written durable; gives `offset_bytes`."""
        self._check_open()
        with _Ending(self):
            self._checkpoint()
        return self.offset_bytes

    @entered
    def commit(self) -> Artifact:
        """Make the artifact; gives it. The token has served its turn then."""
        self._check_open()
        with _Ending(self):
            self._push()
            stored = self._blob.finish()
            self._artifacts.check_empty(stored)
            for required in self._details.requires:  # they were not held since it began
                if required.startswith("blake3:"):
                    self._core.claim(Hash.parse(required))
            time_ms = now_ms()
            ids = new_ids(1, time_ms)
            last = uploads.closed(self._document, UploadState.COMMITTED, time_ms, ids[0])
            self._group.add_one(Kind.UPLOAD, encode_upload(last))
            (artifact,) = self._artifacts.acknowledge(self._group, [(stored, self._details, 0)], ids)
        self._end(None, remove=True)
        self._artifact = artifact
        return artifact

    @entered
    def suspend(self) -> str:
        """Make what was written durable, let go of it, and give the token: anybody may resume."""
        self._check_open()
        with _Ending(self):
            self._checkpoint()
        self._end(None)
        return self.token

    @entered
    def abort(self) -> None:
        """Give the upload up for good; nothing of it stays. Harmless when this writer has ended."""
        if self._is_open:
            with _Ending(self):
                self._renew(InvalidInput("aborted"))
                last = uploads.closed(self._document, UploadState.ABORTED, now_ms())
                self._group.add_one(Kind.UPLOAD, encode_upload(last))
                self._group.commit()
            self._end(None, remove=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if not self._is_open:
            return
        if kind is None:
            self.commit()
        elif self._is_whole:
            with suppress(HoldfastError):  # the error on its way says more
                self.suspend()
        self._end(error)

    def _check_open(self) -> None:
        if not self._is_open:
            raise InvalidInput(
                "this writer was committed, suspended or aborted, or an error ended it: open another one"
                f" (resume={self.token!r} goes on, unless it was committed or aborted)"
            )

    def _push(self) -> None:
        whole = b"".join(self._pending)
        self._pending, self._pending_bytes = [], 0
        for start in range(0, len(whole), WINDOW_BYTES):
            self._blob.push(memoryview(whole)[start : start + WINDOW_BYTES])

    def _checkpoint(self) -> None:
        self._push()
        if self._blob.size_bytes > self._document.offset_bytes:
            self._save(self._document._replace(revision=self._document.revision + 1))

    def _save(self, document: UploadDocument) -> None:
        """Write a state with all that it needs, durably, and begin the next group."""
        manifest, groups, tail = self._blob.save()
        time_ms = max(now_ms(), document.modified_ms)
        document = document._replace(
            modified_ms=time_ms,
            expires_ms=time_ms + int(self._core.options.upload_expiry_seconds * 1000),
            offset_bytes=self._blob.size_bytes,
            manifest=manifest,
            groups=groups,
            tail=tail,
        )
        self._group.add_one(Kind.UPLOAD, encode_upload(document))
        self._group.commit()
        self._document = document
        self._renew(None)
        self._last = time.monotonic()
        self._is_whole = True

    def _new_group(self) -> tuple[Group, Ingest]:
        self._adding = self._core.adding(checksum=True)
        return self._adding.__enter__()

    def _renew(self, error: BaseException | None) -> None:
        """End the pin of the last group (an error: forget what is in it), and begin another with a pin of its own.

        What the new one finds in the store was there when it began; what the last one found is held by the upload.
        """
        self._leave(error)
        self._group, self._blob.ingest = self._new_group()

    def _leave(self, error: BaseException | None) -> None:
        adding, self._adding = self._adding, None
        if adding is not None:
            try:
                adding.__exit__(type(error) if error else None, error, None)
            except BaseException as raised:
                if raised is not error:
                    raise

    def _end(self, error: BaseException | None, *, remove: bool = False) -> None:
        """Let go of everything. What was not made durable is gone."""
        if not self._is_open:
            return
        self._is_open = False
        claims = self._core.backend.claims
        try:
            self._blob.close()
            self._leave(error or InvalidInput("ended"))
        finally:
            if remove:
                with suppress(HoldfastError), self._core.backend.lock():
                    claims.release(UPLOADS, self.token, remove=True)
            claims.release(UPLOADS, self.token, remove=False)


class _Ending:
    """Ends a writer when an error, or an interrupt, leaves what it does half done."""

    def __init__(self, writer: ResumableWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        self._writer._is_whole = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if error is not None:
            self._writer._end(error)
        else:
            self._writer._is_whole = True
