"""Jobs about artifacts that people organise, and about collection; `benches.jobs` runs them."""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from benches.jobs import Clock

BATCH: Final = 10_000
CHUNK_BYTES: Final = 4096
BLOB_CHUNKS: Final = 100


def blob(number: int) -> bytes:
    """Give the bytes of one of the blobs that are collected."""
    return random.Random(number).randbytes(CHUNK_BYTES * BLOB_CHUNKS)


def put_tagged(clock: Clock, store: str, count: int) -> dict[str, Any]:
    """Put artifacts with two tags each, 10,000 an acknowledgement."""
    import holdfast

    with holdfast.open(store, create=True) as opened:
        seconds = []
        with clock:
            for start in range(0, count, BATCH):
                began = time.perf_counter()
                items = [
                    holdfast.PutItem(
                        b"%d" % n, filename=f"{n}.txt", tags=[f"group-{n % 1000}", f"kind-{n % 7}"]
                    )
                    for n in range(start, start + BATCH)
                ]
                opened.put_many(items)
                seconds.append(time.perf_counter() - began)
        tenth = max(1, len(seconds) // 10)
        assert opened.count() == count
        return {
            "artifacts": opened.count(),
            "first_tenth": statistics.fmean(seconds[:tenth]),
            "last_tenth": statistics.fmean(seconds[-tenth:]),
        }


def find_tagged(clock: Clock, store: str) -> dict[str, Any]:
    """Walk all artifacts; beside it, the first 100 of a tag, for 50 tags one after the other."""
    import holdfast

    with holdfast.open(store) as opened:
        looks = []
        for n in range(50):
            began = time.perf_counter()
            found = list(opened.find(tag=f"group-{n}", limit=100))
            looks.append(time.perf_counter() - began)
            assert len(found) == min(100, opened.count(tag=f"group-{n}"))
            assert all(f"group-{n}" in one.tags for one in found)
        with clock:
            walked = sum(1 for _ in opened.find())
        return {"walked": walked, "first_100": statistics.median(looks), "slowest": max(looks)}


def update_each(clock: Clock, store: str, count: int) -> dict[str, Any]:
    """Change the metadata of one artifact after another, each durable before the next."""
    import holdfast

    with holdfast.open(store, create=True) as opened:
        ids = [one.id for one in opened.put_many([b"%d" % n for n in range(count)])]
        with clock:
            for n, id in enumerate(ids):
                opened.update(id, metadata={"words": "w" * 900, "number": n})
        assert all(opened.info(id).revision == 2 for id in ids)
        return {"updates": count}


def fill_half(clock: Clock, store: str, chunks: int) -> dict[str, Any]:
    """Make a store of many chunks, of which half are of deleted artifacts."""
    import holdfast

    count = chunks // BLOB_CHUNKS
    with (
        clock,
        holdfast.create(store, chunking="fixed", chunk_size_bytes=CHUNK_BYTES, compression="none") as opened,
    ):
        ids = []
        for start in range(0, count, 50):
            ids += [
                one.id for one in opened.put_many([blob(n) for n in range(start, min(start + 50, count))])
            ]
        for start in range(0, count, 2_000):
            opened.delete(*ids[start : start + 2_000 : 2])
    return {"chunks": count * BLOB_CHUNKS}


def mark(clock: Clock, store: str) -> dict[str, Any]:
    """Mark, and say what would go."""
    import holdfast

    with holdfast.open(store) as opened:
        with clock:
            report = opened.gc(dry_run=True, min_age_seconds=0)
        return {"dropped_payloads": report.dropped_payloads}


def collect(clock: Clock, store: str) -> dict[str, Any]:
    """Collect and compact."""
    import holdfast

    with holdfast.open(store) as opened:
        with clock:
            report = opened.gc(min_age_seconds=0)
        assert report.complete
        compacted = report.compacted.seconds if report.compacted else 0.0
        return {
            "dropped_payloads": report.dropped_payloads,
            "freed_bytes": report.freed_bytes,
            "compact_seconds": compacted,
        }


def maintain_idle(clock: Clock, store: str, seconds: float, interval_seconds: float) -> dict[str, Any]:
    """Let maintenance run with nothing to do."""
    import holdfast
    from holdfast.config import Config, Gc

    config = Config(gc=Gc(interval_seconds=interval_seconds))
    with holdfast.open(store, create=True, config=config) as opened:
        opened.put_many([b"%d" % n for n in range(10_000)])
        opened.scrub()
        opened.start_maintenance()
        time.sleep(3 * interval_seconds)  # the first round looks at everything
        with clock:
            time.sleep(seconds)
        return {"rounds": round(seconds / interval_seconds)}
