"""Heads of the objects that hold what is not a blob yet: blocks of partial blobs, and pieces of uploads. Pure.

Layout (docs/format.md, "Objects: parts"), little-endian: the magic `HFPT`, version u16, kind u16, length of the head
u32; what the kind has; then the BLAKE3 of all before it and of the object's key. The payload follows the head. An
object of this sort is made once, never changed, and says by itself what it is: nothing else claims it.
"""

from __future__ import annotations

from itertools import pairwise
from struct import Struct
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.errors import FormatError
from holdfast.ranges import BLOCK_LEAVES, ChunkRanges
from holdfast.types import BLOCK_BYTES, HASH_BYTES, MAX_BLOB_BYTES

MAGIC: Final = b"HFPT"
VERSION: Final = 1
BLOCKS: Final = 1
PIECE: Final = 2
MAX_HEAD_BYTES: Final = 16 << 20
PAIR_BYTES: Final = 2 * HASH_BYTES
TOKEN_BYTES: Final = 16
_FRAME: Final = Struct("<4sHHI")
_BLOCKS: Final = Struct("<32sIQQQII")
_RUN: Final = Struct("<QI")
_PIECE: Final = Struct("<16sIB3xQQQQ16s16s32s32sII")
_PROVEN: Final = 1

OPEN: Final = 0
COMMITTING: Final = 1
COMMITTED: Final = 2
ABORTED: Final = 3
EXPIRED: Final = 4
"""States of an upload. The last three are final."""


class BlocksHead(NamedTuple):
    """What a part of a partial blob holds: the pairs above its blocks, as in the outboard; then the blocks."""

    hash: bytes
    size_bytes: int
    """As the stream claimed it: right about the place of each block here."""
    is_size_proven: bool
    highest_byte: int
    """Up to where in the blob that stream had verified anything."""
    created_ms: int
    blocks: tuple[tuple[int, int], ...]
    """Runs: (first block, how many)."""
    pairs: tuple[tuple[int, int], ...]
    """Runs: (first pair of the outboard, how many)."""

    @property
    def pairs_bytes(self) -> int:
        """The length of the first part of the payload."""
        return PAIR_BYTES * sum(count for _, count in self.pairs)

    @property
    def data_bytes(self) -> int:
        """The length of the second part of the payload."""
        return sum(self.run_bytes(first, count) for first, count in self.blocks)

    @property
    def ranges(self) -> ChunkRanges:
        """The leaves of the blocks, which may reach beyond the end of the blob."""
        return ChunkRanges.union(
            ChunkRanges.leaves(first * BLOCK_LEAVES, (first + count) * BLOCK_LEAVES)
            for first, count in self.blocks
        )

    def run_bytes(self, first: int, count: int) -> int:
        """Give the bytes of some blocks; the last one of the blob may be short."""
        return min((first + count) * BLOCK_BYTES, self.size_bytes) - first * BLOCK_BYTES


class PieceHead(NamedTuple):
    """What an object of an upload says: bytes that came (the payload), or what became of the upload."""

    token: bytes
    number: int
    state: int
    created_ms: int
    """When the upload began."""
    expiry_ms: int
    """How long after its last object was stored it can be gone on with."""
    offset_bytes: int
    length_bytes: int
    digest: bytes
    """The BLAKE3 of the payload."""
    groups: bytes = b""
    """The chaining values of the blocks that the payload ends, 32 bytes each."""
    details: bytes = b""
    """Of number 0: the words of the artifact to be, as in its own document."""
    artifact: bytes = bytes(16)
    """COMMITTING and COMMITTED: the id of the artifact."""
    commit: bytes = bytes(16)
    """COMMITTING: the id of the object under `commits/` that makes it so."""
    hash: bytes = bytes(32)
    """COMMITTING: the hash of the blob."""

    @property
    def stop_bytes(self) -> int:
        """How much of the upload is durable with this object."""
        return self.offset_bytes + self.length_bytes


def encode_blocks(head: BlocksHead, key: str) -> bytes:
    """Give the head of a part of a partial blob."""
    flags = _PROVEN if head.is_size_proven else 0
    fixed = _BLOCKS.pack(
        head.hash,
        flags,
        head.size_bytes,
        head.highest_byte,
        head.created_ms,
        len(head.blocks),
        len(head.pairs),
    )
    return _frame(BLOCKS, fixed + b"".join([_RUN.pack(*run) for run in (*head.blocks, *head.pairs)]), key)


