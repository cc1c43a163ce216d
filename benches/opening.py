"""Rows about starting: opening a store of a million chunks, after a crash too, rebuilding, the command's start-up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from benches.measure import (
    Bench,
    Report,
    Run,
    Sample,
    at_most,
    command,
    flush,
    job,
    line,
    memory_goal,
    ms,
    remove,
)


def opening(bench: Bench) -> Report:
    """Open a store of 1,000,000 chunks in a new process, and rebuild its catalog"""
    store = bench.path("million")
    counts = job("fill_chunks", store=store, count=bench.chunks).counts
    lines = []
    clean = bench.race({"clean": lambda: job("open_store", store=store)})["clean"]
    lines.append(line("open after a clean close", clean, ms, proof=f"{counts['chunks']:,} chunks"))
    goals = [at_most("open after a clean close ≤ 100 ms", clean.seconds * 1000, 100, " ms")]
    seen = [clean]
    for value_bytes, what in ((65_536, "64 KiB"), (1_024, "1 KiB")):
        crashed = bench.race({"crashed": lambda size=value_bytes: _after_crash(store, size)})["crashed"]  # type: ignore[misc]
        proof = f"60 MiB of blobs of {what} in {crashed.counts['groups']} groups, not in the catalog before"
        lines.append(
            line(f"open after kill -9, a segment of {what} blobs unapplied", crashed, ms, proof=proof)
        )
        goals.append(at_most(f"after kill -9, {what} blobs ≤ 500 ms", crashed.seconds * 1000, 500, " ms"))
        seen.append(crashed)
    rebuilt = bench.race({"rebuild": lambda: job("rebuild", store=store)}, runs=min(bench.runs, 3))["rebuild"]
    lines.append(
        line("rebuild the catalog", rebuilt, ms, proof=f"{rebuilt.counts['chunks']:,} chunks, equal counts")
    )
    goals += [at_most("rebuild ≤ 15 s", rebuilt.seconds, 15, " s"), memory_goal(*seen, rebuilt)]
    corpus = f"{counts['chunks']:,} chunks of 4 KiB (fixed, so that the store is small), {counts['segments']} segments"
    note = "Timed: `holdfast.open` and one look-up, without interpreter and imports. Rebuild: at most 3 runs."
    remove(store)
    return Report(opening.__doc__ or "", lines, goals, corpus, note)


def _after_crash(store: Path, value_bytes: int) -> Sample:
    """Fill a segment in a process that dies, with the catalog as it was before, and open."""
    saved = store.with_name("catalog-before")
    shutil.copy(store / "catalog.db", saved)
    before = {path.name for path in (store / "segments").iterdir()}
    arguments = json.dumps({"store": str(store), "value_bytes": value_bytes})
    argv = [sys.executable, "-m", "benches.jobs", "fill_segment", arguments]
    done = subprocess.run(argv, capture_output=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == -9, done.stderr.decode(errors="replace")[-2000:]
    for name in ("catalog.db-wal", "catalog.db-shm"):
        (store / name).unlink(missing_ok=True)
    shutil.copy(saved, store / "catalog.db")
    flush(store)
    sample = job("open_store", store=store)
    groups = int(done.stdout.split(b'"groups": ')[1].split(b"}")[0])
    assert {path.name for path in (store / "segments").iterdir()} > before
    return sample._replace(counts=sample.counts | {"groups": groups})


def start(bench: Bench) -> Report:
    """Start-up of the command"""
    store = bench.path("store")
    job("put_blobs", store=store, count=10, mixed=False)
    holdfast = Path(sys.executable).with_name("holdfast")
    runs: dict[str, Run] = {
        "python -c 'import apsw, pydantic'": lambda: command([sys.executable, "-c", "import apsw, pydantic"]),
        "holdfast --help": lambda: command([holdfast, "--help"]),
        "holdfast ls": lambda: command([holdfast, "--store", store, "ls"]),
    }
    bench.race(runs, runs=1)
    found = bench.race(runs, runs=4 * bench.runs)
    bare, help_, ls = found.values()
    lines = [line(name, series, ms, beside={"the imports": bare}) for name, series in found.items()]
    goals = [
        at_most("--help ≤ 2 × the imports", 1 / help_.faster_than(bare), 2, " ×"),
        at_most("ls ≤ 2 × the imports", 1 / ls.faster_than(bare), 2, " ×"),
    ]
    return Report(
        start.__doc__ or "",
        lines,
        goals,
        "a store of a few blobs",
        f"{4 * bench.runs} runs.",
    )
