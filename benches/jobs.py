"""What is measured, one function a job, each run in a process of its own:

    python -m benches.jobs NAME '{"argument": value}'

prints one line of JSON: the seconds within the clock, CPU seconds, peak memory, and counts that prove that the
work was done. Opening the store, checking the answer and counting stand outside the clock unless they are
the job. The physical limits and the libraries that are compared are below, under the same rules.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, Final

from benches.encode_jobs import decode_ranges, encode, encode_ranges, kernel
from benches.object_jobs import (
    boto3_get,
    boto3_put,
    bucket_clear,
    bucket_get,
    bucket_get_each,
    bucket_put,
    bucket_put_each,
    bucket_put_many,
    bucket_ranges,
    bucket_rebuild,
    obstore_get,
    obstore_get_each,
    obstore_list,
    obstore_put,
    obstore_put_each,
    obstore_ranges,
)
from benches.organise_jobs import (
    collect,
    fill_half,
    find_tagged,
    maintain_idle,
    mark,
    put_tagged,
    update_each,
)
from benches.peak import peak_bytes
from benches.stream_jobs import claim_half, decode, first_ask, look, make_stream

RANGE_BYTES: Final = 64 << 10
_BUFFER_BYTES: Final = 4 << 20
_VALUE_BYTES: Final = 1024


class Clock:
    """Times a `with` block, on the wall and on the CPUs."""

    seconds = 0.0
    cpu_seconds = 0.0
    peak_bytes = 0

    def __enter__(self) -> Clock:
        self._cpu = _cpu()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self.cpu_seconds = _cpu() - self._cpu
        self.peak_bytes = peak_bytes()


def _cpu() -> float:
    used = getrusage(RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _counts(store: Any) -> dict[str, Any]:
    return dict(store.stats().to_dict())


def _blake3(data: bytes = b"") -> Any:
    from blake3 import blake3

    return blake3(data)


# -- Holdfast


def put(clock: Clock, store: str, source: str, hash: str) -> dict[str, Any]:
    import holdfast

    with holdfast.open(store, create=True) as opened:
        with clock:
            artifact = opened.put(source)
        assert str(artifact.hash) == hash, "stored under another hash"
        return _counts(opened)


def put_stream(clock: Clock, store: str, size_bytes: int) -> dict[str, Any]:
    import holdfast
    from benches.corpora import noise

    with holdfast.open(store, create=True) as opened:
        with clock:
            artifact = opened.put(noise("stream", size_bytes))
        assert artifact.size_bytes == size_bytes
        return _counts(opened)


def read(clock: Clock, store: str, hash: str) -> dict[str, Any]:
    import holdfast

    with holdfast.open(store) as opened:
        wanted = holdfast.Hash.parse(hash)
        total = 0
        with clock:
            for piece in opened.iter_bytes(wanted):
                total += len(piece)
        check = _blake3()
        for piece in opened.iter_bytes(wanted):
            check.update(piece)
        assert check.hexdigest() == hash, "other bytes came back"
        return _counts(opened) | {"read_bytes": total}


def scrub(clock: Clock, store: str, drop_cache: bool) -> dict[str, Any]:
    import holdfast

    with holdfast.open(store) as opened:
        with clock:
            report = opened.scrub(drop_cache=drop_cache)
        assert report.ok, report
        return _counts(opened) | {"records": report.checked_records, "checked_bytes": report.checked_bytes}


def ranges(clock: Clock, store: str, hash: str, count: int) -> dict[str, Any]:
    import holdfast

    with holdfast.open(store) as opened, opened.open(holdfast.Hash.parse(hash)) as file:
        size = file.seek(0, os.SEEK_END)
        offsets = _offsets(size, count)
        total = 0
        with clock:
            for offset in offsets:
                file.seek(offset)
                total += len(file.read(RANGE_BYTES))
        assert total == count * RANGE_BYTES
        check = _blake3()
        for offset in offsets[:1_000]:
            file.seek(offset)
            check.update(file.read(RANGE_BYTES))
        return _counts(opened) | {"first_thousand": check.hexdigest()}


def put_blobs(clock: Clock, store: str, count: int, mixed: bool) -> dict[str, Any]:
    import holdfast
    from benches.corpora import pieces

    sizes = _sizes(count, mixed)
    with holdfast.open(store, create=True) as opened:
        before = opened.stats().blobs
        with clock:
            leases = opened.blobs.put_many(pieces("blobs", sizes))
        counts = _counts(opened)
        assert counts["blobs"] - before == len(sizes)
        _check_some(opened, "blobs", sizes, [lease.hash for lease in leases])
        return counts


def put_artifacts(clock: Clock, store: str, count: int, mixed: bool) -> dict[str, Any]:
    import holdfast
    from benches.corpora import pieces

    sizes = _sizes(count, mixed)
    with holdfast.open(store, create=True) as opened:
        with clock:
            artifacts = opened.put_many(pieces("blobs", sizes))
        counts = _counts(opened)
        assert counts["artifacts"] == len(sizes)
        _check_some(opened, "blobs", sizes, [artifact.id for artifact in artifacts])
        return counts


def put_files(clock: Clock, store: str, directory: str) -> dict[str, Any]:
    import holdfast

    paths = sorted(str(path) for path in Path(directory).rglob("*") if path.is_file())
    with holdfast.open(store, create=True) as opened:
        with clock:
            opened.put_many(paths)
        counts = _counts(opened)
        assert counts["artifacts"] == len(paths)
        return counts


def put_each(clock: Clock, store: str, count: int, threads: int) -> dict[str, Any]:
    """Put small artifacts one by one, each durable before the next of its thread."""
    import holdfast

    values = list(_values(count))
    with holdfast.open(store, create=True) as opened:
        opened.put(b"the first put makes a segment")

        def work(number: int) -> None:
            for value in values[number::threads]:
                assert opened.put(value).durability is holdfast.Durability.FSYNCED

        with ThreadPoolExecutor(threads) as pool, clock:
            list(pool.map(work, range(threads)))
        counts = _counts(opened)
        assert counts["artifacts"] == count + 1
        return counts


def read_artifacts(clock: Clock, store: str, count: int) -> dict[str, Any]:
    """Read small artifacts by their id, in an order that has nothing to do with where they are."""
    import holdfast

    with holdfast.open(store) as opened:
        ids = [artifact.id for artifact in opened.find()]
        sizes = {artifact.id: artifact.size_bytes for artifact in opened.find()}
        chosen = random.Random(7).choices(ids, k=count)
        total = 0
        with clock:
            for id in chosen:
                total += len(opened.read(id))
        assert total == sum(sizes[id] for id in chosen)
        return _counts(opened) | {"read_bytes": total}


def put_tree(clock: Clock, store: str, directory: str) -> dict[str, Any]:
    import holdfast

    with holdfast.open(store, create=True) as opened:
        with clock:
            artifact = opened.put_tree(directory)
        files = opened.blobs.info(artifact.hash).size_bytes // 32 - 1
        return _counts(opened) | {"hash": str(artifact.hash), "files": files}


def put_trees(clock: Clock, store: str, directories: list[str]) -> dict[str, Any]:
    import holdfast

    with holdfast.open(store, create=True) as opened:
        with clock:
            for directory in directories:
                opened.put_tree(directory)
        return _counts(opened)


def fill_chunks(clock: Clock, store: str, count: int) -> dict[str, Any]:
    """Make a store of about `count` chunks, of the shortest there are, so that it takes few bytes."""
    import holdfast
    from benches.corpora import noise

    with holdfast.create(store, chunking="fixed", chunk_size_bytes=4_096) as opened:
        part = 100_000
        with clock:
            for first in range(0, count, part):
                opened.put(noise(f"chunks {first}", 4_096 * min(part, count - first)))
        return _counts(opened)


def fill_segment(clock: Clock, store: str, value_bytes: int) -> dict[str, Any]:
    """Fill a segment with acknowledged groups, and be killed: no close, nothing after it."""
    import holdfast
    from benches.corpora import pieces

    opened = holdfast.open(store)
    total = 60 << 20
    a_group = (3 << 20) // (value_bytes + 64)
    values = pieces(f"segment {os.getpid()}", [value_bytes] * (total // (value_bytes + 64)))
    groups = 0
    with clock:
        while group := [value for _, value in zip(range(a_group), values, strict=False)]:
            opened.blobs.put_many(group)
            groups += 1
    print(json.dumps(_result(clock, {"groups": groups})), flush=True)
    os.kill(os.getpid(), 9)
    raise AssertionError("still alive")


def open_store(clock: Clock, store: str) -> dict[str, Any]:
    from holdfast import Hash, open  # whatever is imported late is imported here

    with clock:
        opened = open(store)
        opened.exists(Hash(bytes(32)))
    with opened:
        return _counts(opened)


def rebuild(clock: Clock, store: str) -> dict[str, Any]:
    import holdfast

    with holdfast.open(store) as opened:
        before = _counts(opened)
        with clock:
            opened.rebuild()
        counts = _counts(opened)
        same = ("artifacts", "blobs", "chunks", "tags", "unique_bytes", "stored_bytes")
        assert all(before[name] == counts[name] for name in same), (before, counts)
        return counts


# -- physical limits


def hash_file(clock: Clock, path: str, threads: int) -> dict[str, Any]:
    from blake3 import blake3

    if threads == 1:
        hasher = blake3()
        with open(path, "rb", buffering=0) as file, clock:
            buffer = bytearray(_BUFFER_BYTES)
            while got := file.readinto(buffer):
                hasher.update(memoryview(buffer)[:got])
    else:
        hasher = blake3(max_threads=threads)
        with clock:
            hasher.update_mmap(path)
    return {"hash": hasher.hexdigest()}


def hash_files(clock: Clock, directory: str, threads: int) -> dict[str, Any]:
    """Read and hash files from the cache, each by one thread."""
    paths = sorted(path for path in Path(directory).iterdir() if path.is_file())

    def work(path: Path) -> int:
        hasher, buffer, total = _blake3(), bytearray(_BUFFER_BYTES), 0
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                hasher.update(memoryview(buffer)[:got])
                total += got
        return total

    with ThreadPoolExecutor(threads) as pool, clock:
        return {"bytes": sum(pool.map(work, paths))}


def pread_hash(clock: Clock, path: str, count: int) -> dict[str, Any]:
    """Read ranges of a plain file at random, and hash each."""
    size = os.stat(path).st_size
    offsets = _offsets(size, count)
    fd = os.open(path, os.O_RDONLY)
    with clock:
        for offset in offsets:
            _blake3(os.pread(fd, RANGE_BYTES, offset)).digest()
    check = _blake3()
    for offset in offsets[:1_000]:
        check.update(os.pread(fd, RANGE_BYTES, offset))
    return {"first_thousand": check.hexdigest()}


def write_all(clock: Clock, path: str, count: int, mixed: bool) -> dict[str, Any]:
    """Write the same bytes into one file, and make it durable."""
    from benches.corpora import pieces

    sizes = _sizes(count, mixed)
    with open(path, "wb", buffering=1 << 20) as file, clock:
        file.writelines(pieces("blobs", sizes))
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": os.stat(path).st_size}


def append_each(clock: Clock, path: str, count: int) -> dict[str, Any]:
    """Append values to one file, each made durable before the next."""
    values = list(_values(count))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"the first")
    os.fsync(fd)
    with clock:
        for value in values:
            os.write(fd, value)
            os.fdatasync(fd)
    return {"bytes": os.stat(path).st_size}


# -- libraries that keep small values


def _sqlite(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS blobs(hash BLOB PRIMARY KEY, data BLOB) WITHOUT ROWID")
    return connection


def sqlite_all(clock: Clock, path: str, count: int, mixed: bool) -> dict[str, Any]:
    """One transaction of blobs under their hash."""
    from benches.corpora import pieces

    sizes = _sizes(count, mixed)
    connection = _sqlite(path)
    with clock:
        connection.execute("BEGIN")
        rows = ((_blake3(value).digest(), value) for value in pieces("blobs", sizes))
        connection.executemany("INSERT INTO blobs VALUES(?, ?)", rows)
        connection.execute("COMMIT")
    (rows,) = connection.execute("SELECT count(*) FROM blobs").fetchone()
    return {"rows": rows}


def sqlite_each(clock: Clock, path: str, count: int) -> dict[str, Any]:
    connection = _sqlite(path)
    values = list(_values(count))
    with clock:
        for value in values:
            connection.execute("INSERT INTO blobs VALUES(?, ?)", (_blake3(value).digest(), value))
    return {"rows": count}


def sqlite_read(clock: Clock, path: str, count: int) -> dict[str, Any]:
    connection = _sqlite(path)
    keys = [key for (key,) in connection.execute("SELECT hash FROM blobs")]
    total = 0
    with clock:
        for key in random.Random(7).choices(keys, k=count):
            (value,) = connection.execute("SELECT data FROM blobs WHERE hash = ?", (key,)).fetchone()
            total += len(value)
    return {"read_bytes": total}


def lmdb_all(clock: Clock, path: str, count: int, mixed: bool) -> dict[str, Any]:
    import lmdb

    from benches.corpora import pieces

    sizes = _sizes(count, mixed)
    with lmdb.open(path, map_size=4 << 30) as env:
        with clock, env.begin(write=True) as transaction:
            for value in pieces("blobs", sizes):
                transaction.put(_blake3(value).digest(), value)
        return {"rows": env.stat()["entries"]}


def lmdb_each(clock: Clock, path: str, count: int) -> dict[str, Any]:
    import lmdb

    values = list(_values(count))
    with lmdb.open(path, map_size=4 << 30) as env:
        with clock:
            for value in values:
                with env.begin(write=True) as transaction:
                    transaction.put(_blake3(value).digest(), value)
        return {"rows": env.stat()["entries"]}


def lmdb_read(clock: Clock, path: str, count: int) -> dict[str, Any]:
    import lmdb

    with lmdb.open(path, map_size=4 << 30, readonly=True) as env, env.begin() as transaction:
        keys = [bytes(key) for key in transaction.cursor().iternext(values=False)]
        total = 0
        with clock:
            for key in random.Random(7).choices(keys, k=count):
                with env.begin() as one:
                    total += len(one.get(key) or b"")
        return {"read_bytes": total}


def _sizes(count: int, mixed: bool) -> list[int]:
    from benches.corpora import small_sizes

    return small_sizes(count) if mixed else [_VALUE_BYTES] * count


def _values(count: int) -> Iterator[bytes]:
    from benches.corpora import pieces

    return pieces(f"values {os.getpid()}", [_VALUE_BYTES] * count)


def _offsets(size: int, count: int) -> list[int]:
    draw = random.Random(11)
    return [draw.randrange(size - RANGE_BYTES) for _ in range(count)]


def wear(clock: Clock, store: str, source: str, size_bytes: int, piece_bytes: int) -> dict[str, Any]:
    """Make a store of pieces of a file, of which every second one was deleted and dropped, and not compacted."""
    from unittest.mock import patch

    import holdfast

    with holdfast.open(store, create=True) as opened, open(source, "rb") as file:
        for start in range(0, size_bytes, 256 << 20):
            many = [file.read(piece_bytes) for _ in range(min(256 << 20, size_bytes - start) // piece_bytes)]
            artifacts = opened.put_many(many)
            opened.delete(*artifacts[::2])
        with patch("holdfast.gc.collector.compact_segments", lambda *_, **__: None):
            report = opened.gc(min_age_seconds=0)
        assert report.complete
        return {"dropped": report.dropped_blobs}


def compact(clock: Clock, store: str) -> dict[str, Any]:
    import holdfast

    with holdfast.open(store) as opened:
        with clock:
            report = opened.compact()
        assert not report.kept
        assert not report.problems
        return {"freed_bytes": report.freed_bytes, "copied_bytes": report.copied_bytes}


def put_beside_compaction(clock: Clock, store: str, puts: int, compacts: bool) -> dict[str, Any]:
    """Time small durable puts one by one, while another process compacts, if it is to; the clock says the p99."""
    import subprocess
    from statistics import median

    import holdfast

    code = (
        "import holdfast, sys\nwith holdfast.open(sys.argv[1]) as store:\n"
        " print(flush=True); print(len(store.compact().segments))"
    )
    with holdfast.open(store) as opened:
        times = []
        other = None
        if compacts:
            other = subprocess.Popen([sys.executable, "-c", code, store], stdout=subprocess.PIPE)
            assert other.stdout is not None
            other.stdout.readline()
        for i in range(puts):
            begun = time.perf_counter()
            opened.put(i.to_bytes(4) * 256)
            times.append(time.perf_counter() - begun)
            if other is not None and other.poll() is not None:
                break
        if other is not None:
            output, _ = other.communicate()
            assert int(output) > 0, "nothing was compacted"
    times.sort()
    clock.seconds = times[len(times) * 99 // 100]
    clock.peak_bytes = peak_bytes()
    return {"p99": clock.seconds, "median": median(times), "puts": len(times), "longest": times[-1]}


def _check_some(store: Any, seed: str, sizes: list[int], refs: list[Any]) -> None:
    """Read each hundredth back and compare."""
    from benches.corpora import pieces

    for i, wanted in enumerate(pieces(seed, sizes)):
        if i % 100 == 0:
            assert store.read(refs[i]) == wanted, f"other bytes came back for {refs[i]}"


def _result(clock: Clock, counts: dict[str, Any]) -> dict[str, Any]:
    return {
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "peak_bytes": clock.peak_bytes,
        "counts": counts,
    }


def main() -> None:
    name, arguments = sys.argv[1:]
    clock = Clock()
    counts = globals()[name](clock, **json.loads(arguments))
    print(json.dumps(_result(clock, counts)))


__all__ = [
    "boto3_get",
    "boto3_put",
    "bucket_clear",
    "bucket_get",
    "bucket_get_each",
    "bucket_put",
    "bucket_put_each",
    "bucket_put_many",
    "bucket_ranges",
    "bucket_rebuild",
    "claim_half",
    "collect",
    "decode",
    "decode_ranges",
    "encode",
    "encode_ranges",
    "fill_half",
    "find_tagged",
    "first_ask",
    "kernel",
    "look",
    "maintain_idle",
    "make_stream",
    "mark",
    "obstore_get",
    "obstore_get_each",
    "obstore_list",
    "obstore_put",
    "obstore_put_each",
    "obstore_ranges",
    "put_tagged",
    "update_each",
]

if __name__ == "__main__":
    main()
