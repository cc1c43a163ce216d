"""From records to facts: the one way in which a group reaches the catalog, at its commit as after a crash."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from holdfast import _native
from holdfast.errors import FormatError, HoldfastError, IntegrityError
from holdfast.facts import KIND_SHIFT, ArtifactRow, Facts
from holdfast.reports import Problem
from holdfast.wire.document import (
    DOCUMENT_VERSION,
    parse_artifact,
    parse_blob_head,
    parse_details,
    parse_quarantine,
    parse_retired,
    parse_tag,
    parse_times,
    parse_tombstone,
)
from holdfast.wire.record import (
    DOCUMENT_KINDS,
    ENTRY_BYTES,
    FLAG_BLOB,
    KNOWN_KINDS,
    MUST_UNDERSTAND,
    PAYLOAD_KINDS,
    VALID_FLAGS,
    Kind,
)
from holdfast.wire.upload import parse_upload

BATCH_RECORDS: Final = 20_000
WINDOW_BYTES: Final = 256 << 10
_KIND_BITS: Final = 0x7F

Payloads = Callable[[int, int, int], bytes]
"""Gives the payload of a record: (its number among the entries, offset of its payload, stored bytes)."""


def location_of(segment: int, offset: int) -> int:
    """Write where a record's header lies as one number."""
    return segment << 32 | offset


