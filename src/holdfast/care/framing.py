"""Putting back what is derived: headers of records, commits, close records, footers, the header of a segment.

All of it follows from payloads that are sound, so what is written is what stood there, and a crash on the way leaves
nothing worse. Payloads are never touched here: they are stored anew elsewhere (`repair`). The layout: docs/format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.backend import LogBackend
from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.segment import read_tail, scan_records, slice_entries
from holdfast.errors import FormatError
from holdfast.types import BytesLike, now_ms
from holdfast.wire.record import (
    DOCUMENT_KINDS,
    ENTRY,
    FLAG_BLOB,
    FLAG_SHA256,
    FLAG_ZSTD,
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    PAYLOAD_KINDS,
    SEGMENT_HEADER_BYTES,
    TAIL_BYTES,
    Entry,
    Kind,
    SegmentHeader,
    encode_footer,
    encode_segment_header,
    iter_entries,
    parse_commit,
    parse_segment_header,
)

MAX_MENDED_BYTES: Final = 16 << 10
"""Up to this length a flipped bit is looked for by trying each: a second at most."""
UNKNOWN: Final = "no record, and what it was is not known"
MAX_BITS: Final = 24
"""How many bits of a header may differ from what follows from its payload: the payload's hash stands in it."""


class Mended(NamedTuple):
    """What was put back in a segment, and what was not: (offset, what)."""

    done: list[tuple[int, str]]
    left: list[tuple[int, str]]
    sealed: bool
    has_facts: bool
    """Whether records came back that the catalog may not know."""


def mend_bit(data: bytes, is_right: Callable[[bytes], bool]) -> bytes | None:
    """Find the one bit whose flip makes `data` right; None when there is none, or it is too long to try."""
    if len(data) > MAX_MENDED_BYTES:
        return None
    trial = bytearray(data)
    for at in range(len(data)):
        for bit in range(8):
            trial[at] ^= 1 << bit
            if is_right(bytes(trial)):
                return bytes(trial)
            trial[at] ^= 1 << bit
    return None


CopyOf = Callable[[int, int, int, bytes], bytes | None]
"""(segment, start, stop, entries of what follows): what stands there in a copy of the very same segment."""


