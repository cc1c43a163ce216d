"""Uploads: puts of unknown length that go on after a crash. Their states, their tokens, what they hold, their end.

An upload is a name of its own: each state is a record with a revision, the highest counts. `log_resumable` writes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final

from holdfast.backend.log.layout import UPLOADS
from holdfast.errors import FormatError, IntegrityError, InvalidInput, UnreadableRoot, UploadNotFound
from holdfast.log_core import LogCore
from holdfast.types import BLOCK_BYTES, BytesLike, Upload, id_text, now_ms, to_datetime
from holdfast.wire.pages import ManifestReader, StreamReader
from holdfast.wire.record import Kind
from holdfast.wire.upload import TOKEN_BYTES, UploadDocument, UploadState, encode_upload, parse_upload

RESUMED: Final = 16
"""Whoever resumes goes on so many revisions higher: a state of the one before that comes to light later is lower."""

Load = Callable[[bytes], bytes]


def new_token() -> bytes:
    """Make a token that nobody guesses."""
    return os.urandom(TOKEN_BYTES)


def parse_token(text: object) -> bytes:
    """Read a token; `InvalidInput` when it cannot be one."""
    if isinstance(text, str) and len(text) == 2 * TOKEN_BYTES:
        try:
            return bytes.fromhex(text)
        except ValueError:
            pass
    raise InvalidInput(f"not the token of an upload: {text!r:.100} (32 hex digits are expected)")


def find_open(core: LogCore, token: bytes, time_ms: int) -> UploadDocument:
    """Give the state of an upload that can go on; a typed error that says what became of any other."""
    raw = core.catalog.find_upload(token)
    if raw is None:
        raise not_found(token, None, 0)
    document = parse_upload(raw)
    state = UploadState(document.state)
    if state == UploadState.OPEN and document.expires_ms <= time_ms:
        state = UploadState.EXPIRED
    if state != UploadState.OPEN:
        raise not_found(token, state, document.expires_ms, id_text(document.artifact))
    return document


def not_found(
    token: bytes, state: UploadState | None, expires_ms: int, artifact_id: str = ""
) -> UploadNotFound:
    """Give the error for an upload that cannot go on. `state`: None for one that nobody knows."""
    text = token.hex()
    if state is None:
        return UploadNotFound(f"there is no upload {text}: begin a new one", token=text, state="unknown")
    if state == UploadState.COMMITTED:
        why = f"was committed already: it is artifact {artifact_id}"
    elif state == UploadState.ABORTED:
        why = "was given up: begin a new one"
    else:
        why = f"expired {to_datetime(expires_ms):%Y-%m-%d %H:%M} UTC: begin a new one"
    return UploadNotFound(
        f"the upload {text} {why}",
        token=text,
        state=state.name.lower(),
        artifact_id=artifact_id if state == UploadState.COMMITTED else None,
    )


def iter_uploads(core: LogCore) -> Iterator[Upload]:
    """Give the uploads that can go on, in the order of their tokens."""
    now = now_ms()
    for raw in core.catalog.iter_open_uploads():
        found = parse_upload(raw)
        if found.expires_ms <= now:
            continue
        yield Upload(
            token=found.token.hex(),
            offset_bytes=found.offset_bytes,
            created_at=to_datetime(found.created_ms),
            modified_at=to_datetime(found.modified_ms),
            expires_at=to_datetime(found.expires_ms),
        )


def iter_held(document: UploadDocument, load: Load) -> Iterator[bytes]:
    """Give the hash of each payload that an open upload keeps: its chunks, its pages, and the pieces of its tail.

    `load` gives the payload of a hash; what it raises goes through, because a root that cannot be read stops a
    collection. Memory: a page for each level.
    """
    manifest = _manifest(document, load)
    for pages in (manifest.iter_pages(), _groups(document, load).iter_pages()):
        for page, _ in pages:
            yield page
    for _, _, _, digest in manifest.iter_chunks():
        yield digest
    for _, digest in document.tail:
        yield digest


def iter_roots(core: LogCore) -> Iterator[bytes]:
    """Give what all open uploads keep: roots of each collection. `UnreadableRoot` where that cannot be known."""
    for raw in core.catalog.iter_open_uploads():
        document = parse_upload(raw)
        try:
            yield from iter_held(document, core.backend.payloads.load)
        except (IntegrityError, FormatError) as error:
            token = document.token.hex()
            raise UnreadableRoot(
                f"nothing is collected: the upload {token} cannot be read, so nobody knows what it keeps ({error})."
                " Repair it, or abort it on purpose",
                root=f"upload {token}",
            ) from error


def iter_pieces(document: UploadDocument, load: Load, start: int) -> Iterator[tuple[int, int, bytes]]:
    """Give (length, offset, hash) of the chunks, and of the pieces of the tail, that hold the bytes from `start` on."""
    for offset, _, length, digest in _manifest(document, load).iter_chunks(start):
        yield length, offset, digest
    offset = document.cut_bytes
    for length, digest in document.tail:
        if offset + length > start:
            yield length, offset, digest
        offset += length


def iter_bytes(document: UploadDocument, load: Load, start: int) -> Iterator[BytesLike]:
    """Give what is durable of an upload, verified, from `start` on."""
    for _, offset, digest in iter_pieces(document, load, start):
        yield memoryview(load(digest))[max(0, start - offset) :]


def iter_groups(document: UploadDocument, load: Load) -> Iterator[bytes]:
    """Give the chaining values of the blocks so far, in pieces."""
    return _groups(document, load).iter_pieces()


def iter_entries(document: UploadDocument, load: Load) -> Iterator[tuple[list[int], list[bytes]]]:
    """Give lengths and digests of the chunks so far, a page at a time."""
    for leaf in _manifest(document, load).iter_leaves():
        yield [entry[1] for entry in leaf.entries], [entry[2] for entry in leaf.entries]


def blocks_before(document: UploadDocument) -> int:
    """How many bytes the chaining values of an upload stand for."""
    return document.groups_bytes // 32 * BLOCK_BYTES


def expire_uploads(core: LogCore, time_ms: int) -> list[str]:
    """End the uploads whose time is over and that nobody is writing; gives their tokens.

    Durable when it returns. What they alone held is then for the collector to find.
    """
    claims = core.backend.claims
    ended: list[str] = []
    if all(parse_upload(raw).expires_ms > time_ms for raw in core.catalog.iter_open_uploads()):
        return ended
    with core.changing() as group:
        for raw in core.catalog.iter_open_uploads():
            found = parse_upload(raw)
            if found.expires_ms > time_ms or claims.is_held(UPLOADS, found.token.hex()):
                continue
            last = closed(found, UploadState.EXPIRED, time_ms)
            last = last._replace(revision=core.next_revision(found.revision))
            group.add_one(Kind.UPLOAD, encode_upload(last))
            ended.append(found.token.hex())
    return ended


def closed(
    document: UploadDocument, state: UploadState, time_ms: int, artifact: bytes = bytes(16)
) -> UploadDocument:
    """Give the last state of an upload."""
    return UploadDocument(
        document.token,
        document.revision + 1,
        state,
        document.created_ms,
        time_ms,
        document.expires_ms,
        document.offset_bytes,
        artifact,
    )


def _manifest(document: UploadDocument, load: Load) -> ManifestReader:
    return ManifestReader(document.manifest, document.cut_bytes, load)


def _groups(document: UploadDocument, load: Load) -> StreamReader:
    return StreamReader(document.groups, document.groups_bytes, load)
