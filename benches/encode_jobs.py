"""Jobs about streams that go out, and about the kernels below them; `benches.jobs` runs them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benches.jobs import Clock

RANGE_BYTES = 64 << 10


def _random_ranges(size_bytes: int, count: int) -> list[Any]:
    from holdfast.ranges import ChunkRanges

    draw = random.Random(11)
    starts = (draw.randrange(size_bytes - RANGE_BYTES) for _ in range(count))
    return [ChunkRanges.bytes(start, start + RANGE_BYTES) for start in starts]


def encode(clock: Clock, store: str, hash: str) -> dict[str, Any]:
    """Encode a blob to nowhere; that the stream is right is checked outside the clock."""
    import holdfast
    from holdfast.bao_stream import Decoder

    with holdfast.open(store) as opened:
        wanted = holdfast.Hash.parse(hash)
        total = 0
        with clock:
            for piece in opened.blobs.encode(wanted):
                total += len(piece)
        decoder = Decoder(wanted.digest)
        for piece in opened.blobs.encode(wanted):
            decoder.feed(piece)
        decoder.finish()
        return {"stream_bytes": total}


def encode_ranges(clock: Clock, store: str, hash: str, count: int) -> dict[str, Any]:
    """Encode 64 KiB at random places, a call each."""
    import holdfast
    from holdfast.bao_stream import Decoder

    with holdfast.open(store) as opened:
        wanted = holdfast.Hash.parse(hash)
        ranges = _random_ranges(opened.blobs.info(wanted).size_bytes, count)
        encode = opened.blobs.encode
        total = 0
        with clock:
            for one in ranges:
                for piece in encode(wanted, one):
                    total += len(piece)
        for one in ranges[:1_000]:
            decoder = Decoder(wanted.digest, one)
            decoder.feed(b"".join(encode(wanted, one)))
            decoder.finish()
        return {"stream_bytes": total}


def decode_ranges(clock: Clock, store: str, hash: str, count: int) -> dict[str, Any]:
    """Verify the streams of 64 KiB at random places, in memory; 2,000 of them, again and again."""
    import holdfast
    from holdfast.bao_stream import Decoder

    with holdfast.open(store) as opened:
        wanted = holdfast.Hash.parse(hash)
        ranges = _random_ranges(opened.blobs.info(wanted).size_bytes, 2_000)
        streams = [b"".join(opened.blobs.encode(wanted, one)) for one in ranges]
    done = total = 0
    with clock:
        while done < count:
            for one, stream in zip(ranges, streams, strict=True):
                decoder = Decoder(wanted.digest, one)
                for _, data in decoder.feed(stream):
                    total += len(data)
                decoder.finish()
            done += len(ranges)
    return {"data_bytes": total, "count": done}


def kernel(clock: Clock, source: str, what: str, piece_bytes: int) -> dict[str, Any]:
    """Encode or decode 64 MiB that are in memory, from Python, ten times over; or hash them."""
    from holdfast import _native
    from holdfast.bao_stream import Decoder
    from holdfast.bao_stream import encode as encode_stream

    with open(source, "rb") as file:
        data = memoryview(file.read(64 << 20))
    hasher = _native.BlobHasher()
    hasher.update(data)
    root, groups = hasher.finish()
    outboard = _native.outboard(groups, True)[0]

    def pieces() -> Any:
        return encode_stream(
            len(data), root, lambda at, n: data[at : at + n], lambda at, n: outboard[at : at + n]
        )

    stream = memoryview(b"".join(pieces()))
    with clock:
        for _ in range(10):
            if what == "blake3":
                assert _native.blake3(data) == root
            elif what == "encode":
                assert sum(map(len, pieces())) == len(stream)
            else:
                decoder = Decoder(root)
                for start in range(0, len(stream), piece_bytes):
                    decoder.feed(stream[start : start + piece_bytes])
                decoder.finish()
    return {"size_bytes": len(data), "source": Path(source).name}
