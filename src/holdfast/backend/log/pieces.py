"""What a large blob is made of: pages of its manifest and outboard, and chunks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from holdfast.backend.log.payloads import Payloads
from holdfast.bao import outboard_bytes
from holdfast.errors import CorruptBlob, HoldfastError
from holdfast.types import HASH_BYTES, Hash
from holdfast.wire.document import parse_blob
from holdfast.wire.pages import ENTRY_BYTES, ManifestReader, StreamReader

_DIGEST_AT: Final = ENTRY_BYTES - HASH_BYTES


def iter_pieces(payloads: Payloads, hash_: bytes, document: bytes) -> Iterator[list[bytes]]:
    """Give the digests of all pieces, some at a time, from the blob's document; `IntegrityError`, `FormatError`.

    Reads the manifest and the inner pages of the outboard, and of neither holds more than some pages.
    """
    blob = parse_blob(document)
    if blob.hash != hash_:
        raise CorruptBlob(f"the record of blob {hash_.hex()} describes another blob", hash=Hash(hash_))
    if not blob.manifest.depth:
        yield _digests(blob.manifest.body)
    for page, is_leaf in ManifestReader(blob.manifest, blob.size_bytes, payloads.load).iter_pages():
        yield [page]
        if is_leaf:
            yield _digests(payloads.load(page))
    outboard = StreamReader(blob.outboard, outboard_bytes(blob.size_bytes), payloads.load)
    for page, _ in outboard.iter_pages():
        yield [page]


def is_whole(
    payloads: Payloads,
    hash_: bytes,
    location: int,
    stored: int,
    find: Callable[[Sequence[bytes]], Collection[bytes]],
) -> bool:
    """Whether `find` finds all pieces of a large blob, and what describes it can be read."""
    try:
        document = payloads.read_document(hash_, location, stored)
        return all(len(find(some)) == len(set(some)) for some in iter_pieces(payloads, hash_, document))
    except (HoldfastError, OSError):
        return False


def _digests(page: bytes) -> list[bytes]:
    if len(page) % ENTRY_BYTES:
        raise CorruptBlob(f"a manifest page of {len(page)} bytes")
    return [page[at : at + HASH_BYTES] for at in range(_DIGEST_AT, len(page), ENTRY_BYTES)]