class Framing:
    """One segment, held by its lock if nobody else writes it."""

    def __init__(self, backend: LogBackend, segment: int, applied: int, copy_of: CopyOf) -> None:
        self._copy_of = copy_of
        self._disk = backend.disk
        self._store_id = backend.store.id
        self._segment = segment
        self._applied = applied
        self._payloads = backend.payloads
        self._handle = self._disk.open(segment_path(backend.root, segment), "a")
        self._done: list[tuple[int, str]] = []
        self._left: list[tuple[int, str]] = []
        self._has_facts = False

    def close(self) -> None:
        """Give the file back."""
        self._disk.close(self._handle)

    def mend(self) -> Mended:
        """Put back what can be proved, durably."""
        size = self._disk.size(self._handle)
        self._mend_segment_header()
        stop, sealed = self._find_stop(size)
        entries = self._read_footer(stop, size) if sealed else None
        if entries is None:
            entries = self._walk(stop)
        else:
            entries = self._mend_headers(entries)
        entries = self._mend_commits(entries)
        if sealed:
            self._mend_footer(entries, stop, size)
        if self._done:
            self._disk.fsync(self._handle)
        return Mended(self._done, self._left, sealed, self._has_facts)

    def _read(self, length: int, offset: int) -> bytes:
        return self._disk.pread(self._handle, length, offset)

    def _write(self, data: bytes, offset: int, what: str) -> None:
        self._disk.pwrite(self._handle, [data], offset)
        self._done.append((offset, what))

    def _mend_segment_header(self) -> None:
        data = self._read(SEGMENT_HEADER_BYTES, 0)
        header = SegmentHeader(self._segment, self._store_id, now_ms())
        if _is_header_of(data, header):
            return
        mended = mend_bit(data, lambda trial: _is_header_of(trial, header))
        self._write(mended or encode_segment_header(header), 0, "segment header")

    def _find_stop(self, size: int) -> tuple[int, bool]:
        """Give where the records end, and whether a footer follows: END says so, or the footer's records do."""
        tail = read_tail(self._disk, self._handle, self._segment, size)
        if tail.end is not None:
            return tail.end.records_stop, True
        for found in scan_records(self._disk, self._handle, self._segment, SEGMENT_HEADER_BYTES, size):
            for entry in iter_entries(found.entries):
                if entry.kind == Kind.FOOTER:
                    return entry.offset, True
        return (size if tail.closed else min(size, max(self._applied, SEGMENT_HEADER_BYTES))), False

    def _read_footer(self, start: int, size: int) -> bytes | None:
        """Give the entries of a footer whose pages are sound, whatever END is."""
        data = self._read(size - start, start)
        listed, _, _ = _native.scan(data, self._segment, start, deep=True)
        pages = []
        at = 0
        for entry in iter_entries(listed):
            page = data[entry.offset - start + HEADER_BYTES : entry.stop - start]
            if entry.kind != Kind.FOOTER or _native.blake3(page) != entry.hash:
                return None
            if not entry.flags & 4:
                pages.append(page)
            at = entry.stop
        entries = b"".join(pages)
        if not entries or len(entries) % ENTRY.size or at < size - TAIL_BYTES:
            return None
        at = SEGMENT_HEADER_BYTES
        for entry in _each(entries):
            if entry.offset != at:
                return None  # it was sealed when damage hid a record
            at = entry.stop
        return entries if at == start else None

    # -- headers

    def _mend_headers(self, entries: bytes) -> bytes:
        """The index is sound: it says what each header was."""
        for entry in _each(entries):
            header = self._read(HEADER_BYTES, entry.offset)
            found = _native.find_header(header, self._segment, entry.offset, 0)
            if found == 0 and _entry_of(header) == entry:
                continue
            payload = self._read(entry.stored_bytes, entry.offset + HEADER_BYTES)
            if entry.kind in PAYLOAD_KINDS and not self._is_payload(payload, entry):
                continue  # its place is in quarantine, and the index tells what was there
            if entry.kind not in PAYLOAD_KINDS and _native.blake3(payload) != entry.hash:
                continue
            self._write(_header(self._segment, entry, payload), entry.offset, "header")
        return entries

    def _walk(self, stop: int) -> bytes:
        """There is no index: walk, and close each gap with the record that lay there."""
        parts: list[bytes] = []
        at = SEGMENT_HEADER_BYTES
        gap: int | None = None
        gaps: list[tuple[int, int]] = []
        for found in scan_records(self._disk, self._handle, self._segment, SEGMENT_HEADER_BYTES, stop):
            if gap is not None and found.start > gap:
                gaps.append((gap, found.start))
                gap = None
            parts.append(found.entries)
            at = found.stop
            if found.trouble:
                gap = at if gap is None else gap
        if gap is not None:
            gaps.append((gap, stop))
        entries = b"".join(parts)
        for start, end in gaps:
            later = slice_entries(entries, start, 1 << 32)
            entries = slice_entries(entries, 0, start) + b"".join(self._close_gap(start, end, later)) + later
        return entries

    def _close_gap(self, start: int, stop: int, later: bytes) -> list[bytes]:
        entry = self._guess(start, stop)
        if entry is None:
            whole = self._copy_of(self._segment, start, stop, later)
            if whole is not None:
                self._write(whole, start, "stretch")
                self._has_facts = True
                return [_native.scan(whole, self._segment, start, deep=True)[0]]
            self._left.append((start, UNKNOWN))
            return []
        payload = self._read(entry.stored_bytes, entry.offset + HEADER_BYTES)
        self._write(_header(self._segment, entry, payload), start, "header")
        self._has_facts = True
        return [ENTRY.pack(*entry)]

    def _guess(self, start: int, stop: int) -> Entry | None:
        """Give the record whose header is nearest to the damaged one; its payload proves the hash that stands there."""
        length = stop - start - HEADER_BYTES
        if not 0 <= length <= MAX_RECORD_BYTES:
            return None
        damaged = self._read(HEADER_BYTES, start)
        payload = self._read(length, start + HEADER_BYTES)
        if len(damaged) + len(payload) != stop - start:
            return None
        best: tuple[int, Entry] | None = None
        for entry in self._candidates(start, payload):
            distance = _distance(_header(self._segment, entry, payload), damaged)
            if best is None or distance < best[0]:
                best = distance, entry
        return best[1] if best is not None and best[0] <= MAX_BITS else None

    def _candidates(self, offset: int, payload: bytes) -> Iterator[Entry]:
        length = len(payload)
        hash_ = _native.blake3(payload)
        for kind in (*sorted(DOCUMENT_KINDS), Kind.TIMES, Kind.COMMIT, Kind.CLOSE):
            yield Entry(kind, 0, offset, length, length, hash_)
        plains = [(0, payload)]
        packed = self._unpack(payload)
        if packed is not None:
            plains.append((FLAG_ZSTD, packed))
        import hashlib

        for mark, plain in plains:
            for kind in sorted(PAYLOAD_KINDS):
                name = _native.blake3(plain)
                for flags in (0, FLAG_BLOB) if kind == Kind.DATA else (0,):
                    yield Entry(kind, mark | flags, offset, length, len(plain), name)
            yield Entry(
                Kind.DATA, mark | FLAG_SHA256, offset, length, len(plain), hashlib.sha256(plain).digest()
            )

    def _unpack(self, payload: bytes) -> bytes | None:
        import zstandard

        try:
            if not 0 < zstandard.frame_content_size(payload) <= MAX_RECORD_BYTES:
                return None
            return zstandard.ZstdDecompressor().decompress(payload)
        except zstandard.ZstdError:
            return None

    def _is_payload(self, payload: bytes, entry: Entry) -> bool:
        plain = self._unpack(payload) if entry.flags & FLAG_ZSTD else payload
        if plain is None:
            return False
        if entry.flags & FLAG_SHA256:
            import hashlib

            return hashlib.sha256(plain).digest() == entry.hash
        return _native.blake3(plain) == entry.hash

    # -- commits and the end

    def _mend_commits(self, entries: bytes) -> bytes:
        """Framing records whose payload is damaged: one flipped bit is found, because the header has their hash."""
        for entry in _each(entries):
            if entry.kind not in (Kind.COMMIT, Kind.CLOSE, Kind.TIMES):
                continue
            payload = self._read(entry.stored_bytes, entry.offset + HEADER_BYTES)
            if _native.blake3(payload) == entry.hash:
                continue
            mended = mend_bit(payload, partial(_has_hash, entry.hash))
            if entry.kind == Kind.CLOSE and mended is None:
                mended = bytes(16)
            if mended is None:
                later = slice_entries(entries, entry.offset, 1 << 32)
                whole = self._copy_of(self._segment, entry.offset, entry.stop, later)
                if whole is not None and _native.blake3(whole[HEADER_BYTES:]) == entry.hash:
                    mended = whole[HEADER_BYTES:]
            if mended is None or (entry.kind == Kind.COMMIT and parse_commit(mended) is None):
                self._left.append(
                    (entry.offset, f"a record ({Kind(entry.kind).name.lower()}) whose bytes are gone")
                )
                continue
            record = _header(self._segment, entry, mended) + mended
            self._write(record, entry.offset, Kind(entry.kind).name.lower())
            self._has_facts = True
        return entries

    def _mend_footer(self, entries: bytes, start: int, size: int) -> None:
        whole = encode_footer(self._segment, start, entries)
        if len(whole) < size - start:
            self._left.append((start, "the index does not list what is there"))
        elif self._read(size - start, start) != whole:
            self._write(whole, start, "index")


def _has_hash(hash_: bytes, payload: BytesLike) -> bool:
    return _native.blake3(payload) == hash_


def _each(entries: bytes) -> Iterator[Entry]:
    step = 4_096 * ENTRY.size
    for first in range(0, len(entries), step):
        yield from iter_entries(entries[first : first + step])


def _is_header_of(data: bytes, header: SegmentHeader) -> bool:
    try:
        found = parse_segment_header(data)
    except FormatError:
        return False
    return found is not None and (found.segment, found.store_id) == (header.segment, header.store_id)


def _header(segment: int, entry: Entry, payload: bytes) -> bytes:
    headers, _ = _native.frame(
        segment,
        entry.offset,
        bytes((entry.kind,)),
        bytes((entry.flags,)),
        entry.hash,
        [entry.plain_bytes],
        [payload],
    )
    return headers


def _entry_of(header: bytes) -> Entry:
    kind, flags = header[4], header[5]
    offset, stored, plain = (int.from_bytes(header[at : at + 4], "little") for at in (12, 16, 20))
    return Entry(kind, flags, offset, stored, plain, header[28:60])


def _distance(a: bytes, b: bytes) -> int:
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).bit_count()
