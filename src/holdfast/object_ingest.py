"""Blobs that are put into a bucket: hashed, looked up, and sent on their way by a group."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from holdfast import _native
from holdfast.backend.objects.backend import SINGLE_PUT_BYTES
from holdfast.backend.objects.claims import LocalClaims
from holdfast.backend.objects.piece_writer import PIECE_BYTES, PieceWriter
from holdfast.backend.objects.spool import FileStock, SourceChanged, Stock
from holdfast.backend.objects.waiting import Waiting
from holdfast.bao import OutboardBuilder
from holdfast.catalog import Catalog
from holdfast.catalog.objects import bad_among
from holdfast.ingest import Stored, check_blob_size
from holdfast.object_group import ObjectGroup
from holdfast.sources import Rereadable
from holdfast.types import BLOCK_BYTES, HASH_BYTES, BytesLike
from holdfast.wire.document import Details, encode_details
from holdfast.wire.part import TOKEN_BYTES

if TYPE_CHECKING:
    from hashlib import _Hash


class ObjectIngest:
    """See `core.Ingesting`: hashes blobs, and sends up what is not known to be there."""

    def __init__(
        self,
        group: ObjectGroup,
        catalog: Callable[[], Catalog],
        pool: ThreadPoolExecutor,
        *,
        max_bytes: int | None,
        sha256: bool,
        spool_bytes: int,
        expiry_ms: int,
        claims: LocalClaims,
    ) -> None:
        """`spool_bytes`: how much may wait on this machine; `expiry_ms`: how long what is left in pieces stays."""
        self.group = group
        self.spool_bytes = spool_bytes
        self._expiry_ms = expiry_ms
        self._claims = claims
        self.pool = pool
        self.sha256 = sha256
        self._catalog = catalog
        self._max_bytes = max_bytes

    def check_size(self, size_bytes: int) -> None:
        """Refuse a blob above the limit as soon as it is known."""
        check_blob_size(size_bytes, self._max_bytes)

    def add(self, windows: Iterator[BytesLike], watch: Callable[[int], None] | None = None) -> Stored:
        """Add the blob that the windows make up. `watch` hears of bytes read, and may raise.

        A large file is read once to be hashed, and again to be sent; one that changes between goes through the spool.
        """
        if isinstance(windows, Rereadable) and windows.size_bytes() > SINGLE_PUT_BYTES:
            try:
                return self._add_from(windows, windows, watch)
            except SourceChanged:
                windows, watch = windows.again(), None
        return self._add_from(windows, None, watch)

    def _add_from(
        self, windows: Iterator[BytesLike], again: Rereadable | None, watch: Callable[[int], None] | None
    ) -> Stored:
        with ObjectStream(self, again) as stream:
            for window in windows:
                stream.push(window)
                if watch is not None:
                    watch(len(window))
            return stream.finish()

    def add_many(self, items: Sequence[BytesLike]) -> list[Stored]:
        """Add whole blobs that are in memory."""
        self.make_room()
        stored: list[Stored] = []
        fresh: dict[bytes, tuple[BytesLike, Iterable[bytes]]] = {}
        small = iter(_packed(_native.blake3_list([one for one in items if len(one) <= BLOCK_BYTES])))
        for item in items:
            pairs: Iterable[bytes] = ()
            if len(item) <= BLOCK_BYTES:
                hash_ = next(small)
            else:
                hasher = _native.BlobHasher()
                hasher.update(item)
                hash_, groups = hasher.finish()
                pairs = _outboard_of(groups, len(item))
            fresh.setdefault(hash_, (item, pairs))
            stored.append(Stored(hash_, len(item), 1, self._sha256(item)))
        known, damaged = self._known({hash_: len(item) for hash_, (item, _) in fresh.items()})
        group = self.group
        for hash_, (item, pairs) in fresh.items():
            if group.has(hash_):
                continue
            start = group.spool.append(item)
            blob = Waiting(hash_, len(item), start, self._append_outboard(pairs))
            if hash_ in known:
                group.rely_on(blob)
            else:
                group.send(blob._replace(heals=hash_ in damaged))
        return stored

    def _known(self, sizes: dict[bytes, int]) -> tuple[set[bytes], set[bytes]]:
        """Say which blobs need not be brought, and which are known to be damaged; an object of another length is."""
        catalog = self._catalog()
        hashes = list(sizes)
        known = catalog.find_blobs(hashes)
        damaged = bad_among(catalog, hashes)
        damaged.update(
            hash_ for hash_, row in known.items() if row.size != sizes[hash_] or self.group.is_damaged(hash_)
        )
        return known.keys() - damaged, damaged

    def stage(self) -> PieceWriter:
        """Begin to bring a blob into the bucket in pieces, because its hash is not known yet."""
        backend, token = self.group.backend, os.urandom(TOKEN_BYTES)
        self._claims.take(token)
        try:
            return PieceWriter.begin(
                backend.bucket, backend.pool, token, encode_details(Details()), self._expiry_ms
            )
        except BaseException:
            self._claims.release(token)
            raise

    def discard(self, staged: PieceWriter) -> None:
        """Remove such pieces."""
        try:
            staged.discard()
        finally:
            self._claims.release(staged.token)

    def stream(self) -> ObjectStream:
        """Begin a blob that comes in windows."""
        return ObjectStream(self)

    def make_room(self) -> None:
        """See that half of what may wait is free."""
        if self.group.spool.size_bytes > self.spool_bytes // 2:
            self.group.let_go()

    def finish_stream(self, blob: Waiting, pairs: Iterable[bytes], again: Rereadable | None) -> None:
        """Send up what lies in the spool, or can be read `again`, unless it is known; `SourceChanged` as that says."""
        group, stock = self.group, None
        if group.has(blob.hash):
            return
        blob = blob._replace(outboard_start=self._append_outboard(pairs))
        if again is not None:
            stock = FileStock(again, blob.size_bytes, group.spool, blob.outboard_start)
            blob = blob._replace(start=0, outboard_start=blob.size_bytes)
        if self.finish_stock(blob, stock) and stock is not None:
            try:
                group.arrive()
            except SourceChanged:
                group.forget(blob.hash)
                raise

    def finish_stock(self, blob: Waiting, stock: Stock | None) -> bool:
        """Send a blob up unless it is known; gives whether that was done."""
        known, damaged = self._known({blob.hash: blob.size_bytes})
        if known:
            self.group.rely_on(blob, stock)
        else:
            self.group.send(blob._replace(heals=bool(damaged)), stock)
        return not known

    def _append_outboard(self, pairs: Iterable[bytes]) -> int:
        start = self.group.spool.size_bytes
        for part in pairs:
            self.group.spool.append(part)
        return start

    def _sha256(self, item: BytesLike) -> bytes | None:
        if not self.sha256:
            return None
        from hashlib import sha256

        return sha256(item).digest()


class ObjectStream:
    """One blob that comes in windows: hashed in another thread while the window goes to the spool.

    `again`: where the same bytes can be read again, so that they need not go there. What is more than the spool may
    hold goes to the bucket in pieces, which are put together when its hash is known.
    """

    def __init__(self, ingest: ObjectIngest, again: Rereadable | None = None) -> None:
        self.size_bytes = 0
        self._ingest = ingest
        self._again = again
        self._staged: PieceWriter | None = None
        self._hasher = _native.BlobHasher()
        self._builder = OutboardBuilder()
        self._pending: Future[None] | None = None
        ingest.make_room()
        self._start = ingest.group.spool.size_bytes
        self._sha256: _Hash | None = None
        if ingest.sha256:
            from hashlib import sha256

            self._sha256 = sha256()

    def push(self, window: BytesLike) -> None:
        """Take the next bytes; they must not change until `finish`."""
        if not len(window):
            return
        ingest = self._ingest
        ingest.check_size(self.size_bytes + len(window))
        self._wait()
        self.size_bytes += len(window)
        if (
            self._staged is None
            and self._again is None
            and ingest.group.spool.size_bytes + len(window) > ingest.spool_bytes
        ):
            self._staged = self._stage()
        self._pending = ingest.pool.submit(self._hash, window)
        if self._staged is not None:
            _take(self._staged, window)
        elif self._again is None:
            ingest.group.spool.append(window)

    def finish(self) -> Stored:
        """Send the blob up, unless it is known."""
        self._wait()
        digest = None if self._sha256 is None else self._sha256.digest()
        if self._staged is not None:
            stock = self._staged.finish()
            self._ingest.group.keep(stock, partial(self._ingest.discard, self._staged))
            self._staged = None
            if not self._ingest.group.has(stock.blob.hash):
                self._ingest.finish_stock(stock.blob, stock)
            return Stored(stock.blob.hash, self.size_bytes, 1, digest)
        root, groups = self._hasher.finish()
        self._builder.feed(groups)
        pairs = self._builder.finish(self.size_bytes) if self.size_bytes > BLOCK_BYTES else iter(())
        self._ingest.finish_stream(Waiting(root, self.size_bytes, self._start, 0), pairs, self._again)
        return Stored(root, self.size_bytes, 1, digest)

    def close(self) -> None:
        """Wait for the other thread, and give memory back."""
        if self._pending is not None:
            self._pending.exception()
        self._builder.close()
        if self._staged is not None:
            self._ingest.discard(self._staged)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _stage(self) -> PieceWriter:
        """Bring what the spool has of this blob into the bucket, and go on there."""
        ingest, spool = self._ingest, self._ingest.group.spool
        staged = ingest.stage()
        try:
            for piece in spool.iter(self._start, spool.size_bytes - self._start):
                _take(staged, piece)
            spool.cut(self._start)
        except BaseException:
            ingest.discard(staged)
            raise
        return staged

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _hash(self, window: BytesLike) -> None:
        if self._staged is None:
            self._hasher.update(window)
            self._builder.feed(self._hasher.take_groups())
        if self._sha256 is not None:
            self._sha256.update(window)


def _take(staged: PieceWriter, window: BytesLike) -> None:
    staged.take(window)
    if staged.taken_bytes - staged.begun_bytes >= PIECE_BYTES:
        staged.save()


def _packed(digests: bytes) -> list[bytes]:
    return [digests[at : at + HASH_BYTES] for at in range(0, len(digests), HASH_BYTES)]


def _outboard_of(groups: bytes, size_bytes: int) -> list[bytes]:
    with OutboardBuilder() as builder:
        builder.feed(groups)
        return list(builder.finish(size_bytes))
