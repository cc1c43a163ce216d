"""Resumable puts on the log backend: each state is a record, and what it needs lies in the log before it."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from typing import Self

from holdfast import uploads
from holdfast.artifacts import Artifacts
from holdfast.backend.log.commit import Group
from holdfast.backend.log.layout import UPLOADS
from holdfast.errors import HoldfastError, InvalidInput
from holdfast.growing import GrowingBlob
from holdfast.ingest import Ingest
from holdfast.log_core import LogCore
from holdfast.resumable import ResumableWriter
from holdfast.types import Artifact, new_ids, now_ms
from holdfast.wire.document import Details, encode_details, parse_details
from holdfast.wire.record import Kind
from holdfast.wire.upload import UploadDocument, UploadState, encode_upload
from holdfast.words import Words, describe


class LogResumableWriter(ResumableWriter):
    """See `ResumableWriter`."""

    def __init__(
        self, core: LogCore, artifacts: Artifacts, details: Details, document: UploadDocument
    ) -> None:
        """For `begin` and `resume`, which hold the claim."""
        super().__init__(core, artifacts, details)
        self._log = core
        self._document = document
        self._adding: AbstractContextManager[tuple[Group, Ingest]] | None = None
        self._is_ending = False
        self._group, ingest = self._new_group()
        self._blob = GrowingBlob(ingest)

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
        core.backend.require_writing()
        with core.backend.lock():
            core.backend.claims.take(UPLOADS, document.token.hex(), f"the upload {document.token.hex()}")
        return cls._started(core, artifacts, details, document, document.revision)

    @classmethod
    def resume(cls, core: LogCore, artifacts: Artifacts, token: str) -> Self:
        """Go on with an upload: `UploadNotFound`, `Locked`."""
        raw = uploads.parse_token(token)
        core.backend.require_writing()
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
        revision = core.next_revision(document.revision + uploads.RESUMED - 1)
        return cls._started(core, artifacts, details, document, revision)

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
            self._write_state(document._replace(revision=revision))
            self._is_whole = True
        except BaseException as error:
            self._end(error)
            raise
        return self

    @property
    def token(self) -> str:
        return self._document.token.hex()

    @property
    def offset_bytes(self) -> int:
        return self._document.offset_bytes

    @property
    def _taken_bytes(self) -> int:
        return self._blob.size_bytes

    def _check_size(self, size_bytes: int) -> None:
        self._blob.ingest.check_size(size_bytes)

    def _take(self, window: memoryview) -> None:
        self._blob.push(window)

    def _save(self, *, wait: bool) -> None:
        if self._blob.size_bytes > self._document.offset_bytes:
            self._write_state(self._document._replace(revision=self._document.revision + 1))

    def _commit(self) -> Artifact:
        stored = self._blob.finish()
        self._artifacts.check_empty(stored)
        self._claim_required()
        time_ms = now_ms()
        ids = new_ids(1, time_ms)
        last = uploads.closed(self._document, UploadState.COMMITTED, time_ms, ids[0])
        self._group.add_one(Kind.UPLOAD, encode_upload(last))
        self._is_ending = True
        (artifact,) = self._artifacts.acknowledge(self._group, [(stored, self._details, 0)], ids)
        return artifact

    def _suspend(self) -> None:
        """The claim goes with the writer."""

    def _abort(self) -> None:
        self._renew(InvalidInput("aborted"))
        last = uploads.closed(self._document, UploadState.ABORTED, now_ms())
        self._group.add_one(Kind.UPLOAD, encode_upload(last))
        self._group.commit()

    def _write_state(self, document: UploadDocument) -> None:
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

    def _new_group(self) -> tuple[Group, Ingest]:
        self._adding = self._log.adding(checksum=True)
        return self._adding.__enter__()

    def _renew(self, error: BaseException | None) -> None:
        """End the pin of the last group (an error: forget what is in it), and begin another with a pin of its own.

        What the new one finds in the store was there when it began; what the last one found is held by the upload.
        """
        self._end_group(error)
        self._group, self._blob.ingest = self._new_group()

    def _end_group(self, error: BaseException | None) -> None:
        adding, self._adding = self._adding, None
        if adding is not None:
            try:
                adding.__exit__(type(error) if error else None, error, None)
            except BaseException as raised:
                if raised is not error:
                    raise

    def _leave(self, error: BaseException | None, *, is_over: bool) -> None:
        claims = self._log.backend.claims
        try:
            self._blob.close()
            self._end_group(error or InvalidInput("ended"))
        finally:
            if is_over:
                with suppress(HoldfastError), self._log.backend.lock():
                    claims.release(UPLOADS, self.token, remove=True)
            # Where it may have ended, and others cannot see that yet, nobody is to go on with it.
            is_refused = isinstance(error, HoldfastError) and not error.evidence.get("durable")
            if error is None or is_refused or not self._is_ending:
                claims.release(UPLOADS, self.token, remove=False)
