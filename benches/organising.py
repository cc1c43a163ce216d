"""Rows about artifacts that people organise, and about collection."""

from __future__ import annotations

import os
import shutil
from functools import partial

from benches.measure import (
    Bench,
    Report,
    Run,
    Sample,
    at_least,
    at_most,
    command,
    job,
    line,
    memory_goal,
    mib,
    ms,
    per_second,
    remove,
)
from benches.organise_jobs import BLOB_CHUNKS, blob
from benches.small import fresh

ARTIFACTS = 1_000_000
UPDATES = 1_000
IDLE_SECONDS = 20.0


def find(bench: Bench) -> Report:
    """Put 1,000,000 artifacts with two tags each, in batches; find them"""
    store = bench.path("tagged")
    put = bench.race({"put": partial(job, "put_tagged", store=store, count=ARTIFACTS)}, runs=1)["put"]
    walk = bench.race({"walk": partial(job, "find_tagged", store=store)})["walk"]
    remove(store)
    slower = put.counts["last_tenth"] / put.counts["first_tenth"]
    first = walk.counts["first_100"] * 1000
    lines = [
        line(
            "put_many, 10,000 a call",
            put,
            per_second(ARTIFACTS, "artifacts"),
            proof=f"{put.counts['artifacts']:,}",
        ),
        line(
            "find(), all", walk, per_second(ARTIFACTS, "artifacts"), proof=f"{walk.counts['walked']:,} walked"
        ),
    ]
    goals = [
        at_least("put ≥ 25,000/s", ARTIFACTS / put.seconds, 25_000, "/s"),
        at_most("the last tenth ≤ 1.5 × the first", slower, 1.5, " ×"),
        at_most("the first 100 of a tag ≤ 5 ms", first, 5, " ms"),
        at_least("a full walk ≥ 100,000/s", ARTIFACTS / walk.seconds, 100_000, "/s"),
        memory_goal(put, walk),
    ]
    return Report(find.__doc__ or "", lines, goals, "contents of a few bytes, 1,000 tags and 7 tags")


def update(bench: Bench) -> Report:
    """Change the metadata of artifacts, one durable update each"""
    found = bench.race(
        {
            "Holdfast": fresh(bench, "update_each", "store", count=UPDATES),
            "append + fdatasync": fresh(bench, "append_each", "file", count=UPDATES),
        }
    )
    ours, plain = found["Holdfast"], found["append + fdatasync"]
    figure = per_second(UPDATES, "updates")
    lines = [
        line(
            "Holdfast", ours, figure, beside={"append + fdatasync": plain}, proof=f"{UPDATES:,} of revision 2"
        ),
        line("append + fdatasync", plain, figure),
    ]
    goals = [at_least("≥ 0.7 × (append + fdatasync)", ours.faster_than(plain), 0.7, " ×"), memory_goal(ours)]
    return Report(update.__doc__ or "", lines, goals, "1 KiB each")


def collect(bench: Bench) -> Report:
    """Collect over many chunks of 4 KiB of which half are garbage"""
    chunks = bench.chunks
    store = bench.path("half")
    job("fill_half", store=store, chunks=chunks)
    marked = bench.race({"mark": partial(job, "mark", store=store)}, runs=1)["mark"]
    ours = bench.race({"gc": partial(job, "collect", store=store)}, runs=1)["gc"]
    remove(store)
    compact_seconds = ours.counts["compact_seconds"]
    lines = [
        line("Holdfast, mark (dry run)", marked, ms, proof=f"{marked.counts['dropped_payloads']:,} would go"),
        line(
            "Holdfast, gc with compaction",
            ours,
            ms,
            proof=f"{ours.counts['dropped_payloads']:,} gone, {mib(ours.counts['freed_bytes'])};"
            f" compaction {compact_seconds:.1f} s of it",
        ),
    ]
    for name, runs in _peers(bench, chunks).items():
        lines.append(line(name, bench.race({name: runs}, runs=1)[name], ms))
    goals = [at_most("mark ≤ 10 s", marked.seconds, 10, " s"), memory_goal(marked, ours)]
    note = "Peers: the same blobs as files, backed up, half of them removed, backed up again, the first backup dropped."
    return Report(
        collect.__doc__ or "", lines, goals, f"{chunks:,} chunks in {chunks // BLOB_CHUNKS:,} blobs", note
    )


def _peers(bench: Bench, chunks: int) -> dict[str, Run]:
    """Prepare what the peers are to collect; gives how each does it."""
    restic, borg = shutil.which("restic"), shutil.which("borg")
    if not restic and not borg:
        return {}
    files, repositories = bench.path("files"), bench.path("repositories")
    files.mkdir()
    repositories.mkdir()
    env = {
        **os.environ,
        "RESTIC_PASSWORD": "x",
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "BORG_BASE_DIR": str(repositories),
    }
    run = partial(command, env=env, cwd=files)
    place = str(repositories / "restic"), str(repositories / "borg")
    for number in range(chunks // BLOB_CHUNKS):
        (files / f"{number}").write_bytes(blob(number))
    if restic:
        run([restic, "-r", place[0], "init"])
        run([restic, "-r", place[0], "backup", "."])
    if borg:
        run([borg, "init", "-e", "none", place[1]])
        run([borg, "create", f"{place[1]}::one", "."])
    for number in range(0, chunks // BLOB_CHUNKS, 2):
        (files / f"{number}").unlink()
    found: dict[str, Run] = {}
    if restic:
        run([restic, "-r", place[0], "backup", "."])
        found["restic forget --prune"] = partial(
            run, [restic, "-r", place[0], "forget", "--keep-last", "1", "--prune"]
        )
    if borg:
        run([borg, "create", f"{place[1]}::two", "."])

        def prune() -> Sample:
            dropped = run([borg, "delete", f"{place[1]}::one"])
            compacted = run([borg, "compact", place[1]])
            return dropped._replace(
                seconds=dropped.seconds + compacted.seconds,
                cpu_seconds=dropped.cpu_seconds + compacted.cpu_seconds,
            )

        found["borg delete, compact"] = prune
    return found


def idle(bench: Bench) -> Report:
    """Maintenance in the background with nothing to do"""
    ours = bench.race(
        {"ours": fresh(bench, "maintain_idle", "store", seconds=IDLE_SECONDS, interval_seconds=1.0)}, runs=1
    )["ours"]
    share = 100 * ours.cpu_seconds / ours.seconds
    lines = [line("Holdfast", ours, ms, proof=f"{ours.counts['rounds']} rounds, one a second")]
    goals = [at_most("CPU of one core, at a round a second ≤ 0.5 %", share, 0.5, " %")]
    return Report(
        idle.__doc__ or "", lines, goals, "10,000 artifacts", "By default a round is an hour apart."
    )