def parse_blocks(data: bytes, key: str) -> BlocksHead:
    """Read the head of a part of a partial blob; `FormatError` where it is damaged, or none."""
    body = _unframe(BLOCKS, data, key)
    if len(body) < _BLOCKS.size:
        raise FormatError(f"{key} is too short", path=key)
    hash_, flags, size, highest, created, blocks, pairs = _BLOCKS.unpack_from(body)
    if len(body) != _BLOCKS.size + (blocks + pairs) * _RUN.size or max(size, highest) > MAX_BLOB_BYTES:
        raise FormatError(f"{key} does not hold together", path=key)
    runs = tuple(_RUN.iter_unpack(body[_BLOCKS.size :]))
    head = BlocksHead(
        hash_, size, bool(flags & _PROVEN), highest, created, runs[:blocks], runs[blocks : blocks + pairs]
    )
    count = max(1, -(-size // BLOCK_BYTES))
    if not (_rise(head.blocks, count) and _rise(head.pairs, count - 1)):
        raise FormatError(f"{key} says that it has what a blob of {size} bytes has not", path=key)
    return head


def encode_piece(head: PieceHead, key: str) -> bytes:
    """Give the head of an object of an upload."""
    fixed = _PIECE.pack(
        head.token,
        head.number,
        head.state,
        head.created_ms,
        head.expiry_ms,
        head.offset_bytes,
        head.length_bytes,
        head.artifact,
        head.commit,
        head.hash,
        head.digest,
        len(head.groups),
        len(head.details),
    )
    return _frame(PIECE, fixed + head.groups + head.details, key)


def parse_piece(data: bytes, key: str) -> PieceHead:
    """Read the head of an object of an upload; `FormatError` where it is damaged, or none."""
    body = _unframe(PIECE, data, key)
    if len(body) < _PIECE.size:
        raise FormatError(f"{key} is too short", path=key)
    fields = _PIECE.unpack_from(body)
    token, number, state, created, expiry, offset, length, artifact, commit, hash_, digest = fields[:11]
    groups, details = fields[11:]
    if (
        len(body) != _PIECE.size + groups + details
        or groups % HASH_BYTES
        or offset + length > MAX_BLOB_BYTES
        or state > EXPIRED
    ):
        raise FormatError(f"{key} does not hold together", path=key)
    at = _PIECE.size
    return PieceHead(
        token,
        number,
        state,
        created,
        expiry,
        offset,
        length,
        digest,
        body[at : at + groups],
        body[at + groups :],
        artifact,
        commit,
        hash_,
    )


def head_length(data: bytes, key: str) -> int:
    """Say how long the head is that begins so; `FormatError` where it is none of ours."""
    if len(data) < _FRAME.size or data[:4] != MAGIC:
        raise FormatError(f"{key} holds something else than a part", path=key)
    _, version, _, length = _FRAME.unpack_from(data)
    if version != VERSION:
        raise FormatError(
            f"{key} was made by a newer version of Holdfast ({version}): use that one",
            path=key,
            version=version,
        )
    if not _FRAME.size + HASH_BYTES <= length <= MAX_HEAD_BYTES:
        raise FormatError(f"{key} is damaged: a head of {length} bytes", path=key)
    return int(length)


def _frame(kind: int, body: bytes, key: str) -> bytes:
    head = _FRAME.pack(MAGIC, VERSION, kind, _FRAME.size + len(body) + HASH_BYTES) + body
    return head + _native.blake3(head + key.encode())


def _unframe(kind: int, data: bytes, key: str) -> bytes:
    length = head_length(data, key)
    head, checksum = data[: length - HASH_BYTES], data[length - HASH_BYTES : length]
    if _native.blake3(head + key.encode()) != checksum:
        raise FormatError(f"{key} is damaged: its checksum does not match", path=key)
    if _FRAME.unpack_from(data)[2] != kind:
        raise FormatError(f"{key} is of another kind", path=key)
    return head[_FRAME.size :]


def _rise(runs: tuple[tuple[int, int], ...], limit: int) -> bool:
    """Whether runs have something, rise, do not overlap, and end at the limit or before."""
    apart = all(first + count <= after for (first, count), (after, _) in pairwise(runs))
    return apart and all(count for _, count in runs) and (not runs or sum(runs[-1]) <= limit)
