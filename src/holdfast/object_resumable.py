"""Resumable puts into a bucket: what was written is in numbered pieces there, and any machine can go on.

Each piece carries the chaining values of the blocks that it ends, so going on reads a 500th of what is durable. A
commit reads the pieces back into the blob's object, and promises which object under `commits/` will name it before it
makes that: whoever comes later sees whether it was made, or makes it first and empty, and so there is one outcome.
"""

from __future__ import annotations

from concurrent.futures import Future
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar, Self

from holdfast import _native
from holdfast.artifacts import Artifacts
from holdfast.backend.objects.layout import upload_key
from holdfast.backend.objects.pieces import Chain, Piece, Pieces
from holdfast.bao import OutboardBuilder
from holdfast.errors import Conflict, TooLarge
from holdfast.ingest import Stored
from holdfast.object_core import ObjectCore
from holdfast.object_uploads import NOTHING, Told, expiry_ms, find_open, go_on, stock_of
from holdfast.resumable import ResumableWriter
from holdfast.types import MAX_BLOB_BYTES, Artifact, new_ids, now_ms
from holdfast.uploads import new_token, parse_token
from holdfast.wire.document import Details, encode_details, parse_details
from holdfast.wire.part import ABORTED, COMMITTED, COMMITTING, OPEN, PieceHead
from holdfast.words import Words, describe

if TYPE_CHECKING:
    from hashlib import _Hash


