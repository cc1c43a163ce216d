"""What is known of a partial blob: its journal, and the list of its chunks (docs/format.md, "Partial blobs"). Pure.

An entry either says everything (`WHOLE`) or what changed. What an entry claims was durable before it was written,
so whatever prefix of the journal comes back after a crash is true.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from struct import Struct, pack, unpack
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.errors import CorruptBlob
from holdfast.ranges import BLOCK_LEAVES, LEAF_BYTES, ChunkRanges
from holdfast.types import BLOCK_BYTES, MAX_BLOB_BYTES, Hash

MAGIC: Final = b"HFpt"
VERSION: Final = 1
WHOLE: Final = 0
CHANGE: Final = 1
FLAG_PROVEN: Final = 1
_HEADER: Final = Struct("<4sIIBBBBqqQQQIIII32s")
ENTRY_HEADER_BYTES: Final = _HEADER.size
_CRC_FROM: Final = 8
_CHUNK: Final = Struct("<Q32s")
CHUNK_BYTES: Final = _CHUNK.size
"""An entry of the list of chunks: where the chunk ends in the blob, and its BLAKE3."""
CHUNKS_AT_ONCE: Final = 4_096


class PartialState(NamedTuple):
    """A partial blob at one moment.

    `have` counts leaves, in whole blocks: the last block of a blob reaches beyond the blob's end. Blocks below
    `logged_bytes` lie in the log as `chunk_count` chunks, the others in the sparse file.
    """

    size_bytes: int
    """As claimed by the stream that had the highest block. It is right about the place of each block that is here."""
    is_size_proven: bool
    have: ChunkRanges
    logged_bytes: int
    chunk_count: int
    chunks_crc: int
    created_ms: int
    written_ms: int

    @property
    def logged_blocks(self) -> int:
        """How many blocks lie wholly in the log."""
        return self.logged_bytes // BLOCK_BYTES

    @property
    def prefix_bytes(self) -> int:
        """Up to where the blob is here without a gap."""
        first = self.have.boundaries[:2]
        if first[:1] != (0,):
            return 0
        return min(first[1] * LEAF_BYTES, self.size_bytes) if len(first) == 2 else self.size_bytes

    @property
    def is_whole(self) -> bool:
        """Whether every block is here."""
        return self.is_size_proven and self.prefix_bytes == self.size_bytes

    @property
    def spilled(self) -> ChunkRanges:
        """The leaves that lie in the sparse file."""
        return self.have - ChunkRanges.leaves(0, self.logged_blocks * BLOCK_LEAVES)

    @property
    def ranges(self) -> ChunkRanges:
        """The leaves that are here, without what lies beyond the end."""
        return self.have.clip(self.size_bytes) if self.have else self.have

    @property
    def missing(self) -> ChunkRanges:
        """What to ask for next: whole blocks, and everything beyond what is known while the size is not proven."""
        rest = ~self.have
        return rest.clip(self.size_bytes) if self.is_size_proven else rest

    def run_end(self, at: int) -> int:
        """Give up to where there are blocks from `at` on, `at` if there are none."""
        bounds = self.have.boundaries
        next_ = bisect_right(bounds, at // LEAF_BYTES)
        return min(bounds[next_] * LEAF_BYTES, self.size_bytes) if next_ % 2 else at

    def claimed(self, size_bytes: int, is_size_proven: bool, highest_byte: int) -> PartialState:
        """Take over what a stream says of the size: proven, or right about the highest block that is here.

        `highest_byte`: up to where in the blob the stream has verified anything.
        """
        if self.is_size_proven:
            return self
        if is_size_proven:
            return self._replace(size_bytes=size_bytes, is_size_proven=True)
        top = self.have.boundaries[-1] * LEAF_BYTES if self.have else 0
        return self._replace(size_bytes=size_bytes) if highest_byte >= top else self

    def without_logged(self) -> PartialState:
        """Give the state without what is in the log."""
        logged = ChunkRanges.leaves(0, self.logged_blocks * BLOCK_LEAVES)
        return self._replace(have=self.have - logged, logged_bytes=0, chunk_count=0, chunks_crc=0)


def empty_state(now_ms: int) -> PartialState:
    """Give the state of a partial blob of which nothing is known."""
    return PartialState(0, False, ChunkRanges.empty(), 0, 0, 0, now_ms, now_ms)


def encode_entry(hash_: bytes, state: PartialState, *, since: PartialState | None = None) -> bytes:
    """Give the journal entry that leads to `state`: from `since`, or (None) from nothing."""
    added: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    if since is None:
        added = state.have.boundaries
    elif since.have != state.have:
        added = (state.have - since.have).boundaries
        removed = (since.have - state.have).boundaries
    packed = _pack(added + removed)
    header = _HEADER.pack(
        MAGIC,
        0,
        ENTRY_HEADER_BYTES + len(packed),
        VERSION,
        WHOLE if since is None else CHANGE,
        FLAG_PROVEN if state.is_size_proven else 0,
        0,
        state.created_ms,
        state.written_ms,
        state.size_bytes,
        state.logged_bytes,
        state.chunk_count,
        state.chunks_crc,
        len(added),
        len(removed),
        0,
        hash_,
    )
    crc = _native.crc32c(packed, _native.crc32c(header[_CRC_FROM:]))
    return header[:4] + crc.to_bytes(4, "little") + header[_CRC_FROM:] + packed


def parse_journal(
    data: bytes, hash_: bytes, state: PartialState | None = None
) -> tuple[PartialState | None, int]:
    """Read entries, from `state` on; give the last state and the bytes of whole entries. Never raises.

    What follows the first entry that is not whole, or not of this blob, was never acknowledged, or is damaged.
    """
    at = 0
    view = memoryview(data)
    while at + ENTRY_HEADER_BYTES <= len(data):
        fields = _HEADER.unpack_from(data, at)
        magic, crc, length, version, kind, flags, _, created_ms, written_ms, size, logged, chunks = fields[
            :12
        ]
        chunks_crc, added, removed, _, name = fields[12:]
        stop = at + length
        if (
            magic != MAGIC
            or version != VERSION
            or length != ENTRY_HEADER_BYTES + 8 * (added + removed)
            or stop > len(data)
            or name != hash_
            or size > MAX_BLOB_BYTES
            or _native.crc32c(view[at + _CRC_FROM : stop]) != crc
            or (kind != WHOLE and state is None)
        ):
            break
        numbers = _unpack(view[at + ENTRY_HEADER_BYTES : stop])
        have = ChunkRanges.trusted(numbers[:added])
        if kind != WHOLE and state is not None:
            have = (state.have | have) - ChunkRanges.trusted(numbers[added:])
        proven = bool(flags & FLAG_PROVEN)
        state = PartialState(size, proven, have, logged, chunks, chunks_crc, created_ms, written_ms)
        at = stop
    return state, at


def _pack(numbers: tuple[int, ...]) -> bytes:
    return pack(f"<{len(numbers)}Q", *numbers)


def _unpack(packed: memoryview) -> tuple[int, ...]:
    return unpack(f"<{len(packed) // 8}Q", packed)


# -- the list of chunks


def pack_chunks(ends: Sequence[int], digests: Sequence[bytes]) -> bytes:
    """Give entries of the list: where chunks end in the blob, and their digests."""
    return b"".join(map(_CHUNK.pack, ends, digests))


def unpack_chunk(packed: bytes) -> tuple[int, bytes]:
    """Read one entry: where the chunk ends, and its digest; (0, b"") for one that is cut off."""
    if len(packed) != CHUNK_BYTES:
        return 0, b""
    end, digest = _CHUNK.unpack(packed)
    return end, digest


def iter_chunks(
    read: Callable[[int, int], bytes], hash_: bytes, state: PartialState
) -> Iterator[tuple[list[int], list[bytes]]]:
    """Read the list in batches: lengths and digests. `CorruptBlob`, at the end, if it is damaged.

    `read(length, offset)` gives bytes of it.
    """
    crc = before = 0
    for first in range(0, state.chunk_count, CHUNKS_AT_ONCE):
        count = min(CHUNKS_AT_ONCE, state.chunk_count - first)
        packed = read(count * CHUNK_BYTES, first * CHUNK_BYTES)
        crc = _native.crc32c(packed, crc)
        lengths, digests = [], []
        for end, digest in _CHUNK.iter_unpack(packed[: len(packed) // CHUNK_BYTES * CHUNK_BYTES]):
            lengths.append(end - before)
            digests.append(digest)
            before = end
        if len(lengths) != count or min(lengths) < 1:
            before = -1
            break
        yield lengths, digests
    if crc != state.chunks_crc or before != state.logged_bytes:
        raise CorruptBlob(
            f"the list of chunks of the partial blob {hash_.hex()} is damaged",
            hash=Hash(hash_),
            part="chunks",
        )