def iter_facts(
    segment: int, entries: bytes, time_ms: int, payloads: Payloads, problems: list[Problem] | None = None
) -> Iterator[Facts]:
    """Give the facts of consecutive committed records, in batches with bounded memory.

    With `problems`, documents are checked against their hash, and what cannot be read is added there and left
    out; without (a commit of our own, from memory), it is an error.
    """
    step = BATCH_RECORDS * ENTRY_BYTES
    for begin, end, stored_ms in _times(segment, entries, time_ms, payloads, problems):
        for start in range(begin, end, step):
            part = entries[start : min(end, start + step)]
            yield _facts(segment, part, start // ENTRY_BYTES, stored_ms, payloads, problems)


def _times(
    segment: int, entries: bytes, time_ms: int, payloads: Payloads, problems: list[Problem] | None
) -> Iterator[tuple[int, int, int]]:
    """Cut the entries of a group, as (begin, end, time), where its first record says when its blobs were stored."""
    begin = 0
    if entries[:1] == bytes((Kind.TIMES,)):
        kinds, flags, offsets, stored, _, hashes = _native.entry_columns(entries)
        payload = payloads(0, offsets[0] + 64, stored[0])
        runs: list[tuple[int, int]] = []
        if _native.blake3(payload) == hashes[0]:
            runs = parse_times(payload)
        elif problems is not None:
            message = "times: a record does not match its hash; its blobs seem newer than they are"
            problems.append(
                Problem(kind=IntegrityError.kind, message=message, segment=segment, offset_bytes=offsets[0])
            )
        at = 0
        for count, stored_ms in runs:
            while count and at < len(kinds):
                count -= kinds[at] == Kind.BLOB or (kinds[at] == Kind.DATA and flags[at] & FLAG_BLOB != 0)
                at += 1
            yield begin, at * ENTRY_BYTES, stored_ms
            begin = at * ENTRY_BYTES
    yield begin, len(entries), time_ms


def _facts(
    segment: int, entries: bytes, first: int, time_ms: int, payloads: Payloads, problems: list[Problem] | None
) -> Facts:
    facts = Facts()
    base = segment << 32
    kinds, flags, offsets, stored, plain, hashes = _native.entry_columns(entries)
    documents = []
    data = facts.data
    if bytes(flags).translate(None, VALID_FLAGS):
        for kind, flag, offset in zip(kinds, flags, offsets, strict=True):
            if flag not in VALID_FLAGS and (kind in KNOWN_KINDS or kind & MUST_UNDERSTAND):
                raise _newer(segment, offset, f"kind {kind:#x} with flags {flag:#x}")
    for i, (kind, flag, offset, length, size, hash_) in enumerate(
        zip(kinds, flags, offsets, stored, plain, hashes, strict=True)
    ):
        if kind in PAYLOAD_KINDS:
            data.append(
                (
                    hash_,
                    base | offset,
                    length,
                    None if length == size else size,
                    (kind & _KIND_BITS) << KIND_SHIFT | flag,
                    time_ms if flag & FLAG_BLOB else None,
                )
            )
        elif kind in DOCUMENT_KINDS:
            documents.append((kind, i, offset, length, hash_))
        elif kind not in KNOWN_KINDS and kind & MUST_UNDERSTAND:
            raise _newer(segment, offset, f"kind {kind:#x}")
    for kind, i, offset, length, hash_ in documents:
        payload = payloads(first + i, offset + 64, length)
        try:
            if problems is not None and (len(payload) != length or _native.blake3(payload) != hash_):
                raise IntegrityError("a document does not match its hash")
            _add_document(facts, kind, payload, base | offset, time_ms, is_ours=problems is None)
        except HoldfastError as error:
            if isinstance(error, FormatError) and payload[:1] > bytes((DOCUMENT_VERSION,)):
                raise _newer(segment, offset, f"document version {payload[0]}") from error
            if problems is None:
                raise
            problems.append(
                Problem(
                    kind=error.kind,
                    message=f"{Kind(kind).name.lower()}: {error}",
                    segment=segment,
                    offset_bytes=offset,
                )
            )
    return facts


def _newer(segment: int, offset: int, what: str) -> FormatError:
    """Make the error for what may not be left out: the store without it would be in another state."""
    return FormatError(
        f"segment {segment} holds a record of {what}, which a newer version of Holdfast wrote: upgrade it",
        segment=segment,
        offset_bytes=offset,
    )


def _add_document(
    facts: Facts, kind: int, payload: bytes, location: int, time_ms: int, *, is_ours: bool
) -> None:
    if kind == Kind.ARTIFACT:
        artifact = parse_artifact(payload)
        if not is_ours:
            parse_details(artifact.details)  # whoever lists would stumble over it
        facts.artifacts.append(ArtifactRow._make((*artifact, location)))
    elif kind == Kind.BLOB:
        hash_, size, chunks = parse_blob_head(payload)
        facts.blobs.append((hash_, size, time_ms, location, len(payload), chunks))
    elif kind == Kind.TOMBSTONE:
        facts.tombstones.append((*parse_tombstone(payload), location))
    elif kind == Kind.TAG:
        tag = parse_tag(payload)
        facts.tags.append(
            (tag.name, tag.hash, tag.format, tag.revision, tag.modified_ms, int(tag.deleted), location)
        )
    elif kind == Kind.RETIRED:
        facts.retired.extend((run.start, run.stop) for run in parse_retired(payload))
    elif kind == Kind.UPLOAD:
        upload = parse_upload(payload)
        facts.uploads.append(
            (upload.token, upload.revision, upload.state, upload.expires_ms, payload, location)
        )
    elif kind == Kind.REPAIR:
        found = parse_quarantine(payload)
        facts.repaired.append((location_of(found.segment, found.offset), found.hash))
    elif kind == Kind.QUARANTINE:
        found = parse_quarantine(payload)
        facts.quarantine.append((location_of(found.segment, found.offset), found.hash, found.reason))


def windowed(read: Callable[[int, int], bytes]) -> Payloads:
    """Read payloads through a window, so that many small documents side by side cost few system calls.

    `read(length, offset)` reads from the segment's file.
    """
    window, window_start = b"", 0

    def payload(_: int, offset: int, length: int) -> bytes:
        nonlocal window, window_start
        at = offset - window_start
        if not 0 <= at <= len(window) - length:
            window, window_start, at = read(max(length, WINDOW_BYTES), offset), offset, 0
        return window[at : at + length]

    return payload


def from_memory(payloads: Sequence[bytes | bytearray | memoryview]) -> Payloads:
    """Take payloads from the list that was just framed."""

    def payload(number: int, _offset: int, _length: int) -> bytes:
        return bytes(payloads[number])

    return payload
