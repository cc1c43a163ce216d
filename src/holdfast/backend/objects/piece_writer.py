"""Writing an upload in a bucket: bytes are hashed, and go up as numbered pieces; read back, they are a blob on its way.

Each piece carries the chaining values of the blocks that it ends, so going on reads a 500th of what is durable. One
piece is on its way while the next is gathered.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Self

from holdfast import _native
from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.pieces import Chain, Piece, Pieces
from holdfast.backend.objects.stock import PartStock
from holdfast.bao import OutboardBuilder
from holdfast.errors import CorruptBlob, CorruptObject, HoldfastError
from holdfast.types import BLOCK_BYTES, HASH_BYTES, BytesLike, now_ms
from holdfast.wire.part import OPEN, PieceHead
from holdfast.wire.upload import groups_bytes

NOTHING: Final = _native.blake3(b"")
PIECE_BYTES: Final = 8 << 20
"""How much a piece has."""

log = logging.getLogger("holdfast")


class PieceWriter:
    """One thread at a time. `chain`: what is durable."""

    def __init__(self, pieces: Pieces, pool: ThreadPoolExecutor, chain: Chain, expiry_ms: int) -> None:
        self.pieces = pieces
        self.chain = chain
        self.begun_bytes = chain.size_bytes
        """How much is in pieces, one that is on its way included."""
        self._pool = pool
        self._expiry_ms = expiry_ms
        self._hasher = _native.BlobHasher()
        self._builder = OutboardBuilder()
        self._groups = bytearray()
        """Chaining values that no piece has yet."""
        self._windows: list[BytesLike] = []
        """What no piece has yet."""
        self._flying: Future[Piece] | None = None

    @classmethod
    def begin(
        cls, bucket: Bucket, pool: ThreadPoolExecutor, token: bytes, details: bytes, expiry_ms: int
    ) -> Self:
        """Begin an upload, which counts from now on. `details`: the words of the artifact to be, as stored."""
        pieces = Pieces(bucket, pool)
        head = PieceHead(token, 0, OPEN, now_ms(), expiry_ms, 0, 0, NOTHING, details=details)
        return cls(pieces, pool, Chain(bucket, [pieces.add(head)]), expiry_ms)

    @property
    def token(self) -> bytes:
        """What the upload is known by."""
        return self.chain.last.head.token

    @property
    def taken_bytes(self) -> int:
        """How much was taken in all."""
        return self._hasher.size_bytes

    def restore(self) -> None:
        """Take up the hash where it was: from chaining values, and the bytes of the last block."""
        go_on(self.chain, self._hasher, self._builder)

    def take(self, window: BytesLike) -> None:
        """Take the next bytes; they do not change any more."""
        self._hasher.update(window)
        groups = self._hasher.take_groups()
        self._builder.feed(groups)
        self._groups += groups
        self._windows.append(window)

    def save(self) -> None:
        """Send what was taken as a piece, after the one before it is durable; an error of that is raised."""
        if self.taken_bytes > self.begun_bytes:
            self.land()
            data = b"".join(self._windows)
            groups = bytes(self._groups)
            self._windows, self._groups = [], bytearray()
            head = self.next(OPEN, length_bytes=len(data), digest=_native.blake3(data), groups=groups)
            self.begun_bytes += len(data)
            self._flying = self._pool.submit(self.pieces.add, head, data)

    def land(self, *, wait: bool = True) -> None:
        """Wait for the piece that is on its way; without `wait`, take note of it if it is there, and fine."""
        flying = self._flying
        if flying is None or (not wait and not (flying.done() and flying.exception() is None)):
            return
        self._flying = None
        self.chain.append(flying.result())

    def next(
        self,
        state: int = OPEN,
        *,
        length_bytes: int = 0,
        digest: bytes = NOTHING,
        groups: bytes = b"",
        artifact: bytes = bytes(16),
        commit: bytes = bytes(16),
        hash_: bytes = bytes(HASH_BYTES),
    ) -> PieceHead:
        """Give the head of what comes next."""
        last = self.chain.last.head
        return PieceHead(
            last.token,
            last.number + 1,
            state,
            last.created_ms,
            self._expiry_ms,
            last.stop_bytes,
            length_bytes,
            digest,
            groups,
            artifact=artifact,
            commit=commit,
            hash=hash_,
        )

    def finish(self) -> PartStock:
        """Make all durable, and give it as a blob on its way."""
        self.save()
        self.land()
        root, rest = self._hasher.finish()
        self._builder.feed(rest)
        return stock_of(self.chain, root, self._builder)

    def discard(self) -> None:
        """Remove the upload; what cannot be removed expires."""
        self.close()
        try:
            self.pieces.remove(self.pieces.find(self.token))
        except HoldfastError as error:
            log.warning("pieces of a stream stay until they expire: %s", error)

    def close(self) -> None:
        """Wait for what is on its way, and give memory back."""
        flying, self._flying = self._flying, None
        try:
            if flying is not None:
                flying.exception()
        finally:
            self._builder.close()


def stock_of(chain: Chain, root: bytes, builder: OutboardBuilder) -> PartStock:
    """Give what an upload holds as a blob on its way."""
    size = chain.size_bytes

    def wrong() -> CorruptBlob:
        return CorruptBlob(f"the pieces of upload {chain.last.head.token.hex()} do not make up its blob")

    return PartStock(root, size, chain.stretches, chain.load, lambda: builder.finish(size), wrong)


def go_on(chain: Chain, hasher: _native.BlobHasher, builder: OutboardBuilder) -> None:
    """Bring a hasher to where an upload is: by chaining values, and the bytes of the last block."""
    hashed = 0
    for piece in chain.pieces:
        if piece.head.groups:
            hasher.resume(piece.head.groups)
            builder.feed(piece.head.groups)
            hashed += len(piece.head.groups) // HASH_BYTES * BLOCK_BYTES
    if hashed == groups_bytes(chain.size_bytes) // HASH_BYTES * BLOCK_BYTES:
        for rest in chain.iter_bytes(hashed):
            hasher.update(rest)
    if hasher.take_groups() or hasher.size_bytes != chain.size_bytes:
        token = chain.last.head.token.hex()
        raise CorruptObject(f"the pieces of upload {token} do not hold together", path=chain.last.key)
