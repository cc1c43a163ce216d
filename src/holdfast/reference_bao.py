"""BAO streams again, slow and plain, from the definition of what is sent. Tests compare; nothing else imports this.

Written from docs/protocol.md ("BAO streams") and the BLAKE3 paper, not from the Rust code. Leaves are 1,024 bytes,
blocks 16 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from holdfast import reference

LEAF, BLOCK_LEAVES, MAX_SIZE = 1_024, 16, 1 << 62

subtree_cv = lru_cache(1 << 16)(reference.subtree_cv)
parent_cv = lru_cache(1 << 16)(reference.parent_cv)


def leaf_count(size: int) -> int:
    """How many leaves a blob has; an empty one has one."""
    return max(1, -(-size // LEAF))


def selected(boundaries: Sequence[int], size: int) -> list[tuple[int, int]]:
    """The ranges of leaves that are sent: those wanted that exist, and the last if any beyond it is wanted."""
    count = leaf_count(size)
    pairs = []
    for i in range(0, len(boundaries), 2):
        start, stop = boundaries[i], boundaries[i + 1] if i + 1 < len(boundaries) else 1 << 70
        pairs.append((start, min(stop, count)))
        if stop > count:
            pairs.append((count - 1, count))
    return [(start, stop) for start, stop in pairs if start < stop]


def overlaps(ranges: list[tuple[int, int]], first: int, count: int) -> bool:
    return any(start < first + count and first < stop for start, stop in ranges)


def covers(ranges: list[tuple[int, int]], first: int, count: int) -> bool:
    """Ranges do not touch, but for the last leaf, which may have one of its own."""
    for start, stop in sorted(ranges):
        if start <= first < stop:
            count -= stop - first
            first = stop
    return count <= 0


class Blob:
    """A blob in memory, and its streams."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.root = self.cv(0, leaf_count(len(data)))

    def cv(self, first: int, count: int) -> bytes:
        """The chaining value of a subtree, the hash of the root."""
        is_root = count == leaf_count(len(self.data))
        if count == 1:
            return subtree_cv(self.data[first * LEAF : (first + 1) * LEAF], first, is_root)
        left = reference.left_length(count)
        return parent_cv(self.cv(first, left), self.cv(first + left, count - left), is_root)

    def encode(self, boundaries: Sequence[int]) -> bytes:
        if not boundaries:
            return b""
        ranges = selected(boundaries, len(self.data))
        return len(self.data).to_bytes(8, "little") + self._part(0, leaf_count(len(self.data)), ranges)

    def _part(self, first: int, count: int, ranges: list[tuple[int, int]]) -> bytes:
        if not overlaps(ranges, first, count):
            return b""
        if count == 1 or (count <= BLOCK_LEAVES and covers(ranges, first, count)):
            return self.data[first * LEAF : (first + count) * LEAF]
        left = reference.left_length(count)
        middle, right = first + left, count - left
        pair = self.cv(first, left) + self.cv(middle, right)
        return pair + self._part(first, left, ranges) + self._part(middle, right, ranges)


class Bad(Exception):
    """(reason, offset in the stream)."""


class Decoded:
    """What a stream says: `data` by offset, `pairs` by offset in the outboard, and `bad` if something was wrong."""

    def __init__(self, root: bytes, boundaries: Sequence[int], stream: bytes) -> None:
        self.stream, self.at = stream, 0
        self.data: dict[int, bytes] = {}
        self.pairs: dict[int, bytes] = {}  # those above a leaf that was right
        self.size: int | None = None
        self.is_size_proven = False
        self.bad: tuple[str, int] | None = None
        try:
            if boundaries:
                self._decode(root, boundaries)
            if self.at < len(stream):
                raise Bad("trailing", self.at)
        except Bad as bad:
            reason, offset = bad.args
            self.bad = reason, offset

    def _take(self, length: int) -> bytes:
        if len(self.stream) - self.at < length:
            raise Bad("truncated", len(self.stream))
        return self.stream[self.at : self.at + length]

    def _decode(self, root: bytes, boundaries: Sequence[int]) -> None:
        size = int.from_bytes(self._take(8), "little")
        if size > MAX_SIZE:
            raise Bad("size", 0)
        self.size, self.at = size, 8
        self._node(root, 0, leaf_count(size), 0, selected(boundaries, size), {})

    def _node(
        self,
        cv: bytes,
        first: int,
        count: int,
        pair: int,
        ranges: list[tuple[int, int]],
        above: dict[int, bytes],
    ) -> None:
        assert self.size is not None
        if not overlaps(ranges, first, count):
            return
        is_root = count == leaf_count(self.size)
        if count == 1 or (count <= BLOCK_LEAVES and covers(ranges, first, count)):
            data = self._take(min(count * LEAF, self.size - first * LEAF))
            if subtree_cv(data, first, is_root) != cv:
                raise Bad("leaf", self.at)
            self.data[first * LEAF] = data
            self.pairs |= above
            self.at += len(data)
            self.is_size_proven |= first + count == leaf_count(self.size)
            return
        hashes = self._take(64)
        if parent_cv(hashes[:32], hashes[32:], is_root) != cv:
            raise Bad("parent", self.at)
        self.at += 64
        if count > BLOCK_LEAVES:
            above = above | {64 * pair: hashes}
        left = reference.left_length(count)
        self._node(hashes[:32], first, left, pair + 1, ranges, above)
        self._node(hashes[32:], first + left, count - left, pair + left // BLOCK_LEAVES, ranges, above)
