"""BAO streams of contents in memory, for tests: the sending side."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast import _native
from holdfast.bao import OutboardBuilder
from holdfast.bao_stream import encode
from holdfast.ranges import BLOCK_LEAVES, ChunkRanges
from holdfast.types import BLOCK_BYTES, Hash

WINDOW_BYTES = 4 << 20


class Sender:
    """A blob in memory that can be asked for streams."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        hasher = _native.BlobHasher()
        with OutboardBuilder(len(content) + 1) as builder:
            view = memoryview(content)
            for start in range(0, len(content), WINDOW_BYTES):
                hasher.update(view[start : start + WINDOW_BYTES])
                builder.feed(hasher.take_groups())
            root, rest = hasher.finish()
            builder.feed(rest)
            self.outboard = b"".join(builder.finish(len(content)))
        self.hash = Hash(root)
        self.blocks = max(1, -(-len(content) // BLOCK_BYTES))

    def pieces(self, ranges: ChunkRanges | None = None) -> Iterator[bytes]:
        """Give the stream for some ranges in pieces."""
        content, outboard = memoryview(self.content), memoryview(self.outboard)
        return encode(
            len(content),
            self.hash.digest,
            lambda offset, length: content[offset : offset + length],
            lambda offset, length: outboard[offset : offset + length],
            ranges,
        )

    def stream(self, ranges: ChunkRanges | None = None) -> bytes:
        """Give the stream for some ranges."""
        return b"".join(self.pieces(ranges))


def blocks(start: int, stop: int | None = None) -> ChunkRanges:
    """Give the ranges of blocks."""
    return ChunkRanges.leaves(start * BLOCK_LEAVES, None if stop is None else stop * BLOCK_LEAVES)