class ObjectResumableWriter(ResumableWriter):
    """See `ResumableWriter`. One checkpoint is on its way while the next is gathered: both are 16 MiB."""

    CHECKPOINT_BYTES: ClassVar[int] = 8 << 20

    def __init__(self, core: ObjectCore, artifacts: Artifacts, details: Details, chain: Chain) -> None:
        """For `begin` and `resume`, which hold the claim."""
        super().__init__(core, artifacts, details)
        self._objects = core
        self._pieces = Pieces(core.backend.bucket, core.backend.pool)
        self._chain = chain
        self._hasher = _native.BlobHasher()
        self._builder = OutboardBuilder()
        self._sha256: _Hash | None = sha256() if core.options.checksum == "sha256" else None
        self._groups = bytearray()
        """Chaining values that no piece has yet."""
        self._windows: list[memoryview] = []
        """What no piece has yet."""
        self._begun = 0
        """How much is in pieces, one that is on its way included."""
        self._flying: Future[Piece] | None = None

    @classmethod
    def begin(cls, core: ObjectCore, artifacts: Artifacts, words: Words) -> Self:
        """Begin an upload; its token counts from now on, whatever happens."""
        core.check_writable()
        details = describe(core, words)
        core.check_room(1)
        token = new_token()
        pieces = Pieces(core.backend.bucket, core.backend.pool)
        core.claims.take(token)
        try:
            head = PieceHead(
                token, 0, OPEN, now_ms(), expiry_ms(core), 0, 0, NOTHING, details=encode_details(details)
            )
            return cls._started(core, artifacts, details, Chain(core.backend.bucket, [pieces.add(head)]))
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
            self = cls._started(core, artifacts, details, chain)
        except BaseException:
            core.claims.release(raw)
            raise
        try:
            self._restore()
            chain.append(pieces.add(self._next()))  # from here on nobody else goes on with it unnoticed
            return self
        except BaseException as error:
            self._end(error)
            raise

    @classmethod
    def _started(cls, core: ObjectCore, artifacts: Artifacts, details: Details, chain: Chain) -> Self:
        self = cls(core, artifacts, details, chain)
        self._begun = chain.size_bytes
        self._is_whole = True
        return self

    def _restore(self) -> None:
        """Take up the hashes where they were: from chaining values, and the bytes of the last block."""
        chain = self._chain
        go_on(chain, self._hasher, self._builder)
        if self._sha256 is not None:
            for some in chain.iter_bytes(0):
                self._sha256.update(some)

    @property
    def token(self) -> str:
        return self._chain.last.head.token.hex()

    @property
    def offset_bytes(self) -> int:
        if self._flying is not None and self._flying.done() and self._flying.exception() is None:
            self._land()
        return self._chain.size_bytes

    @property
    def _taken_bytes(self) -> int:
        return self._hasher.size_bytes

    @property
    def _begun_bytes(self) -> int:
        return self._begun

    def _check_size(self, size_bytes: int) -> None:
        limit = min(self._core.options.max_artifact_bytes or MAX_BLOB_BYTES, MAX_BLOB_BYTES)
        if size_bytes > limit:
            raise TooLarge(
                f"the data has more than the {limit} bytes that max_artifact_bytes allows", limit_bytes=limit
            )

    def _take(self, window: memoryview) -> None:
        self._hasher.update(window)
        if self._sha256 is not None:
            self._sha256.update(window)
        groups = self._hasher.take_groups()
        self._builder.feed(groups)
        self._groups += groups
        self._windows.append(window)

    def _save(self, *, wait: bool) -> None:
        if self._taken_bytes > self._begun:
            self._land()
            data = b"".join(self._windows)
            groups = bytes(self._groups)
            self._windows, self._groups = [], bytearray()
            head = self._next(OPEN, length_bytes=len(data), digest=_native.blake3(data), groups=groups)
            self._begun += len(data)
            self._flying = self._objects.backend.pool.submit(self._pieces.add, head, data)
        if wait:
            self._land()

    def _land(self) -> None:
        """Wait for the piece that is on its way."""
        flying, self._flying = self._flying, None
        if flying is not None:
            self._chain.append(flying.result())

    def _next(
        self,
        state: int = OPEN,
        *,
        length_bytes: int = 0,
        digest: bytes = b"",
        groups: bytes = b"",
        artifact: bytes = bytes(16),
        commit: bytes = bytes(16),
        hash_: bytes = bytes(32),
    ) -> PieceHead:
        """Give the head of what comes next."""
        last = self._chain.last.head
        return PieceHead(
            last.token,
            last.number + 1,
            state,
            last.created_ms,
            expiry_ms(self._objects),
            last.stop_bytes,
            length_bytes,
            digest or NOTHING,
            groups,
            artifact=artifact,
            commit=commit,
            hash=hash_,
        )

    def _commit(self) -> Artifact:
        self._save(wait=True)
        core, chain = self._objects, self._chain
        size = chain.size_bytes
        root, rest = self._hasher.finish()
        self._builder.feed(rest)
        digest = None if self._sha256 is None else self._sha256.digest()
        stored = Stored(root, size, 1, digest)
        self._artifacts.check_empty(stored)
        artifact_id, commit_id = new_ids(2, now_ms())
        stock = stock_of(chain, root, self._builder)
        try:
            with core.adding() as (group, _):
                self._claim_required()
                group.send(stock.blob, stock)
                group.arrive()
                promise = self._next(COMMITTING, artifact=artifact_id, commit=commit_id, hash_=root)
                chain.append(self._pieces.add(promise))
                if core.backend.bucket.head(upload_key(promise.token, 0)) is None:
                    raise Conflict(f"the upload {self.token} has expired, and is forgotten", token=self.token)
                group.commit_id = commit_id
                (artifact,) = self._artifacts.acknowledge(group, [(stored, self._details, 0)], [artifact_id])
        finally:
            stock.close()
        with Told("committed", self.token):
            self._pieces.end(self._next(COMMITTED, artifact=artifact_id))
        return artifact

    def _suspend(self) -> None:
        """The claim goes with the writer."""

    def _abort(self) -> None:
        self._land()
        self._pieces.end(self._next(ABORTED))

    def _leave(self, error: BaseException | None, *, is_over: bool) -> None:
        flying, self._flying = self._flying, None
        try:
            if flying is not None:
                flying.exception()
            self._builder.close()
        finally:
            self._objects.claims.release(self._chain.last.head.token)
