"""Reading blobs by range: every byte verified before it is handed on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, Protocol

from holdfast import _native
from holdfast.backend.log.payloads import OFFSET_MASK, Index, Payloads, Place
from holdfast.bao import OutboardReader, outboard_bytes
from holdfast.errors import CorruptBlob, FormatError, IntegrityError, MissingChunk
from holdfast.facts import FLAG_ZSTD
from holdfast.types import BLOCK_BYTES, Hash
from holdfast.wire.document import parse_blob
from holdfast.wire.pages import STREAM_PAGE_BYTES, ManifestReader, StreamReader
from holdfast.wire.record import FLAG_SHA256, HEADER_BYTES

RUN_BYTES: Final = 256 << 10
"""From here on it pays to look the places of chunks up together."""
PIECE_BYTES: Final = 1 << 20
"""About how much `iter_bytes` gives at a time."""
READ_AHEAD: Final = 3
"""How many pieces are read before they are asked for."""
MAX_PLACES: Final = 65_536
MAX_VECTORS: Final = 1_024
"""How many buffers one system call fills (Linux, IOV_MAX)."""
MAX_PAIR_PAGES: Final = 64
"""4 MiB: the outboard of 1 GiB."""
"""How many places of chunks a reader remembers."""


class BlobReader(Protocol):
    """Reads one blob. Threads may share it."""

    size_bytes: int

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Give exactly that range, verified; it lies within the blob."""

    def iter_bytes(self, start: int, stop: int) -> Iterator[bytes]:
        """Give a range in verified pieces of about 1 MiB."""


class SmallReader:
    """A blob of one block: its payload is read and verified whole."""

    def __init__(self, payloads: Payloads, hash_: bytes, place: Place) -> None:
        self.size_bytes = place.plain_bytes
        self._payloads = payloads
        self._hash = hash_
        self._place = place

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        return self._payloads.read(self._hash, self._place)[offset_bytes : offset_bytes + length_bytes]

    def iter_bytes(self, start: int, stop: int) -> Iterator[bytes]:
        if stop > start:
            yield self.read_at(start, stop - start)


