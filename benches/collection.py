"""Collection over many chunks of which half are garbage: time of the mark and of the whole, memory, and the pause
that a writer sees meanwhile.

    python -m benches.collection [CHUNKS]          1,000,000 of 4 KiB by default: 4 GB of room
    python -m benches.collection [CHUNKS] --peers  beside `restic prune` and `borg compact` on the same blobs
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benches.corpora import place
from holdfast.chunking import Chunking
from holdfast.store import Store

CHUNK_BYTES: Final = 4096
BLOB_CHUNKS: Final = 100
PUT_BYTES: Final = 1_000


def blob(number: int) -> bytes:
    return random.Random(number).randbytes(CHUNK_BYTES * BLOB_CHUNKS)


def fill(path: str, chunks: int) -> dict[str, Any]:
    """Make the store, and delete every other artifact."""
    with Store._open(
        path, create=True, chunking=Chunking.choose("fixed", CHUNK_BYTES), compression="none"
    ) as store:
        count = chunks // BLOB_CHUNKS
        ids = []
        for start in range(0, count, 50):
            ids += [one.id for one in store.put_many([blob(n) for n in range(start, min(start + 50, count))])]
        for start in range(0, count, 2_000):
            store.delete(*ids[start : start + 2_000 : 2])
    return {"chunks": count * BLOB_CHUNKS}


def collect(path: str) -> dict[str, Any]:
    """Collect, and say how long the first mark and the whole took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Store._open(path) as store:
        began = time.monotonic()
        marked: list[float] = []

        def watch(progress: Any) -> None:
            if progress.phase != "mark" and not marked:
                marked.append(time.monotonic() - began)

        with_artifacts = store.gc(min_age_seconds=0, max_batches=1, progress=None)  # forgets what was deleted
        began = time.monotonic()
        report = store.gc(min_age_seconds=0, progress=watch)
        seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "mark_s": round(marked[0] if marked else seconds, 2),
        "whole_s": round(seconds, 2),
        "forgotten": with_artifacts.forgotten_artifacts + report.forgotten_artifacts,
        "dropped_payloads": report.dropped_payloads + with_artifacts.dropped_payloads,
        "compact_s": round(report.compacted.seconds, 2) if report.compacted else 0,
        "peak_mib": round(peak / 1024),
        "bare_mib": round(before / 1024),
    }


def dry(path: str) -> dict[str, Any]:
    """Mark and compare, without changing anything: the mark alone."""
    with Store._open(path) as store:
        began = time.monotonic()
        report = store.gc(dry_run=True, min_age_seconds=0)
        seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "dry_run_s": round(seconds, 2),
        "would_drop": report.dropped_payloads,
        "peak_mib": round(peak / 1024),
    }


def write(path: str, seconds: float) -> dict[str, Any]:
    """Put small artifacts, each durable, and say how long each took."""
    times = []
    rng = random.Random(os.getpid())
    with Store._open(path) as store:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            data = rng.randbytes(PUT_BYTES)
            began = time.perf_counter()
            store.put(data)
            times.append(time.perf_counter() - began)
    return {
        "puts": len(times),
        "p50_ms": round(statistics.median(times) * 1000, 2),
        "p99_ms": round(statistics.quantiles(times, n=100)[98] * 1000, 2),
        "max_ms": round(max(times) * 1000, 1),
    }


def child(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benches.collection", *arguments], stdout=subprocess.PIPE, check=True
    )
    return dict(json.loads(done.stdout))


def peers(chunks: int, directory: Path) -> None:
    """The same blobs as files, backed up twice, the second time without every other one, then pruned."""
    files = directory / "files"
    files.mkdir()
    for number in range(chunks // BLOB_CHUNKS):
        (files / f"{number}").write_bytes(blob(number))
    env = {**os.environ, "RESTIC_PASSWORD": "x", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}

    def run(*command: str) -> float:
        began = time.monotonic()
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, cwd=files
        )
        return time.monotonic() - began

    restic, borg = ("restic", "-r", str(directory / "restic")), str(directory / "borg")
    if shutil.which("restic"):
        run(*restic, "init")
        run(*restic, "backup", ".")
    if shutil.which("borg"):
        run("borg", "init", "-e", "none", borg)
        run("borg", "create", f"{borg}::one", ".")
    for number in range(0, chunks // BLOB_CHUNKS, 2):
        (files / f"{number}").unlink()
    if shutil.which("restic"):
        run(*restic, "backup", ".")
        print("restic forget --prune", round(run(*restic, "forget", "--keep-last", "1", "--prune"), 2), "s")
    if shutil.which("borg"):
        run("borg", "create", f"{borg}::two", ".")
        gone = run("borg", "delete", f"{borg}::one")
        print("borg delete", round(gone, 2), "s, borg compact", round(run("borg", "compact", borg), 2), "s")


def main() -> None:
    arguments = [one for one in sys.argv[1:] if one != "--peers"]
    if arguments and not arguments[0].isdigit():
        jobs: dict[str, Callable[..., dict[str, Any]]]
        jobs = {"fill": fill, "collect": collect, "dry": dry, "write": write}
        job = jobs[arguments[0]]
        rest: list[Any] = [arguments[1], *map(float if arguments[0] == "write" else int, arguments[2:])]
        print(json.dumps(job(*rest)))
        return
    chunks = int(arguments[0]) if arguments else 1_000_000
    with tempfile.TemporaryDirectory(dir=place()) as directory:
        path = f"{directory}/store"
        print("fill", child("fill", path, str(chunks)), flush=True)
        print("dry run", child("dry", path), flush=True)
        alone = child("write", path, "5")
        print("puts alone", alone, flush=True)
        results: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: results.append(child("collect", path)))
        thread.start()
        beside = []
        while thread.is_alive():
            beside.append(child("write", path, "3"))
        thread.join()
        print("collect", results[0], flush=True)
        for one in beside:
            print("puts beside", one, "p99 ratio", round(one["p99_ms"] / alone["p99_ms"], 2), flush=True)
        if "--peers" in sys.argv:
            peers(chunks, Path(directory))


if __name__ == "__main__":
    main()
