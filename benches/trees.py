"""Rows about directories: a source tree, and the versions of one package."""

from __future__ import annotations

from pathlib import Path

from benches.corpora import PACKAGE, source_tree, versions
from benches.measure import (
    Bench,
    Line,
    Report,
    Run,
    Sample,
    at_least,
    command,
    flush,
    job,
    line,
    memory_goal,
    per_second,
    remove,
    stored,
)
from benches.peers import Borg, Restic, available


def tree(bench: Bench) -> Report:
    """A source tree: put_tree, and again"""
    directory, what = source_tree()
    files = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    count, size = len(files), sum(path.stat().st_size for path in files)
    kept = bench.path("kept")
    job("put_tree", store=kept, directory=directory)  # also brings the tree into the cache
    peers = {peer.name: peer for peer in available(bench)}

    def copy() -> Sample:
        target = bench.path("copy")
        sample = command(["sh", "-c", 'cp -r "$0" "$1" && sync -f "$1"', directory, target])
        remove(target)
        return sample

    def holdfast() -> Sample:
        store = bench.path("store")
        sample = job("put_tree", store=store, directory=directory)
        assert sample.counts["files"] == count, sample.counts
        remove(store)
        return sample

    def again() -> Sample:
        sample = job("put_tree", store=kept, directory=directory)
        assert sample.counts["files"] == count
        return sample

    def fresh(peer: Borg | Restic) -> Run:
        def run() -> Sample:
            peer.create()
            sample = peer.store([directory])
            peer.remove()
            return sample

        return run

    runs: dict[str, Run] = {"put_tree": holdfast, "cp -r + sync": copy, "again": again}
    found = bench.race(runs)
    slow = bench.race(
        {"put_tree": holdfast} | {n: fresh(p) for n, p in peers.items()}, runs=min(bench.runs, 3)
    )
    slow.pop("put_tree")
    first, plain, second = found.values()
    figure = per_second(count, "files")
    lines = [
        line("Holdfast, put_tree", first, figure, beside={"cp -r + sync": plain}, proof=stored(first.counts)),
        line("Holdfast, again", second, figure, proof=stored(second.counts)),
        line("cp -r + sync", plain, figure),
        *(line(name, series, figure) for name, series in slow.items()),
    ]
    goals = [
        at_least("≥ 1.0 × (cp -r + sync)", first.faster_than(plain), 1.0, " ×"),
        at_least("≥ 15,000 files/s", count / first.seconds, 15_000, "/s"),
        at_least("again ≥ 30,000 files/s", count / second.seconds, 30_000, "/s"),
        memory_goal(first, second),
    ]
    corpus = f"{what}: {count:,} files, {size:,} bytes, in the page cache"
    return Report(tree.__doc__ or "", lines, goals, corpus, "borg and restic: at most 3 runs.")


def package(bench: Bench) -> Report:
    """28 versions of a package's source: how much smaller"""
    found = versions()
    size = sum(path.stat().st_size for one in found for path in one.rglob("*") if path.is_file())
    store = bench.path("store")
    ours = bench.race({"Holdfast": lambda: job("put_trees", store=store, directories=found)}, runs=1)[
        "Holdfast"
    ]
    flush(store)
    ratio = size / _on_disk(store)
    counts = ours.counts
    proof = f"{stored(counts)}; {_on_disk(store):,} bytes of files in all"
    lines = [Line("Holdfast", f"{ratio:.2f} × smaller", cpu=f"{ours.cpu_seconds:.1f} s", proof=proof)]
    for peer in available(bench):
        peer.create()
        cpu = sum(peer.store([one]).cpu_seconds for one in found)
        on_disk = _on_disk(peer.repository)
        lines.append(
            Line(
                peer.name,
                f"{size / on_disk:.2f} × smaller",
                cpu=f"{cpu:.1f} s",
                proof=f"{on_disk:,} bytes",
            )
        )
        peer.remove()
    goals = [at_least("≥ 5.0 × smaller than their sum", ratio, 5.0, " ×"), memory_goal(ours)]
    corpus = f"{len(found)} releases of {PACKAGE} (sdists, unpacked), {size:,} bytes; one put_tree each"
    return Report(
        package.__doc__ or "",
        lines,
        goals,
        corpus,
        "One run. All files of a store count.",
    )


def _on_disk(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
