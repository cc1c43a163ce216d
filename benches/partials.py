"""Rows about streams that come in: decode and store, going on with half of a blob, and what is said of one."""

from __future__ import annotations

from pathlib import Path

from benches.corpora import incompressible, place
from benches.large import CORPUS, SIZE
from benches.measure import (
    Bench,
    Report,
    Sample,
    at_least,
    at_most,
    job,
    line,
    memory_goal,
    ms,
    rate,
    remove,
    stored,
)

HALF_OF = 256 << 20
LONG = 10 << 30
LOOKS = 5_000


def _stream(size_bytes: int, every_second: int | None = None) -> tuple[Path, str]:
    """Give the stream of incompressible bytes, and their hash."""
    part = "" if every_second is None else f"-{every_second}"
    path = place() / f"stream-{size_bytes}{part}"
    made = job("make_stream", source=incompressible(size_bytes), target=path, every_second=every_second)
    return path, str(made.counts["hash"])


def decode(bench: Bench) -> Report:
    """Take in the stream of 1 GiB"""
    stream, hash_ = _stream(SIZE)

    def take() -> Sample:
        store = bench.path("store")
        sample = job("decode", store=store, stream=stream, hash=hash_, size_bytes=SIZE, every_second=None)
        assert sample.counts["status"] == "complete"
        remove(store)
        return sample

    def put() -> Sample:
        store = bench.path("put")
        sample = job("put", store=store, source=incompressible(SIZE), hash=hash_)
        remove(store)
        return sample

    found = bench.race({"Holdfast, decode": take, "Holdfast, put": put})
    ours, other = found["Holdfast, decode"], found["Holdfast, put"]
    goals = [at_least("≥ 0.5 × put of the same bytes", ours.faster_than(other), 0.5, " ×"), memory_goal(ours)]
    lines = [
        line("Holdfast, decode", ours, rate(SIZE), beside={"put": other}, proof=stored(ours.counts)),
        line("Holdfast, put", other, rate(SIZE)),
    ]
    note = "A checkpoint each 7 MiB, durable; what a crash may cost is below 16 MiB all the way."
    return Report(decode.__doc__ or "", lines, goals, CORPUS, note)


def resume(bench: Bench) -> Report:
    """Go on with a blob of which every second block is here"""
    store = bench.path("claimed")
    job("claim_half", store=store, size_bytes=LONG)
    halves = [_stream(HALF_OF, part) for part in range(2)]

    def second_half() -> Sample:
        path = bench.path("half")
        for part, (stream, hash_) in enumerate(halves):
            sample = job(
                "decode", store=path, stream=stream, hash=hash_, size_bytes=HALF_OF, every_second=part
            )
        assert sample.counts["status"] == "complete"
        remove(path)
        return sample

    found = bench.race({"first range": lambda: job("first_ask", store=store), "other half": second_half})
    ask, rest = found["first range"], found["other half"]
    goals = [
        at_most("10 GiB: first byte asked for within 50 ms", ask.seconds * 1000, 50, " ms"),
        memory_goal(ask, rest),
    ]
    lines = [
        line(
            "10 GiB: open the store, say what is missing", ask, ms, proof=f"{ask.counts['ranges']:,} ranges"
        ),
        line("256 MiB: take the other half in", rest, rate(HALF_OF // 2), proof=stored(rest.counts)),
    ]
    note = (
        "Of the 10 GiB the journal alone is made, as it would be. The other half is copied together block by block:"
        " half of what is written is read back and its room given back, one hole a block."
    )
    return Report(resume.__doc__ or "", lines, goals, "incompressible bytes", note)


def bitfield(bench: Bench) -> Report:
    """Say what is here of 1 TiB with one hole"""
    found = bench.race({"bitfield": lambda: job("look", store=bench.path("look"), count=LOOKS)})["bitfield"]
    micros = found.seconds / LOOKS * 1e6
    goals = [
        at_most("≤ 1 KiB stored", found.counts["journal_bytes"], 1024, " bytes"),
        at_most("microseconds: below 1,000", micros, 1000, " µs"),
    ]
    lines = [line("bitfield, one leaf, what is missing", found, lambda s: f"{s / LOOKS * 1e6:.0f} µs")]
    return Report(bitfield.__doc__ or "", lines, goals, "a journal of 1 TiB with one block missing")
