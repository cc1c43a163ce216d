"""Measure the catalog alone: `python benches/catalog.py [rows]`. Synthetic rows, a temporary directory, no fsync."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from holdfast.catalog import Catalog
from holdfast.facts import FLAG_BLOB, KIND_DATA, ArtifactRow, DataRow, Facts

STORE = b"s" * 16
START_MS = 1_763_683_200_000
random = Random(1)


def data_rows(count: int, segment: int, *, every: int = 4) -> list[DataRow]:
    """Make payload rows as a store has them; one in `every` is a blob of its own, half are compressed."""
    rows: list[DataRow] = []
    for n in range(count):
        stored, blob = random.randrange(20_000, 200_000), n % every == 0
        location = (segment + n // 600) << 32 | random.randrange(1 << 26)
        plain, ms = (stored * 2, START_MS + n) if blob else (None, None)
        rows.append((random.randbytes(32), location, stored, plain, KIND_DATA | blob * FLAG_BLOB, ms))
    return rows


def artifact_rows(data: list[DataRow], start_ms: int) -> list[ArtifactRow]:
    """Make an artifact for each payload."""
    rows = []
    for n, row in enumerate(data):
        id = (start_ms + n).to_bytes(6) + b"\x70" + random.randbytes(9)
        doc = b'{"filename":"some/file-%d.txt"}' % n
        rows.append(ArtifactRow(id, 1, row[0], row[2], 0, start_ms + n, start_ms + n, 1, doc))
    return rows


def measure(name: str, count: int, work: Callable[[], object]) -> None:
    """Print what one of `count` took."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"{name:34} {seconds:8.3f} s {seconds / count * 1e6:10.2f} us each, of it CPU {cpu / count * 1e6:10.2f}"
    )


def parts_of(items: list[bytes], size: int) -> list[list[bytes]]:
    """Cut a list into parts."""
    return [items[n : n + size] for n in range(0, len(items), size)]


def everyday(path: Path, count: int) -> None:
    """Measure applies and look-ups."""
    catalog = Catalog.open(path, STORE)
    data, more = data_rows(count, 1), data_rows(count, 10_000)
    measure("apply data", count, lambda: catalog.apply(Facts(data=data, segments={1: (5, 0)})))
    measure("apply the same again", count, lambda: catalog.apply(Facts(data=data)))
    measure("apply as many others", count, lambda: catalog.apply(Facts(data=more)))
    catalog.checkpoint()
    size = path.stat().st_size
    artifacts = artifact_rows(data, START_MS)
    measure("apply artifacts", count, lambda: catalog.apply(Facts(artifacts=artifacts)))
    catalog.checkpoint()
    print(f"bytes a row: data {size / 2 / count:.1f}, artifacts {(path.stat().st_size - size) / count:.1f}")
    hashes, ids = [row[0] for row in data], [row.id for row in artifacts]
    random.shuffle(hashes)
    random.shuffle(ids)
    measure("find_data by 2000", count, lambda: [catalog.find_data(part) for part in parts_of(hashes, 2000)])
    measure("find_data by 32", count, lambda: [catalog.find_data(part) for part in parts_of(hashes, 32)])
    measure("find_artifact_blob, at random", count, lambda: [catalog.find_artifact_blob(id) for id in ids])
    hot = ids[:1000] * (count // 1000)
    measure(
        "find_artifact_blob, 1,000 of them", len(hot), lambda: [catalog.find_artifact_blob(id) for id in hot]
    )
    measure("is_current", count, lambda: [catalog.is_current() for _ in range(count)])
    single(catalog)
    measure("counts", 1, catalog.counts)
    measure("dump", 1, lambda: sum(1 for _ in catalog.dump()))
    measure("check", 1, catalog.check)
    catalog.close()


def single(catalog: Catalog) -> None:
    """Measure one artifact with its payload a commit."""
    data = data_rows(20_000, 50_000, every=1)
    times = []
    for n, (row, artifact) in enumerate(zip(data, artifact_rows(data, START_MS + 10**8), strict=True)):
        facts = Facts(data=[row], artifacts=[artifact], segments={50_000: (n, 0)})
        start = time.perf_counter()
        catalog.apply(facts)
        times.append((time.perf_counter() - start) * 1e6)
    times.sort()
    middle, most, last = times[10_000], times[19_800], times[-1]
    mean = sum(times) / len(times)
    print(
        f"one artifact a commit: median {middle:.1f}, mean {mean:.1f}, 99 % {most:.1f}, worst {last:.0f} us"
    )


def rebuild(path: Path, count: int) -> None:
    """Measure a catalog made aside from `count` payloads in the order of a log."""
    aside, seconds = Catalog.create_aside(path, STORE), 0.0
    for segment in range(count // 1000):
        facts = Facts(data=data_rows(1000, segment), segments={segment: (1 << 26, 1)})
        start = time.perf_counter()
        aside.apply(facts)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    aside.publish(path)
    seconds += time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"rebuild of {count:,} rows: {seconds:.2f} s, peak {peak} MiB, {path.stat().st_size / count:.1f} bytes a row"
    )


def main() -> None:
    """Measure the rebuild in a process of its own, for its peak of memory."""
    with tempfile.TemporaryDirectory() as name:
        pid = os.fork()
        if not pid:
            rebuild(Path(name) / "rebuilt.db", 1_000_000)
            os._exit(0)
        os.waitpid(pid, 0)
        everyday(Path(name) / "catalog.db", int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)


if __name__ == "__main__":
    main()
