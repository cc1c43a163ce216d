"""Uploads in a bucket: what becomes of them, their promises, their end. `object_resumable` writes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache

from holdfast import _native
from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.layout import commit_key
from holdfast.backend.objects.names import read_named
from holdfast.backend.objects.piece_writer import NOTHING, go_on, stock_of
from holdfast.backend.objects.pieces import Chain, Pieces
from holdfast.bao import OutboardBuilder
from holdfast.catalog.objects import is_known, show_again
from holdfast.errors import (
    Conflict,
    CorruptObject,
    HoldfastError,
    IntegrityError,
    UploadNotFound,
)
from holdfast.object_core import ObjectCore
from holdfast.types import HASH_BYTES, Upload, id_text, now_ms, to_datetime
from holdfast.uploads import not_found
from holdfast.wire.bundle import encode_bundle
from holdfast.wire.part import ABORTED, COMMITTED, COMMITTING, EXPIRED, OPEN, PieceHead
from holdfast.wire.upload import UploadState

log = logging.getLogger("holdfast")

_STATES = {
    OPEN: UploadState.OPEN,
    COMMITTED: UploadState.COMMITTED,
    ABORTED: UploadState.ABORTED,
    EXPIRED: UploadState.EXPIRED,
}


class Told(suppress):
    """Lets an error pass that changes nothing of what was acknowledged: whoever comes next does what is left."""

    def __init__(self, what: str, token: str) -> None:
        super().__init__(HoldfastError)
        self._what = f"the upload {token} is {what}; its pieces stay until it expires"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> bool:
        if isinstance(error, HoldfastError):
            log.warning("%s: %s", self._what, error)
            return True
        return False


def expiry_ms(core: ObjectCore) -> int:
    return int(core.options.upload_expiry_seconds * 1000)


def find_open(core: ObjectCore, pieces: Pieces, token: bytes) -> Chain:
    """Give an upload that can go on; a typed error that says what became of any other."""
    metas = pieces.find(token)
    if not metas:
        raise not_found(token, None, 0)
    last = pieces.read(metas[-1])
    if last.head.state == COMMITTING:
        # wholly, since no listing of blobs follows, as it does in a collection
        if settle_promise(core, pieces, metas, last.head, lambda: core.keeper.refresh(None)):
            raise not_found(token, UploadState.COMMITTED, 0, id_text(last.head.artifact))
        return pieces.chain(metas)
    state = _STATES[last.head.state]
    if state == UploadState.OPEN and last.expires_ms > now_ms():
        return pieces.chain(metas)
    if state == UploadState.OPEN:
        state = UploadState.EXPIRED
    raise not_found(token, state, last.expires_ms, id_text(last.head.artifact))


def settle_promise(
    core: ObjectCore, pieces: Pieces, metas: Sequence[Meta], head: PieceHead, read_names: Callable[[], object]
) -> bool:
    """See whether a commit that was promised, and never heard of again, was made; if not, it never will be.

    One that was made is acknowledged here, in place of whoever died: the look for markers included. `read_names` brings
    the catalog up to date, where the object is not there; who settles several does that once.
    """
    bucket, key = core.backend.bucket, commit_key(head.commit)
    named = read_named(bucket, key)
    if named is None:
        read_names()  # it may have been gathered with others, under another key
        if not is_known(core.catalog, head.artifact):
            if bucket.create(key, encode_bundle([], key)) is not None:
                return False
            named = read_named(bucket, key)
    if named is not None:
        if not named.documents:
            return False
        core.keeper.take_named(named)
    _settle_blob(core, pieces, metas, head)
    if core.find_row(head.hash) is not None:
        show_again(core.catalog)
    with Told("committed", head.token.hex()):
        pieces.end(
            head._replace(number=head.number + 1, state=COMMITTED, commit=bytes(16), hash=bytes(HASH_BYTES))
        )
    return True


def _settle_blob(core: ObjectCore, pieces: Pieces, metas: Sequence[Meta], head: PieceHead) -> None:
    with OutboardBuilder() as builder:
        try:
            chain, hasher = pieces.chain(metas), _native.BlobHasher()
            go_on(chain, hasher, builder)
            root, rest = hasher.finish()
            builder.feed(rest)
            stock = stock_of(chain, root, builder)
        except CorruptObject:  # it is named, and should be there
            core.backend.settle(head.hash, None, None, None)
            return
        try:
            again = (stock.blob, stock) if root == head.hash else None
            core.backend.settle(head.hash, None if again is None else stock.blob.size_bytes, None, again)
        finally:
            stock.close()


def iter_uploads(core: ObjectCore) -> Iterator[Upload]:
    """Give the uploads that can go on, in the order of their tokens."""
    pieces = Pieces(core.backend.bucket, core.backend.pool)
    now = now_ms()
    for token, metas in pieces.iter_all():
        last = pieces.try_read(metas[-1])
        if last is None or last.head.state not in (OPEN, COMMITTING) or last.expires_ms <= now:
            continue
        yield Upload(
            token=token.hex(),
            offset_bytes=last.head.stop_bytes,
            created_at=to_datetime(last.head.created_ms),
            modified_at=to_datetime(last.modified_ms),
            expires_at=to_datetime(last.expires_ms),
        )


def expire_uploads(core: ObjectCore, time_ms: int) -> list[str]:
    """End the uploads whose time is over, by the bucket's own times, and that nobody here is writing; gives tokens.

    Whoever writes one elsewhere notices at the next piece. What is left of those that have ended goes too.
    """
    pieces = Pieces(core.backend.bucket, core.backend.pool)
    ended: list[str] = []
    read_names = cache(core.keeper.read_names)
    for token, metas in pieces.iter_all():
        last = pieces.try_read(metas[-1])
        if last is None:
            if metas[-1].modified_ms + expiry_ms(core) <= time_ms:
                pieces.remove(metas)
            continue
        try:
            if last.head.state in (OPEN, COMMITTING):
                if (
                    last.expires_ms <= time_ms
                    and not core.claims.is_held(token)
                    and _expire(core, pieces, metas, read_names)
                ):
                    ended.append(token.hex())
            elif last.expires_ms <= time_ms:
                pieces.remove(metas)
            elif len(metas) > 1:
                pieces.tidy(token)
        except (Conflict, IntegrityError, UploadNotFound) as error:  # somebody goes on with it after all
            log.warning("the upload %s does not expire yet: %s", token.hex(), error)
    return ended


def _expire(core: ObjectCore, pieces: Pieces, metas: list[Meta], read_names: Callable[[], object]) -> bool:
    last = pieces.read(metas[-1]).head
    if last.state == COMMITTING and settle_promise(core, pieces, metas, last, read_names):
        return False
    pieces.end(
        last._replace(
            number=last.number + 1,
            state=EXPIRED,
            offset_bytes=last.stop_bytes,
            length_bytes=0,
            digest=NOTHING,
            groups=b"",
            details=b"",
        )
    )
    return True
