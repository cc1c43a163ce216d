"""Uploads in a bucket: numbered pieces of what came, and what became of it. Knows no artifacts.

The objects of an upload are numbered from 0 without a gap, and each is made on the condition that its number is not
taken: so there is one chain, and whoever is overtaken notices at its next piece. When an upload has ended its last
object stays for a while and says how; the others go. As that frees their numbers, a piece counts only if nothing
stands behind it: whoever makes one looks.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Final, NamedTuple, NoReturn

from holdfast import _native
from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.ends import list_whole
from holdfast.backend.objects.layout import UPLOADS, parse_upload_key, upload_key, upload_prefix
from holdfast.errors import Conflict, CorruptObject, FormatError
from holdfast.types import BytesLike
from holdfast.wire.part import PieceHead, encode_piece, head_length, parse_piece

log = logging.getLogger("holdfast")

HEAD_BYTES: Final = 32 << 10
"""How much of a piece is fetched to see what it says: with chaining values of 8 MiB, and words."""


class Piece(NamedTuple):
    """An object of an upload, as it was listed, with what its head says."""

    key: str
    head_bytes: int
    modified_ms: int
    head: PieceHead

    @property
    def expires_ms(self) -> int:
        """Until when the upload can be gone on with, or is remembered, if this is its last object."""
        return self.modified_ms + self.head.expiry_ms


class Chain:
    """All pieces of one upload, in order."""

    def __init__(self, bucket: Bucket, pieces: Sequence[Piece]) -> None:
        """`CorruptObject` where one is missing, or they do not follow one another."""
        self._bucket = bucket
        self.pieces = list(pieces)
        at = 0
        for number, piece in enumerate(pieces):
            if piece.head.number != number or piece.head.offset_bytes != at:
                raise CorruptObject(
                    f"the upload {piece.head.token.hex()} lacks what belongs before {piece.key}",
                    path=piece.key,
                )
            at = piece.head.stop_bytes
        self.size_bytes = at
        self._filled = [piece for piece in self.pieces if piece.head.length_bytes]
        self._starts = [piece.head.offset_bytes for piece in self._filled]

    @property
    def last(self) -> Piece:
        """Its newest object."""
        return self.pieces[-1]

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """Give where each piece begins and ends."""
        return [(piece.head.offset_bytes, piece.head.stop_bytes) for piece in self._filled]

    def append(self, piece: Piece) -> None:
        """Add what was stored; its chaining values are not kept: who wrote it has built the tree from them."""
        piece = piece._replace(head=piece.head._replace(groups=b""))
        self.pieces.append(piece)
        self.size_bytes = piece.head.stop_bytes
        if piece.head.length_bytes:
            self._filled.append(piece)
            self._starts.append(piece.head.offset_bytes)

    def load(self, start: int, stop: int) -> bytes:
        """Give bytes of one piece, verified. `CorruptObject` when it has others, also when asked for once more."""
        piece = self._filled[bisect_right(self._starts, start) - 1]
        head = piece.head
        for _ in range(2):
            try:
                end = piece.head_bytes + head.length_bytes
                data = self._bucket.get_range(piece.key, piece.head_bytes, end)
            except FormatError:
                continue
            if data is not None and _native.blake3(data) == head.digest:
                return data[start - head.offset_bytes : stop - head.offset_bytes]
        raise CorruptObject(
            f"{piece.key} is damaged or gone: the upload cannot go on, begin a new one", path=piece.key
        )

    def iter_bytes(self, start: int) -> Iterator[bytes]:
        """Give what came, verified, from a place on."""
        for first, stop in self.stretches[max(0, bisect_right(self._starts, start) - 1) :]:
            if stop > start:
                yield self.load(max(first, start), stop)


class Pieces:
    """The uploads of a store."""

    def __init__(self, bucket: Bucket, pool: ThreadPoolExecutor) -> None:
        self._bucket = bucket
        self._pool = pool

    def iter_all(self) -> Iterator[tuple[bytes, list[Meta]]]:
        """Give the tokens of all uploads, ascending, those that have ended too, with their objects: one listing."""
        keyed = ((parse_upload_key(meta.key), meta) for meta in list_whole(self._bucket, UPLOADS))
        for token, group in groupby(keyed, lambda one: one[0][0] if one[0] is not None else None):
            if token is not None:
                yield token, [meta for _, meta in group]

    def find(self, token: bytes) -> list[Meta]:
        """List the objects of one upload, in order."""
        return [
            meta
            for meta in self._bucket.list(upload_prefix(token))
            if (found := parse_upload_key(meta.key)) is not None and found[0] == token
        ]

    def chain(self, metas: Sequence[Meta]) -> Chain:
        """Read all heads of an upload."""
        return Chain(self._bucket, list(self._pool.map(self.read, metas)))

    def read(self, meta: Meta) -> Piece:
        """Read what an object of an upload says; `CorruptObject`, or `FormatError` where a newer version made it."""
        named = parse_upload_key(meta.key)
        wrong: FormatError | None = None
        for _ in range(2):
            try:
                data = self._bucket.get_range(meta.key, 0, min(HEAD_BYTES, meta.size_bytes))
                if data is None:
                    break
                length = head_length(data, meta.key)
                if length > len(data):
                    data = self._bucket.get_range(meta.key, 0, min(length, meta.size_bytes)) or b""
                head = parse_piece(data, meta.key)
                if (head.token, head.number) == named and length + head.length_bytes == meta.size_bytes:
                    return Piece(meta.key, length, meta.modified_ms, head)
            except FormatError as error:
                if "version" in error.evidence:
                    raise
                wrong = error
        raise CorruptObject(f"an object of an upload cannot be read: {wrong or meta.key}", path=meta.key)

    def try_read(self, meta: Meta) -> Piece | None:
        """Read what an object of an upload says; None where that cannot be read."""
        try:
            return self.read(meta)
        except (CorruptObject, FormatError) as error:
            log.warning("%s", error)
            return None

    def add(self, head: PieceHead, payload: BytesLike = b"") -> Piece:
        """Store the next object of an upload, durably. `Conflict` when somebody else goes on with it, or ended it."""
        key = upload_key(head.token, head.number)
        packed = encode_piece(head, key)
        made = self._bucket.create(key, b"".join((packed, payload)))
        if made is None:
            _overtaken(head.token)
        if any(self._bucket.list(upload_prefix(head.token), after=key)):
            _overtaken(head.token)
        return Piece(key, len(packed), made.modified_ms, head)

    def end(self, head: PieceHead) -> None:
        """Say how an upload has ended; then what came before goes."""
        self.add(head)
        self.tidy(head.token)

    def tidy(self, token: bytes) -> None:
        """Remove all but the last object of an upload that has ended."""
        keys = [meta.key for meta in self.find(token)[:-1]]
        if keys:
            self._bucket.delete(keys)

    def remove(self, metas: Sequence[Meta]) -> None:
        """Remove objects."""
        self._bucket.delete([meta.key for meta in metas])


def _overtaken(token: bytes) -> NoReturn:
    text = token.hex()
    raise Conflict(
        f"the upload {text} was gone on with, or ended, by somebody else: what this writer wrote since is not stored;"
        f" resume={text!r} says what became of it",
        token=text,
    )
