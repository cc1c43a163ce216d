"""Reading what is here of a partial blob, each block verified up to the root before it is handed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final

from holdfast.backend.log.disk import Disk, translate
from holdfast.backend.log.partial import BLOCKS, CHUNKS, PAIRS, Partials
from holdfast.backend.log.partial_state import CHUNK_BYTES, PartialState, unpack_chunk
from holdfast.backend.log.payloads import Payloads
from holdfast.backend.log.reader import BlobReader
from holdfast.bao_stream import ReadAt, encode
from holdfast.errors import BlobNotFound, CorruptBlob, MissingChunk, RangeNotAvailable
from holdfast.ranges import ChunkRanges
from holdfast.types import BLOCK_BYTES, BytesLike, Hash

PIECE_BYTES: Final = 1 << 20
TRIES: Final = 4
"""How often a read begins anew when somebody changes the partial blob meanwhile."""


def read_verified(
    hash_: bytes, size_bytes: int, read_data: ReadAt, read_pairs: ReadAt, blocks: ChunkRanges
) -> Iterator[BytesLike]:
    """Give the bytes of whole blocks, verified, in pieces of about 1 MiB at most. `CorruptBlob` as of `encode`."""
    got: list[BytesLike] = []

    def read(offset: int, length: int) -> BytesLike:
        data = read_data(offset, length)
        got.append(data)
        return data

    for _ in encode(size_bytes, hash_, read, read_pairs, blocks, piece_bytes=PIECE_BYTES):
        yield from got  # what was read for a piece is verified once the piece is there
        got.clear()


class PartialReader:
    """Reads a partial blob: `RangeNotAvailable` says what is here where something is not. Threads may share it.

    It needs no lock: what changes meanwhile (blocks move into the log, the blob is completed) is looked up again.
    """

    def __init__(
        self,
        partials: Partials,
        payloads: Payloads,
        hash_: bytes,
        state: PartialState,
        whole: Callable[[], BlobReader | None],
    ) -> None:
        self.hash = hash_
        self.size_bytes = state.size_bytes
        """A claim, as long as `is_size_proven` of the state is not true."""
        self._partials = partials
        self._payloads = payloads
        self._whole = whole

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        if not length_bytes:
            return b""
        stop = offset_bytes + length_bytes
        return b"".join(bytes(piece) for piece in self.iter_bytes(offset_bytes, stop))

    def iter_bytes(self, start: int, stop: int) -> Iterator[bytes]:
        """Give a range in verified pieces. What is not here is said before the first of them."""
        state = self._partials.find(self.hash)
        if state is not None:
            self._require(state, start, stop)
        while start < stop:
            first = start - start % BLOCK_BYTES
            end = min(first + PIECE_BYTES, stop)
            piece = self._blocks(first, min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, self.size_bytes))
            yield piece[start - first : end - first]
            start = end

    def read_data(self, offset: int, length: int) -> bytes:
        """Give bytes that nobody has verified, for who verifies: `encode`."""
        state = self._state(offset, offset + length)
        with _Files(self._partials, self.hash) as files:
            return _read_raw(files, self._payloads, state, offset, offset + length)

    def read_pairs(self, offset: int, length: int) -> bytes:
        """Give pairs of the outboard that nobody has verified, for who verifies: `encode`."""
        with _Files(self._partials, self.hash) as files:
            return files.read(PAIRS, length, offset)

    def require(self, ranges: ChunkRanges) -> None:
        """Raise `RangeNotAvailable` unless all these leaves (clipped to the blob) are here."""
        state = self._partials.find(self.hash)
        if state is None:
            return
        require(self.hash, state, ranges)

    def _state(self, start: int, stop: int) -> PartialState:
        state = self._partials.find(self.hash)
        if state is None:
            raise BlobNotFound(f"the partial blob {self.hash.hex()} is gone", hash=Hash(self.hash))
        self._require(state, start, stop)
        return state

    def _require(self, state: PartialState, start: int, stop: int) -> None:
        wanted = ChunkRanges.bytes(start, stop)
        if not wanted <= state.have:
            raise not_available(self.hash, state, wanted - state.have)

    def _blocks(self, start: int, stop: int) -> bytes:
        """Read and verify whole blocks; again, as long as they move under us."""
        for attempt in range(TRIES):
            state = self._partials.find(self.hash)
            try:
                if state is None:
                    whole = self._whole()
                    if whole is None:
                        raise BlobNotFound(
                            f"the partial blob {self.hash.hex()} is gone", hash=Hash(self.hash)
                        )
                    return whole.read_at(start, stop - start)
                return self._read(state, start, stop)
            except (CorruptBlob, MissingChunk, RangeNotAvailable):
                if attempt == TRIES - 1 or (state is not None and self._partials.find(self.hash) == state):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _read(self, state: PartialState, start: int, stop: int) -> bytes:
        self._require(state, start, stop)
        with _Files(self._partials, self.hash) as files:
            pieces = read_verified(
                self.hash,
                state.size_bytes,
                lambda offset, length: _read_raw(files, self._payloads, state, offset, offset + length),
                lambda offset, length: files.read(PAIRS, length, offset),
                ChunkRanges.bytes(start, stop),
            )
            return b"".join(pieces)


def no_blob(hash_: bytes) -> BlobNotFound:
    """Give the error for a blob of which nothing is here."""
    return BlobNotFound(f"there is no blob {hash_.hex()}", hash=Hash(hash_))


def not_whole(hash_: bytes, state: PartialState) -> BlobNotFound:
    """Give the error for a blob that is partial where all of it is needed."""
    return BlobNotFound(
        f"blob {hash_.hex()} is partial, and all of it is needed: of its {state.size_bytes} bytes these leaves (of"
        f" 1,024 bytes) are here: {str(state.ranges) or 'none':.100}; `blobs.missing_ranges` says what to ask for",
        hash=Hash(hash_),
        here=state.ranges,
        size_bytes=state.size_bytes,
    )


def nothing_here(hash_: bytes) -> RangeNotAvailable:
    """Give the error for a partial blob that was begun, and of which nothing has come."""
    return RangeNotAvailable(
        f"of the partial blob {hash_.hex()} nothing is here yet, not even its size",
        hash=Hash(hash_),
        here=ChunkRanges.empty(),
        size_bytes=0,
    )


def require(hash_: bytes, state: PartialState, ranges: ChunkRanges) -> None:
    """Raise `RangeNotAvailable` unless all these leaves (clipped to the blob) are here."""
    wanted = ranges.select(state.size_bytes)
    if not state.is_size_proven and not wanted <= ranges:
        wanted = ranges  # the last leaf is asked for, and nobody knows which it is
    if not wanted <= state.have:
        raise not_available(hash_, state, wanted - state.have)


def not_available(hash_: bytes, state: PartialState, missing: ChunkRanges) -> RangeNotAvailable:
    """Give the error that says what of a partial blob is not here, and what is."""
    here = (
        str(state.ranges) if len(state.have.boundaries) <= 20 else f"{len(state.have.boundaries) // 2} ranges"
    )
    asked = f"{missing!s:.100}".replace(str(ChunkRanges.last()), "the last leaf, which proves the size")
    return RangeNotAvailable(
        f"of the partial blob {hash_.hex()} the leaves {asked} are not here (here are: {here or 'none'})",
        hash=Hash(hash_),
        missing=missing,
        here=state.ranges,
        size_bytes=state.size_bytes,
    )


class _Files(ExitStack):
    """The files of a partial blob, opened to read as they are needed; `MissingChunk` once it is gone."""

    def __init__(self, partials: Partials, hash_: bytes) -> None:
        super().__init__()
        self._disk: Disk = partials.disk
        self._path = partials.path(hash_)
        self._handles: dict[str, int] = {}

    def read(self, name: str, length: int, offset: int) -> bytes:
        path = f"{self._path}/{name}"
        handle = self._handles.get(name)
        if handle is None:
            try:
                handle = self._handles[name] = self._disk.open(path, "r")
            except FileNotFoundError:
                raise MissingChunk(f"{path} is gone", path=path) from None
            self.callback(self._disk.close, handle)
        try:
            return self._disk.pread(handle, length, offset)
        except OSError as error:
            raise translate(error, path) from error


def _read_raw(files: _Files, payloads: Payloads, state: PartialState, start: int, stop: int) -> bytes:
    """Read blocks from where they lie: chunks in the log, the rest in the sparse file."""
    edge = min(state.logged_blocks * BLOCK_BYTES, stop)
    if start >= edge:
        return files.read(BLOCKS, stop - start, start)
    parts = [_read_log(files, payloads, state, start, edge)]
    if stop > edge:
        parts.append(files.read(BLOCKS, stop - edge, edge))
    return b"".join(parts)


def _read_log(files: _Files, payloads: Payloads, state: PartialState, start: int, stop: int) -> bytes:
    """Read a range from the chunks that are in the log, found by bisection in their list."""
    low, high = 0, state.chunk_count
    while low < high:
        middle = (low + high) // 2
        end, _ = unpack_chunk(files.read(CHUNKS, CHUNK_BYTES, middle * CHUNK_BYTES))
        low, high = (middle + 1, high) if end <= start else (low, middle)
    begin = unpack_chunk(files.read(CHUNKS, CHUNK_BYTES, (low - 1) * CHUNK_BYTES))[0] if low else 0
    parts: list[bytes] = []
    while begin < stop:
        end, digest = unpack_chunk(files.read(CHUNKS, CHUNK_BYTES, low * CHUNK_BYTES))
        if low >= state.chunk_count or end <= begin:
            raise CorruptBlob(
                "the list of chunks of a partial blob is damaged",
                part="chunks",
                offset_bytes=low * CHUNK_BYTES,
            )
        data = payloads.load(digest)
        parts.append(data[max(0, start - begin) : stop - begin])
        begin, low = end, low + 1
    return b"".join(parts)
