"""Checking records that lie side by side: read in one go, summed and hashed without the GIL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from holdfast import _native
from holdfast.backend.log.backend import LogBackend
from holdfast.backend.log.payloads import matches
from holdfast.errors import IntegrityError
from holdfast.wire.record import (
    ENTRY,
    ENTRY_BYTES,
    FLAG_SHA256,
    FLAG_ZSTD,
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    Entry,
    iter_entries,
)

READ_BYTES: Final = 4 << 20


def iter_stretches(entries: bytes) -> Iterator[list[Entry]]:
    """Cut entries into runs that lie side by side and are read in one go."""
    run: list[Entry] = []
    step = 4_096 * ENTRY_BYTES
    for first in range(0, len(entries), step):
        for entry in iter_entries(entries[first : first + step]):
            if run and (entry.offset != run[-1].stop or entry.stop - run[0].offset > READ_BYTES):
                yield run
                run = []
            run.append(entry)
    if run:
        yield run


def check_stretch(backend: LogBackend, handle: int, segment: int, run: list[Entry]) -> dict[int, str]:
    """Check records that lie side by side: what is wrong, by their number."""
    start, stop = run[0].offset, run[-1].stop
    if stop - start > MAX_RECORD_BYTES + READ_BYTES + HEADER_BYTES:
        return {0: "longer than any record can be"}
    data = backend.disk.pread(handle, stop - start, start)
    packed = b"".join(ENTRY.pack(*entry) for entry in run)
    bad: dict[int, str] = {}
    for number, why in _native.check_payloads(data, packed, start):
        if why == "hash" and run[number].flags & FLAG_SHA256 and _is_sha256(data, run[number], start):
            continue
        bad[number] = why
    for number, entry in enumerate(run):
        if number not in bad and entry.flags & FLAG_ZSTD:
            why_not = _check_packed(backend, data, entry, start, segment)
            if why_not:
                bad[number] = why_not
    return bad


def _is_sha256(data: bytes, entry: Entry, start: int) -> bool:
    at = entry.offset - start + HEADER_BYTES
    return matches(data[at : at + entry.stored_bytes], entry.hash, FLAG_SHA256)


def _check_packed(backend: LogBackend, data: bytes, entry: Entry, start: int, segment: int) -> str | None:
    at = entry.offset - start + HEADER_BYTES
    location = segment << 32 | entry.offset
    try:
        plain = backend.payloads.decompress(
            memoryview(data)[at : at + entry.stored_bytes], entry.plain_bytes, entry.hash, location
        )
    except IntegrityError:
        return "compression"
    return None if matches(plain, entry.hash, entry.flags) else "hash"
