"""Rows about one large blob: put, put again, read, scrub, ranges, an endless stream, space."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from benches.corpora import incompressible
from benches.measure import (
    Bench,
    Goal,
    Line,
    Report,
    Run,
    Sample,
    at_least,
    at_most,
    command,
    flush,
    job,
    line,
    memory_goal,
    per_second,
    rate,
    remove,
    stored,
)
from benches.peers import Borg, Restic, available

SIZE = 1 << 30
CORPUS = "1 GiB of incompressible bytes (BLAKE3's output stream), in one file, in the page cache"
READS = 20_000


def source() -> tuple[Path, str]:
    """Give the file, in the cache, and its hash."""
    path = incompressible(SIZE)
    return path, str(job("hash_file", path=path, threads=2).counts["hash"])


def copy_and_sync(bench: Bench, path: Path) -> Run:
    """The limit: `cp`, and the copy made durable."""

    def run() -> Sample:
        target = bench.path("copy")
        sample = command(["sh", "-c", 'cp "$0" "$1" && sync "$1"', path, target])
        remove(target)
        return sample

    return run


def put(bench: Bench) -> Report:
    """Put 1 GiB of incompressible bytes"""
    path, hash_ = source()

    def holdfast() -> Sample:
        store = bench.path("store")
        sample = job("put", store=store, source=path, hash=hash_)
        remove(store)
        return sample

    def fresh(peer: Borg | Restic) -> Run:
        def run() -> Sample:
            peer.create()
            sample = peer.store([path])
            peer.remove()
            return sample

        return run

    peers = {peer.name: peer for peer in available(bench)}
    runs = {"cp + sync": copy_and_sync(bench, path), "Holdfast": holdfast}
    found = bench.race(runs | {name: fresh(peer) for name, peer in peers.items()})
    ours, copy = found["Holdfast"], found["cp + sync"]
    goals = [at_least("≥ 0.6 × (cp + sync)", ours.faster_than(copy), 0.6, " ×")]
    if "borg" in found:
        goals.append(at_least("≥ 2.3 × borg", ours.faster_than(found["borg"]), 2.3, " ×"))
    goals += [at_least("about 1.0 GB/s", SIZE / ours.seconds / 1e9, 1.0, " GB/s"), memory_goal(ours)]
    beside = {name: series for name, series in found.items() if name != "Holdfast"}
    lines = [line("Holdfast", ours, rate(SIZE), beside=beside, proof=stored(ours.counts))]
    lines += [line(name, series, rate(SIZE)) for name, series in beside.items()]
    return Report(put.__doc__ or "", lines, goals, CORPUS, "borg: lz4, not encrypted.")


def put_again(bench: Bench) -> Report:
    """Put the same 1 GiB again"""
    path, hash_ = source()
    store = bench.path("store")
    job("put", store=store, source=path, hash=hash_)
    peers = {peer.name: peer for peer in available(bench)}
    for peer in peers.values():
        peer.create()
        peer.store([path])

    def holdfast() -> Sample:
        sample = job("put", store=store, source=path, hash=hash_)
        assert sample.counts["unique_bytes"] == SIZE, "stored twice"
        return sample

    runs: dict[str, Run] = {
        "Holdfast": holdfast,
        "BLAKE3, one thread": lambda: job("hash_file", path=path, threads=1),
        "BLAKE3, both cores": lambda: job("hash_file", path=path, threads=2),
    }
    for name, peer in peers.items():
        runs[name] = partial(peer.store, [path], again=True)
    found = bench.race(runs)
    ours = found["Holdfast"]
    goals = [at_least("≥ 1.5 GB/s", SIZE / ours.seconds / 1e9, 1.5, " GB/s")]
    if "restic" in found:
        goals.append(at_least("≥ 2 × restic", ours.faster_than(found["restic"]), 2, " ×"))
    beside = {name: series for name, series in found.items() if name != "Holdfast"}
    lines = [line("Holdfast", ours, rate(SIZE), beside=beside, proof=stored(ours.counts))]
    lines += [line(name, series, rate(SIZE)) for name, series in beside.items()]
    note = "Everybody reads all bytes again: restic with --force, borg without its cache of file times."
    return Report(put_again.__doc__ or "", lines, [*goals, memory_goal(ours)], CORPUS, note)


def read(bench: Bench) -> Report:
    """Read 1 GiB to nowhere, verified"""
    path, hash_ = source()
    store = bench.path("store")
    job("put", store=store, source=path, hash=hash_)
    peers = {peer.name: peer for peer in available(bench)}
    for peer in peers.values():
        peer.create()
        peer.store([path])
    runs: dict[str, Run] = {
        "Holdfast": lambda: job("read", store=store, hash=hash_),
        "cat": lambda: command(["sh", "-c", 'cat "$0" | cat > /dev/null', path]),
        "BLAKE3, one thread": lambda: job("hash_file", path=path, threads=1),
        "BLAKE3, both cores": lambda: job("hash_file", path=path, threads=2),
    }
    for name, peer in peers.items():
        runs[name] = partial(peer.read, path)
    found = bench.race(runs)
    ours = found["Holdfast"]
    goals = [at_least("≥ 3.5 GB/s", SIZE / ours.seconds / 1e9, 3.5, " GB/s")]
    if "borg" in found:
        goals.append(at_least("≥ 3 × borg", ours.faster_than(found["borg"]), 3, " ×"))
    beside = {name: series for name, series in found.items() if name != "Holdfast"}
    proof = f"{ours.counts['read_bytes']:,} bytes from {ours.counts['chunks']:,} chunks"
    lines = [line("Holdfast", ours, rate(SIZE), beside=beside, proof=proof)]
    lines += [line(name, series, rate(SIZE)) for name, series in beside.items()]
    return Report(
        read.__doc__ or "",
        lines,
        [*goals, memory_goal(ours)],
        CORPUS,
        "Peers write into a pipe.",
    )


def scrub(bench: Bench) -> Report:
    """Scrub 1 GiB, from the disk and from the cache"""
    path, hash_ = source()
    store = bench.path("store")
    job("put", store=store, source=path, hash=hash_)
    segments = store / "segments"
    size = sum(segment.stat().st_size for segment in segments.iterdir())

    def dropped(run: Run) -> Run:
        def dropping() -> Sample:
            for segment in segments.iterdir():
                fd = os.open(segment, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
            return run()

        return dropping

    direct = 'for f in "$0"/*; do dd if="$f" of=/dev/null bs=4M iflag=direct status=none || exit 1; done'
    cold = bench.race(
        {
            "Holdfast, from the disk": dropped(lambda: job("scrub", store=store, drop_cache=True)),
            "dd iflag=direct": dropped(lambda: command(["sh", "-c", direct, segments])),
        }
    )
    job("scrub", store=store, drop_cache=False)  # into the cache again
    warm = bench.race(
        {
            "Holdfast, from the cache": lambda: job("scrub", store=store, drop_cache=False),
            "BLAKE3, both cores": lambda: job("hash_files", directory=segments, threads=2),
        }
    )
    from_disk, disk = cold.values()
    from_cache, hashing = warm.values()
    proof = f"{from_disk.counts['records']:,} records, {from_disk.counts['checked_bytes']:,} bytes, no damage"
    lines = [
        line("Holdfast, from the disk", from_disk, rate(size), beside={"dd": disk}, proof=proof),
        line("dd iflag=direct, 4 MiB blocks", disk, rate(size)),
        line("Holdfast, from the cache", from_cache, rate(size), beside={"BLAKE3": hashing}, proof=proof),
        line("BLAKE3 of the same files, both cores", hashing, rate(size)),
    ]
    goals = [
        at_least("from the disk ≥ 0.8 × dd", from_disk.faster_than(disk), 0.8, " ×"),
        at_least("from the cache ≥ 0.5 × BLAKE3", from_cache.faster_than(hashing), 0.5, " ×"),
        memory_goal(from_disk, from_cache),
    ]
    return Report(scrub.__doc__ or "", lines, goals, CORPUS)


def ranges(bench: Bench) -> Report:
    """64 KiB at random offsets of 1 GiB, through one open file, verified"""
    path, hash_ = source()
    store = bench.path("store")
    job("put", store=store, source=path, hash=hash_)
    found = bench.race(
        {
            "Holdfast": lambda: job("ranges", store=store, hash=hash_, count=READS),
            "pread + BLAKE3": lambda: job("pread_hash", path=path, count=READS),
        }
    )
    ours, plain = found.values()
    assert ours.counts["first_thousand"] == plain.counts["first_thousand"], "other bytes came back"
    lines = [
        line(
            "Holdfast",
            ours,
            per_second(READS, "reads"),
            beside={"pread + BLAKE3": plain},
            proof=f"{READS:,} reads",
        ),
        line("pread + BLAKE3 of a plain file", plain, per_second(READS, "reads")),
    ]
    goals = [
        at_least("≥ 25,000/s", READS / ours.seconds, 25_000, "/s"),
        at_least("≥ 0.4 × (pread + BLAKE3)", ours.faster_than(plain), 0.4, " ×"),
        memory_goal(ours),
    ]
    return Report(ranges.__doc__ or "", lines, goals, CORPUS)


def stream(bench: Bench) -> Report:
    """Memory of a large, unique, incompressible stream"""
    size = bench.stream_bytes
    free = os.statvfs(bench.scratch)
    if free.f_bavail * free.f_frsize < size * 1.2:
        raise RuntimeError(
            f"a stream of {size >> 30} GiB does not fit on this disk: give a smaller --stream-gib"
        )
    store = bench.path("store")
    try:
        found = bench.race({"Holdfast": lambda: job("put_stream", store=store, size_bytes=size)}, runs=1)
    finally:
        remove(store)
    ours = found["Holdfast"]
    unique = ours.counts["unique_bytes"]
    lines = [line("Holdfast", ours, rate(size), proof=stored(ours.counts))]
    corpus = f"{size >> 30} GiB of incompressible bytes from an iterator, made as they are asked for"
    goals = [memory_goal(ours), Goal("all of it unique", f"{unique:,} bytes", unique == size)]
    return Report(stream.__doc__ or "", lines, goals, corpus, "One run: minutes, and tens of GB of disk.")


def space(bench: Bench) -> Report:
    """Space beyond the data: log and checkpointed catalog together"""
    path, hash_ = source()
    store = bench.path("large")
    job("put", store=store, source=path, hash=hash_)
    share = _extra(store, SIZE) / SIZE * 100
    count = 100_000
    each = {}
    for name in ("put_blobs", "put_artifacts"):
        small = bench.path(name)
        sample = job(name, store=small, count=count, mixed=False)
        each[name] = _extra(small, sample.counts["unique_bytes"]) / count
        remove(small)
    lines = [
        Line(
            "1 GiB in 64 KiB chunks", f"{share:.2f} %", proof=f"{_extra(store, SIZE):,} bytes beyond {SIZE:,}"
        ),
        Line("a raw blob of 1 KiB", f"{each['put_blobs']:.0f} bytes", proof=f"{count:,} blobs"),
        Line(
            "the same with its artifact", f"{each['put_artifacts']:.0f} bytes", proof=f"{count:,} artifacts"
        ),
    ]
    goals = [
        at_most("≤ 3 % at 64 KiB chunks", share, 3, " %"),
        at_most("≤ 200 bytes for a raw small blob", each["put_blobs"], 200, " bytes"),
        at_most("≤ 600 bytes with its artifact", each["put_artifacts"], 600, " bytes"),
    ]
    corpus = f"{CORPUS}; {count:,} incompressible blobs of 1 KiB"
    return Report(
        space.__doc__ or "",
        lines,
        goals,
        corpus,
        "All files of a closed store, less the data.",
    )


def _extra(store: Path, data_bytes: int) -> int:
    flush(store)
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) - data_bytes
