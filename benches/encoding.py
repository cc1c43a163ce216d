"""Rows about streams that go out: whole, in ranges, and the kernels beside the crate `bao-tree` in Rust."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final

from benches.corpora import incompressible
from benches.large import CORPUS, SIZE, source
from benches.measure import Bench, Goal, Line, Report, at_least, job, line, memory_goal, per_second, rate

RANGES: Final = 20_000
KERNEL_BYTES: Final = 640 << 20
_LINE: Final = re.compile(
    r"(?P<job>.+?)  +(?P<who>crate|ours|blake3) +(?P<rate>[\d.]+) (?P<unit>\S+) +(?P<ratio>[\d.]+) x"
)


def encode(bench: Bench) -> Report:
    """Encode 1 GiB as a BAO stream, to nowhere"""
    path, hash_ = source()
    store = bench.path("store")
    job("put", store=store, source=path, hash=hash_)
    found = bench.race(
        {
            "encode": lambda: job("encode", store=store, hash=hash_),
            "read": lambda: job("read", store=store, hash=hash_),
        }
    )
    ours, read = found["encode"], found["read"]
    lines = [
        line("Holdfast, encode", ours, rate(SIZE), beside={"read": read}),
        line("Holdfast, read verified", read, rate(SIZE)),
    ]
    goals = [at_least("≥ 0.6 × reading it verified", ours.faster_than(read), 0.6, " ×"), memory_goal(ours)]
    return Report(encode.__doc__ or "", lines, goals, CORPUS)


def ranges(bench: Bench) -> Report:
    """Encode and decode 64 KiB at random places of 1 GiB"""
    path, hash_ = source()
    store = bench.path("store")
    job("put", store=store, source=path, hash=hash_)
    found = bench.race(
        {
            "encode": lambda: job("encode_ranges", store=store, hash=hash_, count=RANGES),
            "decode": lambda: job("decode_ranges", store=store, hash=hash_, count=RANGES),
        }
    )
    goals = [
        at_least(f"≥ 15,000/s: {name}", RANGES / one.seconds, 15_000, "/s") for name, one in found.items()
    ]
    lines = [line(f"Holdfast, {name}", one, per_second(RANGES, "ranges")) for name, one in found.items()]
    note = "Encode: a call of `blobs.encode` each, out of the store. Decode: verified in memory, not stored."
    return Report(ranges.__doc__ or "", lines, [*goals, memory_goal(*found.values())], CORPUS, note)


def kernels(bench: Bench) -> Report:
    """Encode and decode in memory, one thread, beside the crate `bao-tree` in Rust"""
    manifest = Path(__file__).parents[1] / "native" / "Cargo.toml"
    command = ["cargo", "run", "--quiet", "--release", "--locked", "--example", "bao", "--manifest-path"]
    said = subprocess.run(
        [*command, str(manifest), "--", "bench"], capture_output=True, text=True, check=True
    )
    rows = [match for text in said.stdout.splitlines() if (match := _LINE.match(text))]
    lines = [
        Line(
            f"{row['job'].strip()}, {row['who']}",
            f"{float(row['rate']):,.2f} {row['unit']}",
            "best of 15",
            f"{row['ratio']} × crate",
        )
        for row in rows
    ]
    goals = [
        Goal(f"≥ 0.8 × the crate: {row['job'].strip()}", f"{row['ratio']} ×", float(row["ratio"]) >= 0.8)
        for row in rows
        if row["who"] == "ours"
    ]
    path = incompressible(SIZE)
    found = bench.race(
        {
            "BLAKE3": lambda: job("kernel", source=path, what="blake3", piece_bytes=0),
            "encode": lambda: job("kernel", source=path, what="encode", piece_bytes=0),
            "decode, pieces of 1 MiB": lambda: job("kernel", source=path, what="decode", piece_bytes=1 << 20),
            "decode, pieces of 64 KiB": lambda: job(
                "kernel", source=path, what="decode", piece_bytes=1 << 16
            ),
            "decode, pieces of 1,500 bytes": lambda: job(
                "kernel", source=path, what="decode", piece_bytes=1_500
            ),
        }
    )
    base = found["BLAKE3"]
    lines += [
        line(f"from Python, {name}", one, rate(KERNEL_BYTES), beside={} if one is base else {"BLAKE3": base})
        for name, one in found.items()
    ]
    note = "First both sides called from Rust, in turns (`native/examples/bao.rs`); then our kernels from Python."
    return Report(kernels.__doc__ or "", lines, goals, "64 MiB in memory", note)
