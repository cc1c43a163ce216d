"""The BAO tree of a blob over blocks of 16 KiB: where its pairs lie, how to make and verify them. Pure.

An outboard holds the 64-byte hash pairs of all parents in pre-order (node, left subtree, right subtree),
without a length in front: byte for byte bao-tree's pre-order outboard. A blob of at most one block has none.
The left subtree of n blocks has the largest power of two below n (BLAKE3 paper, 2.1), so every aligned run of
4,096 blocks (64 MiB), here a **piece**, is a subtree of its own, and the tree over the pieces has the same
shape rule.

Making one, while the blob streams through the hasher::

    builder = OutboardBuilder()
    for data in source: hasher.update(data); builder.feed(hasher.take_groups())
    root, rest = hasher.finish(); builder.feed(rest)
    for part in builder.finish(hasher.size_bytes): pager.write(part)      # parts of at most about 256 KiB
    assert builder.root in (None, root); builder.close()                  # or use it as a context manager

Reading with one (`read_pairs(offset, length)` gives untrusted bytes of the outboard)::

    tree = OutboardReader(size, root, read_pairs)
    bad = tree.check(data, first_block)           # -1, or the index of the first block that is not right
    tree.cvs(first_block, count)                  # verified chaining values, 32 bytes each
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import TracebackType
from typing import IO, Final, TypeAlias

from holdfast import _native
from holdfast.errors import CorruptBlob, NoSpace, Unavailable
from holdfast.types import BLOCK_BYTES, HASH_BYTES

PAIR_BYTES: Final = 2 * HASH_BYTES
PIECE_BLOCKS: Final = 4_096
PIECE_CVS_BYTES: Final = PIECE_BLOCKS * HASH_BYTES
CACHED_PIECES: Final = 16
"""2 MiB of verified chaining values: a blob of 1 GiB stays verified as a whole."""
CACHED_PARENTS: Final = 4_096

ReadPairs: TypeAlias = Callable[[int, int], bytes]


def block_count(size_bytes: int) -> int:
    """How many blocks a blob has; an empty one has one."""
    return max(1, -(-size_bytes // BLOCK_BYTES))


def outboard_bytes(size_bytes: int) -> int:
    """One 64-byte pair for each parent, one parent less than blocks."""
    return (block_count(size_bytes) - 1) * PAIR_BYTES


def left_count(count: int) -> int:
    """How many of `count` >= 2 leaves the left subtree has: the largest power of two below it."""
    return 1 << (count - 1).bit_length() - 1


def parents_before(index: int, count: int) -> int:
    """How many parents precede leaf `index` of a tree of `count` leaves, its own included."""
    before = index  # each leaf on the left closes one parent; those still open are the left turns
    while count > 1:
        left = left_count(count)
        if index < left:
            before += 1
            count = left
        else:
            index -= left
            count -= left
    return before


class OutboardBuilder:
    """Turns chaining values of blocks into the outboard, in pre-order.

    Memory: `limit_bytes` of chaining values (32 bytes a block: 8 MiB hold those of 4 GiB), and 32 bytes for
    each 64 MiB of the blob. What is beyond goes to an anonymous temporary file, which `close` gives back
    (NoSpace or Unavailable when that cannot be written).
    """

    def __init__(self, limit_bytes: int = 8 << 20) -> None:
        self.root: bytes | None = None
        """After `finish`: the root hash that the outboard leads to; None for a blob of one block."""
        self._limit_bytes = limit_bytes
        self._tops: list[bytes] = []  # the chaining value of each whole piece
        self._kept: list[bytes] = []  # the chaining values in the first whole pieces
        self._spill: IO[bytes] | None = None  # those of the others
        self._open = bytearray()

    def feed(self, cvs: bytes) -> None:
        """Take the chaining values of the next blocks, 32 bytes each."""
        self._open += cvs
        while len(self._open) > PIECE_CVS_BYTES:  # not when equal: it may be the root
            piece = bytes(self._open[:PIECE_CVS_BYTES])
            del self._open[:PIECE_CVS_BYTES]
            self._tops.append(_native.outboard(piece, False)[1])
            if (len(self._kept) + 1) * PIECE_CVS_BYTES <= self._limit_bytes:
                self._kept.append(piece)
            else:
                self._spill_piece(piece)

    def _spill_piece(self, piece: bytes) -> None:
        import tempfile  # few blobs are that long

        try:
            if self._spill is None:
                self._spill = tempfile.TemporaryFile(prefix="holdfast-", buffering=0)  # noqa: SIM115  # closed in `close`
            if self._spill.write(piece) != len(piece):
                raise OSError(errno.ENOSPC, "short write")
        except OSError as error:
            where = tempfile.gettempdir()
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise (NoSpace if full else Unavailable)(
                f"no temporary file for the outboard in {where}: {error.strerror}",
                path=where,
                errno=error.errno,
            ) from error

    def finish(self, size_bytes: int) -> Iterator[bytes]:
        """Give the outboard of a blob of `size_bytes` in parts of at most about 256 KiB.

        ValueError if that is not what was fed. May be called again: the chaining values stay until `close`.
        """
        blocks = block_count(size_bytes)
        fed = len(self._tops) * PIECE_BLOCKS + len(self._open) // HASH_BYTES
        if len(self._open) % HASH_BYTES or (fed != blocks and not (blocks == 1 and fed == 0)):
            raise ValueError(f"{fed} chaining values for a blob of {blocks} blocks")
        if blocks == 1:
            return iter(())
        last = bytes(self._open)
        if not self._tops:
            pairs, self.root = _native.outboard(last, True)
            return iter((pairs,))
        last_pairs, last_top = _native.outboard(last, False)
        parents, self.root = _native.outboard(b"".join((*self._tops, last_top)), True)
        return self._interleave(parents, last_pairs)

    def _interleave(self, parents: bytes, last_pairs: bytes) -> Iterator[bytes]:
        whole = len(self._tops)
        done = 0
        for piece in range(whole + 1):
            stop = parents_before(piece, whole + 1) * PAIR_BYTES
            if stop > done:
                yield parents[done:stop]
                done = stop
            if piece == whole:
                yield last_pairs
            elif piece < len(self._kept):
                yield _native.outboard(self._kept[piece], False)[0]
            else:
                assert self._spill is not None
                self._spill.seek((piece - len(self._kept)) * PIECE_CVS_BYTES)
                yield _native.outboard(self._spill.read(PIECE_CVS_BYTES), False)[0]

    def close(self) -> None:
        """Give memory and the temporary file back."""
        self._kept.clear()
        if self._spill is not None:
            self._spill.close()
            self._spill = None

    def __enter__(self) -> OutboardBuilder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()


def pair_spans(size_bytes: int, first_block: int, count: int) -> list[tuple[int, int]]:
    """Give (offset, length) of what an `OutboardReader` reads to verify some blocks, known before any byte came."""
    spans: dict[tuple[int, int], None] = {}
    for piece in range(first_block // PIECE_BLOCKS, (first_block + count - 1) // PIECE_BLOCKS + 1):
        offset, blocks, first = 0, block_count(size_bytes), piece * PIECE_BLOCKS
        while blocks > PIECE_BLOCKS:
            spans[offset, PAIR_BYTES] = None
            left = left_count(blocks)
            if first < left:
                offset, blocks = offset + PAIR_BYTES, left
            else:
                offset, blocks, first = offset + PAIR_BYTES * left, blocks - left, first - left
        if blocks > 1:
            spans[offset, (blocks - 1) * PAIR_BYTES] = None
    return list(spans)


def _corrupt(offset_bytes: int, why: str) -> CorruptBlob:
    return CorruptBlob(
        f"the outboard {why} at its offset {offset_bytes}", part="outboard", offset_bytes=offset_bytes
    )


class _Pieces:
    """Verifies the way from the root to a piece, then the piece. Keeps verified parents, up to a limit."""

    def __init__(self, blocks: int, root: bytes, read_pairs: ReadPairs) -> None:
        self.blocks = blocks
        self.root = root
        self.read_pairs = read_pairs
        self.parents: dict[int, tuple[bytes, bytes]] = {}  # by offset in the outboard

    def load(self, piece: int) -> bytes:
        offset, blocks, first, expected = 0, self.blocks, piece * PIECE_BLOCKS, self.root
        while blocks > PIECE_BLOCKS:
            left, right = self.parent(offset, expected)
            count = left_count(blocks)
            if first < count:
                offset, blocks, expected = offset + PAIR_BYTES, count, left
            else:
                offset, blocks, expected = offset + PAIR_BYTES * count, blocks - count, right
                first -= count
        pairs = self.read(offset, (blocks - 1) * PAIR_BYTES)
        try:
            return _native.leaf_cvs(pairs, blocks, expected, self.blocks <= PIECE_BLOCKS)
        except ValueError as error:
            at = error.args[1] if len(error.args) > 1 else 0
            raise _corrupt(offset + at, "does not verify") from None

    def parent(self, offset: int, expected: bytes) -> tuple[bytes, bytes]:
        pair = self.parents.get(offset)
        if pair is None:
            data = self.read(offset, PAIR_BYTES)
            pair = data[:HASH_BYTES], data[HASH_BYTES:]
            if _native.parent_cv(*pair, offset == 0) != expected:
                raise _corrupt(offset, "does not verify")
            if len(self.parents) >= CACHED_PARENTS:
                self.parents.clear()
            self.parents[offset] = pair
        return pair

    def read(self, offset: int, length: int) -> bytes:
        data = bytes(self.read_pairs(offset, length)) if length else b""
        if len(data) != length:
            raise _corrupt(offset, f"gives {len(data)} bytes in place of {length}")
        return data


class OutboardReader:
    """Verified chaining values of a blob's blocks, from an outboard that nobody has to trust.

    A range costs the way from the root and the pieces that it touches; pieces stay verified in memory,
    `cached` of them (128 KiB each), so that a random read within 64 MiB x `cached` hashes the data alone.
    Threads may share a reader if `read_pairs` may be called by all of them.
    """

    def __init__(
        self, size_bytes: int, root_hash: bytes, read_pairs: ReadPairs, cached: int = CACHED_PIECES
    ) -> None:
        self.size_bytes = size_bytes
        self.root_hash = root_hash
        self.blocks = block_count(size_bytes)
        self._piece = lru_cache(cached)(_Pieces(self.blocks, root_hash, read_pairs).load)

    def cvs(self, first_block: int, count: int) -> bytes:
        """Give the verified chaining values of `count` blocks, 32 bytes each.

        A blob of one block has none (its root hash is no chaining value): ValueError, as for blocks that it
        does not have. `CorruptBlob` with `offset_bytes`, counted in the outboard, when a pair does not
        verify.
        """
        if first_block < 0 or count < 0 or first_block + count > self.blocks or self.blocks == 1:
            raise ValueError(
                f"no chaining values of blocks {first_block}..{first_block + count} of {self.blocks}"
            )
        piece, first = divmod(first_block, PIECE_BLOCKS)
        stop = first + count
        if 0 < stop <= PIECE_BLOCKS:
            return self._piece(piece)[first * HASH_BYTES : stop * HASH_BYTES]
        parts = []
        while count:
            part = self._piece(piece)[first * HASH_BYTES : (first + count) * HASH_BYTES]
            parts.append(part)
            count -= len(part) // HASH_BYTES
            piece, first = piece + 1, 0
        return b"".join(parts)

    def check(self, data: bytes | bytearray | memoryview, first_block: int) -> int:
        """Give -1 when `data`, whole blocks from `first_block` on (the blob's last may be short), is right.

        Else the index, within `data`, of the first block that is not. Raises as `cvs` does, and ValueError
        for data that does not consist of blocks of this blob.
        """
        start = first_block * BLOCK_BYTES
        stop = start + len(data)
        if first_block < 0 or stop > self.size_bytes or (stop < self.size_bytes and len(data) % BLOCK_BYTES):
            raise ValueError(
                f"{len(data)} bytes from block {first_block} on are no blocks of {self.size_bytes} bytes"
            )
        if self.blocks == 1:
            return -1 if _native.blake3(data) == self.root_hash else 0
        if not data:
            return -1
        return _native.verify_groups(data, first_block, self.cvs(first_block, -(-len(data) // BLOCK_BYTES)))
