"""Checking records that lie side by side: read in one go, summed and hashed without the GIL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

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
)

READ_BYTES: Final = 4 << 20
_AT_A_TIME: Final = 4_096 * ENTRY_BYTES


class Stretch(NamedTuple):
    """Records from `start` to `stop` of a segment, side by side, with their kinds, flags and index entries."""

    start: int
    stop: int
    kinds: list[int]
    flags: list[int]
    packed: bytes

    @property
    def records(self) -> int:
        """How many records there are."""
        return len(self.kinds)

    def entry(self, number: int) -> Entry:
        """Give one of the index entries."""
        return Entry._make(ENTRY.unpack_from(self.packed, number * ENTRY_BYTES))


def iter_stretches(entries: bytes) -> Iterator[Stretch]:
    """Cut entries into runs that lie side by side and are read in one go."""
    for first in range(0, len(entries), _AT_A_TIME):
        packed = entries[first : first + _AT_A_TIME]
        kinds, flags, offsets, stored, _, _ = _native.entry_columns(packed)
        begin, stop = 0, offsets[0]
        for number, (offset, length) in enumerate(zip(offsets, stored, strict=True)):
            end = offset + HEADER_BYTES + length
            if number > begin and (offset != stop or end - offsets[begin] > READ_BYTES):
                yield _stretch(offsets[begin], stop, begin, number, kinds, flags, packed)
                begin = number
            stop = end
        yield _stretch(offsets[begin], stop, begin, len(offsets), kinds, flags, packed)


def _stretch(
    start: int, stop: int, begin: int, end: int, kinds: list[int], flags: list[int], packed: bytes
) -> Stretch:
    return Stretch(
        start, stop, kinds[begin:end], flags[begin:end], packed[begin * ENTRY_BYTES : end * ENTRY_BYTES]
    )


def check_stretch(backend: LogBackend, handle: int, segment: int, run: Stretch) -> dict[int, str]:
    """Check records that lie side by side: what is wrong, by their number."""
    start, stop = run.start, run.stop
    if stop - start > MAX_RECORD_BYTES + READ_BYTES + HEADER_BYTES:
        return {0: "longer than any record can be"}
    data = backend.disk.pread(handle, stop - start, start)
    bad: dict[int, str] = {}
    for number, why in _native.check_payloads(data, run.packed, start):
        if why == "hash" and run.flags[number] & FLAG_SHA256 and _is_sha256(data, run.entry(number), start):
            continue
        bad[number] = why
    for number, flags in enumerate(run.flags):
        if flags & FLAG_ZSTD and number not in bad:
            why_not = _check_packed(backend, data, run.entry(number), start, segment)
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
