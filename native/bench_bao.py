"""How fast BAO streams are encoded and decoded from Python: `.venv/bin/python native/bench_bao.py`.

All in memory, one thread, the best of 15 rounds each. The crate `bao-tree` beside the same kernels, called from Rust:
`cargo run --release --example bao --manifest-path native/Cargo.toml -- bench`.
"""

# ruff: noqa: T201 - it prints its table

import os
import random
import time
from collections.abc import Callable

from holdfast import ChunkRanges, _native
from holdfast.bao_stream import Decoder, encode

SIZE = 64 << 20
RANGE = 64 << 10
COUNT = 2_000


def seconds(work: Callable[[], object]) -> float:
    rounds = []
    for _ in range(15):
        start = time.perf_counter()
        work()
        rounds.append(time.perf_counter() - start)
    return min(rounds)


def main() -> None:
    data = memoryview(os.urandom(SIZE))
    hasher = _native.BlobHasher()
    hasher.update(data)
    root, groups = hasher.finish()
    outboard = _native.outboard(groups, True)[0]

    def read_data(offset: int, length: int) -> memoryview:
        return data[offset : offset + length]

    def read_pairs(offset: int, length: int) -> bytes:
        return outboard[offset : offset + length]

    def encode_all() -> None:
        for _ in encode(SIZE, root, read_data, read_pairs):
            pass

    def decode_all(step: int) -> None:
        decoder = Decoder(root)
        for start in range(0, len(stream), step):
            decoder.feed(stream[start : start + step])
        decoder.finish()

    def encode_one(wanted: ChunkRanges) -> bytes:
        return b"".join(encode(SIZE, root, read_data, read_pairs, wanted))

    def encode_at_random() -> None:
        for wanted in ranges:
            encode_one(wanted)

    def decode_at_random() -> None:
        for wanted, part in zip(ranges, streams, strict=True):
            decoder = Decoder(root, wanted)
            decoder.feed(part)
            decoder.finish()

    base = seconds(lambda: _native.blake3(data))
    stream = memoryview(b"".join(encode(SIZE, root, read_data, read_pairs)))
    table: dict[str, Callable[[], object]] = {
        "blake3": lambda: _native.blake3(data),
        "encode": encode_all,
        "decode, 1 MiB pieces": lambda: decode_all(1 << 20),
        "decode, 64 KiB pieces": lambda: decode_all(1 << 16),
        "decode, 1,500-byte pieces": lambda: decode_all(1_500),
    }
    for name, work in table.items():
        took = seconds(work)
        print(f"{name:34}{SIZE / took / 1e9:8.2f} GB/s{base / took:8.2f} x blake3")
    for name, grain in {"whole blocks": 16_384, "any bytes": 1}.items():
        chosen = random.Random(1)
        starts = [chosen.randrange((SIZE - RANGE) // grain) * grain for _ in range(COUNT)]
        ranges = [ChunkRanges.bytes(start, start + RANGE) for start in starts]
        streams = [encode_one(wanted) for wanted in ranges]
        print(f"{f'encode 64 KiB at random, {name}':42}{COUNT / seconds(encode_at_random):10,.0f} /s")
        print(f"{f'decode 64 KiB at random, {name}':42}{COUNT / seconds(decode_at_random):10,.0f} /s")


if __name__ == "__main__":
    main()
