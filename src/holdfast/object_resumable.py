"""Resumable puts into a bucket: what was written is in numbered pieces there, and any machine can go on.

A commit reads the pieces back into the blob's object, and promises which object under `commits/` will name it before it
makes that: whoever comes later sees whether it was made, or makes it first and empty, and so there is one outcome.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar, Self

from holdfast.artifacts import Artifacts
from holdfast.backend.objects.layout import upload_key
from holdfast.backend.objects.piece_writer import PIECE_BYTES, PieceWriter
from holdfast.backend.objects.pieces import Pieces
from holdfast.errors import Conflict
from holdfast.ingest import Stored, check_blob_size
from holdfast.object_core import ObjectCore
from holdfast.object_uploads import Told, expiry_ms, find_open
from holdfast.resumable import ResumableWriter
from holdfast.types import Artifact, new_ids, now_ms
from holdfast.uploads import new_token, parse_token
from holdfast.wire.document import Details, encode_details, parse_details
from holdfast.wire.part import ABORTED, COMMITTED, COMMITTING
from holdfast.words import Words, describe

if TYPE_CHECKING:
    from hashlib import _Hash


class ObjectResumableWriter(ResumableWriter):
    """See `ResumableWriter`. One checkpoint is on its way while the next is gathered: both are 16 MiB."""

    CHECKPOINT_BYTES: ClassVar[int] = PIECE_BYTES

    def __init__(self, core: ObjectCore, artifacts: Artifacts, details: Details, writer: PieceWriter) -> None:
        """For `begin` and `resume`, which hold the claim."""
        super().__init__(core, artifacts, details)
        self._objects = core
        self._writer = writer
        self._sha256: _Hash | None = sha256() if core.options.checksum == "sha256" else None
        self._is_whole = True

    @classmethod
    def begin(cls, core: ObjectCore, artifacts: Artifacts, words: Words) -> Self:
        """Begin an upload; its token counts from now on, whatever happens."""
        core.check_writable()
        details = describe(core, words)
        core.check_room(1)
        token, backend = new_token(), core.backend
        core.claims.take(token)
        try:
            writer = PieceWriter.begin(
                backend.bucket, backend.pool, token, encode_details(details), expiry_ms(core)
            )
            return cls(core, artifacts, details, writer)
        except BaseException:
            core.claims.release(token)
            raise

    @classmethod
    def resume(cls, core: ObjectCore, artifacts: Artifacts, token: str) -> Self:
        """Go on with an upload: `UploadNotFound`, `Locked`."""
        raw = parse_token(token)
        core.check_writable()
        pieces = Pieces(core.backend.bucket, core.backend.pool)
        find_open(core, pieces, raw)
        core.claims.take(raw)
        try:
            chain = find_open(core, pieces, raw)
            details = parse_details(chain.pieces[0].head.details)
            writer = PieceWriter(pieces, core.backend.pool, chain, expiry_ms(core))
            self = cls(core, artifacts, details, writer)
        except BaseException:
            core.claims.release(raw)
            raise
        try:
            writer.restore()
            if self._sha256 is not None:
                for some in chain.iter_bytes(0):
                    self._sha256.update(some)
            chain.append(pieces.add(writer.next()))  # from here on nobody else goes on with it unnoticed
            return self
        except BaseException as error:
            self._end(error)
            raise

    @property
    def token(self) -> str:
        return self._writer.chain.last.head.token.hex()

    @property
    def offset_bytes(self) -> int:
        self._writer.land(wait=False)
        return self._writer.chain.size_bytes

    @property
    def _taken_bytes(self) -> int:
        return self._writer.taken_bytes

    @property
    def _begun_bytes(self) -> int:
        return self._writer.begun_bytes

    def _check_size(self, size_bytes: int) -> None:
        check_blob_size(size_bytes, self._core.options.max_artifact_bytes)

    def _take(self, window: memoryview) -> None:
        self._writer.take(window)
        if self._sha256 is not None:
            self._sha256.update(window)

    def _save(self, *, wait: bool) -> None:
        self._writer.save()
        if wait:
            self._writer.land()

    def _commit(self) -> Artifact:
        core, writer = self._objects, self._writer
        stock = writer.finish()
        chain, root = writer.chain, stock.blob.hash
        digest = None if self._sha256 is None else self._sha256.digest()
        stored = Stored(root, chain.size_bytes, 1, digest)
        artifact_id, commit_id = new_ids(2, now_ms())
        try:
            self._artifacts.check_empty(stored)
            with core.adding() as (group, _):
                self._claim_required()
                group.send(stock.blob, stock)
                group.arrive()
                promise = writer.next(COMMITTING, artifact=artifact_id, commit=commit_id, hash_=root)
                chain.append(writer.pieces.add(promise))
                if core.backend.bucket.head(upload_key(promise.token, 0)) is None:
                    raise Conflict(f"the upload {self.token} has expired, and is forgotten", token=self.token)
                group.commit_id = commit_id
                (artifact,) = self._artifacts.acknowledge(group, [(stored, self._details, 0)], [artifact_id])
        finally:
            stock.close()
        with Told("committed", self.token):
            writer.pieces.end(writer.next(COMMITTED, artifact=artifact_id))
        return artifact

    def _suspend(self) -> None:
        """The claim goes with the writer."""

    def _abort(self) -> None:
        self._writer.land()
        self._writer.pieces.end(self._writer.next(ABORTED))

    def _leave(self, error: BaseException | None, *, is_over: bool) -> None:
        try:
            self._writer.close()
        finally:
            self._objects.claims.release(self._writer.chain.last.head.token)
