"""BAO streams: the verified bytes of a blob, or of ranges of it, as they travel. Pure; bytes in, bytes out.

A stream is the size (8 bytes, little-endian), then in pre-order the 64-byte pairs and the data that the ranges
need, byte for byte what bao-tree 0.17 at block size 16 KiB and iroh-blobs write. Ranges count in leaves and are not
rounded out; any beyond the end select the last leaf; no ranges give no bytes at all; an empty blob gives eight zero
bytes. Several streams may follow one another: each ends where its size and its ranges say.

Sending (the callables are not trusted: nothing wrong goes out)::

    for piece in encode(size, root, read_data, read_pairs, ranges): socket.send(piece)

Receiving, from whatever source::

    decoder = Decoder(root, ranges, keep_pairs=True)
    for offset, data in iter_verified(decoder, source):      # or decoder.feed(piece), …, decoder.finish()
        file.write_at(offset, data)
        for at, pairs in decoder.take_pairs(): outboard.write_at(at, pairs)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import IO, Final, TypeAlias

from holdfast import _native
from holdfast.errors import CorruptBlob, CorruptStream
from holdfast.ranges import ChunkRanges
from holdfast.types import BytesLike, Hash

PIECE_BYTES: Final = 1 << 20

ReadAt: TypeAlias = Callable[[int, int], BytesLike]
"""`read(offset, length)` gives exactly that many bytes."""


def encode(
    size_bytes: int,
    root_hash: bytes,
    read_data: ReadAt,
    read_pairs: ReadAt,
    ranges: ChunkRanges | None = None,
    *,
    piece_bytes: int = PIECE_BYTES,
) -> Iterator[bytes]:
    """Give the stream of a blob for `ranges` (all of it if None), in pieces of about `piece_bytes` or less.

    `read_data` reads the blob, always in runs of whole blocks within the ranges, at most `piece_bytes` (or one block)
    a call; `read_pairs` its pre-order outboard, and is not called for a blob of one block. What they give is verified
    before it goes out: CorruptBlob with `part` ("data", the block that is wrong; "outboard") and `offset_bytes` in it.
    Memory: a piece, and the ranges.
    """
    boundaries = (0,) if ranges is None else ranges.boundaries
    encoder = _native.StreamEncoder(root_hash, size_bytes, boundaries)
    while True:
        output, pairs, data = encoder.plan(piece_bytes)
        if not output:
            return
        pairs_read = [_read(read_pairs, "outboard", offset, length, root_hash) for offset, length in pairs]
        data_read = [_read(read_data, "data", offset, length, root_hash) for offset, length in data]
        try:
            piece = encoder.encode(pairs_read, data_read)
        except ValueError as error:
            if len(error.args) != 3:
                raise
            message, part, offset = error.args
            raise CorruptBlob(message, hash=Hash(root_hash), part=part, offset_bytes=offset) from None
        yield piece


def _read(read: ReadAt, part: str, offset: int, length: int, root_hash: bytes) -> BytesLike:
    data = read(offset, length)
    if len(data) != length:
        raise CorruptBlob(
            f"the {part} gives {len(data)} bytes in place of {length} at {offset}",
            hash=Hash(root_hash),
            part=part,
            offset_bytes=offset,
        )
    return data


class Decoder:
    """Verifies a stream as it arrives: feed pieces of any lengths, take bytes that are right, with their offsets.

    Whoever is at the other end can neither make it give a wrong byte, nor use more memory than twice what is fed, the
    ranges, a block, and a pair for each level of the tree. Calls must not overlap.
    """

    def __init__(
        self, root_hash: bytes, ranges: ChunkRanges | None = None, *, keep_pairs: bool = False
    ) -> None:
        """`ranges` are those that were asked for (None: all); with `keep_pairs` the outboard can be had."""
        self.root_hash: Final = root_hash
        self._native = _native.StreamDecoder(
            root_hash, (0,) if ranges is None else ranges.boundaries, keep_pairs
        )

    @property
    def size_bytes(self) -> int | None:
        """The size that the stream claims, None before it came. Only `is_size_proven` makes it more than a claim."""
        return self._native.size_bytes

    @property
    def is_size_proven(self) -> bool:
        """Whether the last leaf of the blob was verified, and the size with it."""
        return self._native.is_size_proven

    def feed(self, piece: BytesLike) -> list[tuple[int, bytes]]:
        """Give what is complete and verified now: (offset, bytes), one for each run without a gap, rising.

        A run begins and ends where ranges, blocks or this piece make it; joined they are what was asked for. All that
        comes before a fault is given; CorruptStream (`offset_bytes` in the stream, `reason`) is raised by the first
        call that has nothing to give, and by `finish`.
        """
        runs = self._native.feed(piece)
        if not runs and self._native.failure:
            raise self._error()
        return runs

    def wants(self, limit_bytes: int = PIECE_BYTES) -> int:
        """Give how many of the next bytes certainly belong to this stream, 0 when it is complete (or wrong).

        That is `limit_bytes` or less, but always what completes the next item, at most 16 KiB. Who reads no more than
        that leaves alone what follows the stream.
        """
        return self._native.wants(limit_bytes)

    def take_pairs(self) -> list[tuple[int, bytes]]:
        """Take away the verified pairs: (offset in the outboard, bytes), one for each run without a gap.

        A pair is given with the first data below it: that proves its place, which follows from the size, and so
        pairs are right whatever size was claimed. 64 bytes a block are kept until they are taken.
        """
        return self._native.take_pairs()

    def finish(self) -> None:
        """Say that nothing follows: CorruptStream unless all came and was right."""
        if not self._native.finish():
            raise self._error()

    def _error(self) -> CorruptStream:
        assert self._native.failure is not None
        reason, offset, detail = self._native.failure
        why = {
            "size": f"it claims {detail} bytes, more than a blob can have",
            "parent": "a pair of hashes does not verify",
            "leaf": f"the data at {detail} of the blob does not verify",
            "trailing": "it should have ended there",
            "truncated": "it ends there, too early",
        }[reason]
        return CorruptStream(
            f"a stream of {self.root_hash.hex()} is wrong at its byte {offset}: {why}",
            hash=Hash(self.root_hash),
            offset_bytes=offset,
            reason=reason,
        )


def iter_verified(
    decoder: Decoder, source: IO[bytes] | Iterable[BytesLike], *, piece_bytes: int = PIECE_BYTES
) -> Iterator[tuple[int, bytes]]:
    """Feed a decoder and give what is verified, then check that the stream is complete (CorruptStream if not).

    From a file exactly the stream is read; an iterable must end with it.
    """
    read = getattr(source, "read", None)
    pieces = source if read is None else _read_exactly(decoder, read, piece_bytes)
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), piece_bytes):
            yield from decoder.feed(view[start : start + piece_bytes])
    decoder.finish()


def _read_exactly(
    decoder: Decoder, read: Callable[[int], bytes | None], piece_bytes: int
) -> Iterator[BytesLike]:
    while wants := decoder.wants(piece_bytes):
        piece = read(wants)
        if not piece:
            return
        yield piece
