"""How fast the kernels are, beside one-thread BLAKE3 of the same bytes: `.venv/bin/python native/bench.py`.

Random bytes in memory, the best of 15 rounds each; the ratios say more than the rates.
"""

# ruff: noqa: T201 - it prints its table

import os
import time
from collections.abc import Callable

from holdfast import _native as native

SIZE = 64 << 20
SMALL = 10_000


def seconds(work: Callable[[], object]) -> float:
    rounds = []
    for _ in range(15):
        start = time.perf_counter()
        work()
        rounds.append(time.perf_counter() - start)
    return min(rounds)


def hash_blob(data: memoryview, step: int) -> tuple[bytes, bytes]:
    hasher, groups = native.BlobHasher(), []
    for at in range(0, len(data), step):
        hasher.update(data[at : at + step])
        groups.append(hasher.take_groups())
    root, last = hasher.finish()
    return root, b"".join([*groups, last])


def cut(data: memoryview, sizes: tuple[int, int, int], step: int = 1 << 20) -> list[int]:
    cutter, lengths = native.Cutter(*sizes), []
    for at in range(0, len(data), step):
        lengths += cutter.feed(data[at : at + step])
    return [*lengths, cutter.finish()]


def main() -> None:
    data = memoryview(os.urandom(SIZE))
    lengths = cut(data, (16 << 10, 64 << 10, 256 << 10))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    chunks = [data[at : at + length] for at, length in zip(starts, lengths, strict=True)]
    hashes, kinds, flags = native.blake3_list(chunks), b"\1" * len(chunks), bytes(len(chunks))
    joined, entries = native.frame_joined(1, 0, kinds, flags, hashes, lengths, chunks)
    root, groups = hash_blob(data, SIZE)
    pairs, _ = native.outboard(groups, True)
    base = SIZE / seconds(lambda: native.blake3(data)) / 1e9
    table: dict[str, Callable[[], object]] = {
        "blake3": lambda: native.blake3(data),
        "BlobHasher, 1 MiB pieces": lambda: hash_blob(data, 1 << 20),
        "BlobHasher, 100,000-byte pieces": lambda: hash_blob(data, 100_000),
        "Cutter, 4/64/256 KiB": lambda: cut(data, (4 << 10, 64 << 10, 256 << 10)),
        "Cutter, 16/64/256 KiB": lambda: cut(data, (16 << 10, 64 << 10, 256 << 10)),
        "Cutter, 64/256/1024 KiB": lambda: cut(data, (64 << 10, 256 << 10, 1 << 20)),
        "blake3_many, cut chunks": lambda: native.blake3_many(data, lengths),
        "crc32c": lambda: native.crc32c(data),
        "verify_groups": lambda: native.verify_groups(data, 0, groups),
        "outboard from groups": lambda: native.outboard(groups, True),
        "leaf_cvs": lambda: native.leaf_cvs(pairs, len(groups) // 32, root, True),
        "frame": lambda: native.frame(1, 0, kinds, flags, hashes, lengths, chunks),
        "scan, deep": lambda: native.scan(joined, 1, 0, deep=True),
        "check_payloads": lambda: native.check_payloads(joined, entries, 0),
        "find_header, none there": lambda: native.find_header(joined, 2, 0, 0),
        "compressible": lambda: native.compressible(chunks),
    }
    for name, work in table.items():
        rate = SIZE / seconds(work) / 1e9
        print(f"{name:34}{rate:8.2f} GB/s{rate / base:8.2f} x blake3")

    items = [os.urandom(1024) for _ in range(SMALL)]
    hashes, kinds, lengths = native.blake3_list(items), b"\1" * SMALL, [1024] * SMALL
    joined, entries = native.frame_joined(1, 0, kinds, bytes(SMALL), hashes, lengths, items)
    small: dict[str, Callable[[], object]] = {
        "blake3_list": lambda: native.blake3_list(items),
        "blake3_list of nothing": lambda: native.blake3_list([b""] * SMALL),
        "frame": lambda: native.frame(1, 0, kinds, bytes(SMALL), hashes, lengths, items),
        "frame_joined": lambda: native.frame_joined(1, 0, kinds, bytes(SMALL), hashes, lengths, items),
        "scan, deep": lambda: native.scan(joined, 1, 0, deep=True),
        "entry_columns": lambda: native.entry_columns(entries),
        "compressible": lambda: native.compressible(items),
    }
    for name, work in small.items():
        print(f"{name + ', 1 KiB items':34}{seconds(work) / SMALL * 1e6:8.3f} us/item")

    def read_at_random() -> None:
        for i in range(1000):
            first = i * 7919 % (SIZE // native.BLOCK_BYTES - 4)
            start = first * native.BLOCK_BYTES
            native.verify_groups(data[start : start + 65_536], first, groups[32 * first : 32 * first + 128])

    print(f"{'verify 64 KiB at random':34}{1000 / seconds(read_at_random):8.0f} /s")


if __name__ == "__main__":
    main()