class LargeReader:
    """A blob with a manifest and an outboard.

    Ranges are verified block by block against the root, whatever chunks they lie in; where chunks are
    compressed, or the outboard is damaged, chunk by chunk against their own hashes (which the verified
    manifest names). A whole blob is read chunk by chunk as well, two runs at a time.
    """

    def __init__(
        self,
        payloads: Payloads,
        index: Callable[[], Index],
        pool: ThreadPoolExecutor,
        document: bytes,
        hash_: bytes,
    ) -> None:
        blob = parse_blob(document)
        self.size_bytes = blob.size_bytes
        self.document = blob
        self._hash = hash_
        self._payloads = payloads
        self._index = index
        self._pool = pool
        self.manifest = ManifestReader(blob.manifest, blob.size_bytes, self._load_page)
        stream = StreamReader(blob.outboard, outboard_bytes(blob.size_bytes), self._load_page)
        self.outboard_stream = stream
        self._outboard: OutboardReader | None = OutboardReader(blob.size_bytes, hash_, stream.read)
        self._places: dict[bytes, Place] = {}
        self._pair_pages: dict[int, bytes] = {}

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        if not length_bytes:
            return b""
        first = offset_bytes // BLOCK_BYTES
        start = first * BLOCK_BYTES
        stop = min(-(-(offset_bytes + length_bytes) // BLOCK_BYTES) * BLOCK_BYTES, self.size_bytes)
        outboard = self._outboard  # another thread may find it damaged
        data = self._read_raw(start, stop) if outboard is not None else None
        if outboard is not None and data is not None and self._verified(outboard, data, first):
            at = offset_bytes - start
            return bytes(data[at : at + length_bytes])
        return self._read_chunks(offset_bytes, offset_bytes + length_bytes)

    def read_data(self, offset: int, length: int) -> bytes | bytearray:
        """Give bytes as they lie on disk, for who verifies them; where that does not do, verified ones."""
        stop = offset + length
        if length >= RUN_BYTES:
            whole, at = bytearray(length), 0
            view = memoryview(whole)
            for run in self._runs(offset, stop):
                count = self._read_into(view[at:], run)
                if count < 0:
                    piece = self._read_run(run)
                    count = len(piece)
                    view[at : at + count] = piece
                at += count
            return whole
        data = self._read_raw(offset, stop)
        return self._read_chunks(offset, stop) if data is None else data

    def read_pairs(self, offset: int, length: int) -> bytes:
        """Give pairs of the outboard, for who verifies them."""
        page, at = divmod(offset, STREAM_PAGE_BYTES)
        content = self._pair_pages.get(page)
        if content is None:
            content = self.outboard_stream.leaf_at(offset).content
            if len(self._pair_pages) >= MAX_PAIR_PAGES:
                self._pair_pages.clear()
            self._pair_pages[page] = content
        pairs = content[at : at + length]
        return pairs if len(pairs) == length else self.outboard_stream.read(offset, length)

    def _verified(self, outboard: OutboardReader, data: bytes | bytearray, first_block: int) -> bool:
        """Check blocks against the root. A bad outboard is not the data's fault: chunk hashes decide then."""
        try:
            return outboard.check(data, first_block) < 0
        except (IntegrityError, FormatError):
            self._payloads.bad_outboards += 1
            self._outboard = None
            return False

    def _load_page(self, hash_: bytes) -> bytes:
        try:
            return self._payloads.load(hash_)
        except IntegrityError as error:
            self._blame(error)
            raise

    def _blame(self, error: IntegrityError, offset: int | None = None) -> None:
        """Say in the error which blob is hit, beside the piece of it that is damaged."""
        error.evidence.setdefault("piece", error.evidence.get("hash"))
        error.evidence["hash"] = Hash(self._hash)
        if offset is not None:
            error.evidence["blob_offset_bytes"] = offset

    def _read_raw(self, start: int, stop: int) -> bytes | bytearray | None:
        """Read a range as it lies on disk; None where that does not do (compressed, moved, cut off)."""
        leaf = self.manifest.leaf_at(start)
        starts = leaf.starts
        i = bisect_right(starts, start) - 1
        place = self._place(leaf.entries[i][2])
        at = start - starts[i]
        if stop <= starts[i + 1]:  # within one chunk: the common case
            if place.flags & FLAG_ZSTD:
                return None
            return self._pread(place, at, stop - start)
        parts = bytearray()
        while True:
            length = min(stop, starts[i + 1]) - start
            if place.flags & FLAG_ZSTD:
                return None
            part = self._pread(place, at, length)
            if part is None:
                return None
            parts += part
            start += length
            if start == stop:
                return parts
            i += 1
            if i == len(leaf.entries):
                leaf = self.manifest.leaf_at(start)
                starts, i = leaf.starts, 0
            place, at = self._place(leaf.entries[i][2]), 0

    def _pread(self, place: Place, at: int, length: int) -> bytes | None:
        location = place.location
        try:
            data = self._payloads.handles.read(
                location >> 32, (location & OFFSET_MASK) + HEADER_BYTES + at, length
            )
        except FileNotFoundError:
            self._places.clear()  # compacted away: the next look-up knows where
            return None
        except OSError:
            return None
        return data if len(data) == length else None

    def _place(self, digest: bytes) -> Place:
        place = self._places.get(digest)
        if place is None:
            if len(self._places) >= MAX_PLACES:
                self._places.clear()
            place = self._places[digest] = self._payloads.find(digest)
        return place

    def _read_chunks(self, start: int, stop: int) -> bytes:
        """Read a range by whole chunks, each against its own hash."""
        parts = []
        for chunk_start, _, length, digest in self.manifest.iter_chunks(start, stop):
            data = self._chunk(digest, length, chunk_start)
            parts.append(data[max(0, start - chunk_start) : stop - chunk_start])
        return b"".join(parts)

    def _chunk(self, digest: bytes, length: int, offset: int) -> bytes:
        try:
            data = self._payloads.read(digest, self._place(digest))
        except IntegrityError as error:
            self._blame(error, offset)
            raise
        except FileNotFoundError:
            self._places.pop(digest, None)
            data = self._payloads.load(digest)
        if len(data) != length:
            raise CorruptBlob(
                f"a chunk of blob {self._hash.hex()} at {offset} has {len(data)} bytes in place of {length}",
                hash=Hash(self._hash),
                offset_bytes=offset,
            )
        return data

    def iter_bytes(self, start: int, stop: int) -> Iterator[bytes]:
        if stop - start <= PIECE_BYTES:
            if stop > start:
                yield self._read_chunks(start, stop)
            return
        ahead: list[Future[bytes]] = []
        try:
            for run in self._runs(start, stop):
                ahead.append(self._pool.submit(self._read_run, run))
                if len(ahead) > READ_AHEAD:
                    yield ahead.pop(0).result()
            while ahead:
                yield ahead.pop(0).result()
        finally:
            for future in ahead:
                future.cancel()

    def _runs(self, start: int, stop: int) -> Iterator[_Run]:
        """Cut a range into runs of chunks, about a piece each, and look their places up in batches."""
        for leaf in self.manifest.iter_leaves(start, stop):
            first = max(0, bisect_right(leaf.starts, start) - 1)
            last = first
            while last < len(leaf.entries) and leaf.starts[last] < stop:
                last += 1
            digests = [entry[2] for entry in leaf.entries[first:last]]
            found = self._index().find_data(digests)
            run: list[tuple[int, int, bytes, Place]] = []
            size = 0
            for i, digest in enumerate(digests, first):
                row = found.get(digest)
                if row is None:
                    missing = MissingChunk(
                        f"a chunk of blob {self._hash.hex()} at offset {leaf.starts[i]} is not here",
                        hash=Hash(self._hash),
                        piece=Hash(digest),
                        offset_bytes=leaf.starts[i],
                    )
                    raise self._payloads.suspect(digest, missing)
                length = leaf.entries[i][1]
                run.append((leaf.starts[i], length, digest, Place._make(row)))
                size += length
                if size >= PIECE_BYTES:
                    yield _Run(run, start, stop)
                    run, size = [], 0
            if run:
                yield _Run(run, start, stop)

    def _read_run(self, run: _Run) -> bytes:
        """Read a run: in one system call and one check where its chunks lie side by side, else one by one."""
        chunks = run.chunks
        whole = self._read_adjacent(chunks)
        if whole is None:
            whole = b"".join([self._read_chunk(chunk) for chunk in chunks])
        first, stop = chunks[0][0], chunks[-1][0] + chunks[-1][1]
        if first < run.start or stop > run.stop:
            return whole[max(0, run.start - first) : run.stop - first]
        return whole

    def _read_chunk(self, chunk: tuple[int, int, bytes, Place]) -> bytes:
        start, length, digest, place = chunk
        self._places[digest] = place
        try:
            return self._chunk(digest, length, start)
        finally:
            self._places.pop(digest, None)

    def _read_into(self, view: memoryview, run: _Run) -> int:
        """Read a run whose chunks lie side by side straight into its place, unverified; its length, or -1."""
        chunks = run.chunks
        stop = _adjacent_stop(chunks)
        if stop < 0 or len(chunks) > MAX_VECTORS // 2:
            return -1
        location, at = chunks[0][3].location, 0
        skipped = max(0, run.start - chunks[0][0])
        buffers: list[bytearray | memoryview] = []
        for start, length, _, _ in chunks:
            size = min(run.stop, start + length) - max(run.start, start)
            buffers += (view[at : at + size], bytearray(HEADER_BYTES))  # the header of the next one
            at += size
        del buffers[-1]
        try:
            offset = (location & OFFSET_MASK) + HEADER_BYTES + skipped
            count = self._payloads.handles.read_into(location >> 32, buffers, offset)
        except OSError:
            return -1
        return at if count == at + HEADER_BYTES * (len(chunks) - 1) else -1

    def _read_adjacent(self, chunks: list[tuple[int, int, bytes, Place]]) -> bytes | None:
        location, expected = chunks[0][3].location, _adjacent_stop(chunks)
        if expected < 0:
            return None
        try:
            data = self._payloads.handles.read(location >> 32, location & OFFSET_MASK, expected - location)
        except OSError:
            return None
        if len(data) != expected - location:
            return None
        offsets, lengths, at = [], [], HEADER_BYTES
        for _, length, _, _ in chunks:
            offsets.append(at)
            lengths.append(length)
            at += length + HEADER_BYTES
        digests = b"".join([chunk[2] for chunk in chunks])
        if _native.verify_many(data, offsets, lengths, digests) >= 0:
            return None
        view = memoryview(data)
        return b"".join([view[at : at + length] for at, length in zip(offsets, lengths, strict=True)])


def _adjacent_stop(chunks: list[tuple[int, int, bytes, Place]]) -> int:
    """Where chunks end that lie side by side, as they are; -1 for others."""
    expected = chunks[0][3].location
    for _, length, _, place in chunks:
        if (
            place.location != expected
            or place.flags & (FLAG_ZSTD | FLAG_SHA256)
            or place.stored_bytes != length
        ):
            return -1
        expected += HEADER_BYTES + length
    return expected


class _Run(NamedTuple):
    """Consecutive chunks (offset in the blob, length, digest, place) that a range covers in part or whole."""

    chunks: list[tuple[int, int, bytes, Place]]
    start: int
    stop: int
