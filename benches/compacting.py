"""Rows about giving room back: compaction beside `cp` and a sync of the live bytes; what a writer sees of it."""

from __future__ import annotations

from benches.corpora import incompressible
from benches.large import copy_and_sync
from benches.measure import (
    Bench,
    Report,
    Sample,
    at_least,
    at_most,
    job,
    line,
    memory_goal,
    mib,
    ms,
    rate,
    remove,
)

SIZE = 1 << 30
"""Live bytes; as many are dead."""
PIECE = 256 << 10
PUTS = 1_000


def compact(bench: Bench) -> Report:
    """Compact a store of 2 GiB of which half is dead"""
    half = incompressible(SIZE)

    def ours() -> Sample:
        store = bench.path("worn")
        job("wear", store=store, source=incompressible(2 * SIZE), size_bytes=2 * SIZE, piece_bytes=PIECE)
        sample = job("compact", store=store)
        assert sample.counts["copied_bytes"] >= SIZE
        remove(store)
        return sample

    found = bench.race({"Holdfast": ours, "cp + sync": copy_and_sync(bench, half)})
    mine, copy = found["Holdfast"], found["cp + sync"]
    goals = [
        at_least("≥ 0.5 × (cp + sync) of the live bytes", mine.faster_than(copy), 0.5, " ×"),
        memory_goal(mine),
    ]
    proof = f"{mib(mine.counts['freed_bytes'])} freed, {mib(mine.counts['copied_bytes'])} copied"
    lines = [
        line("Holdfast", mine, rate(SIZE), beside={"cp + sync": copy}, proof=proof),
        line("cp + sync", copy, rate(SIZE)),
    ]
    note = "Every second piece of 256 KiB is dead, so each segment is rewritten; each byte that is copied was hashed."
    return Report(compact.__doc__ or "", lines, goals, "1 GiB live, 1 GiB dead, incompressible", note)


def pause(bench: Bench) -> Report:
    """Small durable puts while a store is compacted"""

    def puts(beside: bool) -> Sample:
        store = bench.path("worn")
        job("wear", store=store, source=incompressible(SIZE), size_bytes=SIZE, piece_bytes=PIECE)
        sample = job("put_beside_compaction", store=store, puts=PUTS, compacts=beside)
        remove(store)
        return sample

    found = bench.race({"compacting": lambda: puts(True), "alone": lambda: puts(False)})
    busy, alone = found["compacting"], found["alone"]
    ratio = busy.counts["p99"] / alone.counts["p99"]
    lines = [
        line(f"{name}: p99", series, ms, proof=f"median {series.counts['median'] * 1000:.2f} ms")
        for name, series in (("compacting", busy), ("alone", alone))
    ]
    return Report(
        pause.__doc__ or "", lines, [at_most("p99 ≤ 3 × without", ratio, 3, " ×")], "1 KiB each", ""
    )
