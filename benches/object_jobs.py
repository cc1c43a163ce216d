"""Jobs about buckets, ours and those of the plain clients; `benches.jobs` runs them.

Where the bucket is, and who may use it, stands in the variables that all of them read (AWS_ENDPOINT_URL and its like).
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from benches.jobs import Clock
    from holdfast import Store

RANGE_BYTES: Final = 64 << 10


def _open(store: str, catalog: str) -> Store:
    import holdfast

    return holdfast.open(store, create=True, catalog=catalog)


def _requests(store: Store) -> dict[str, Any]:
    counts = dict(store.stats().to_dict())
    return {
        name: counts[name] for name in ("artifacts", "blobs", "unique_bytes", "requests") if name in counts
    }


def _values(count: int, size_bytes: int) -> list[bytes]:
    from benches.corpora import pieces

    return list(pieces("bucket", [size_bytes] * count))


def _many(clock: Clock, work: Callable[[int], object], count: int, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool, clock:
        for _ in pool.map(work, range(count)):
            pass


# -- Holdfast


def bucket_put(clock: Clock, store: str, catalog: str, source: str, hash: str) -> dict[str, Any]:
    with _open(store, catalog) as opened:
        with clock:
            artifact = opened.put(source)
        assert str(artifact.hash) == hash, "stored under another hash"
        return _requests(opened)


def bucket_get(clock: Clock, store: str, catalog: str, hash: str, size_bytes: int) -> dict[str, Any]:
    import holdfast

    with _open(store, catalog) as opened:
        with clock:
            total = sum(map(len, opened.iter_bytes(holdfast.Hash.parse(hash))))
        assert total == size_bytes
        return _requests(opened)


def bucket_put_many(clock: Clock, store: str, catalog: str, count: int, size_bytes: int) -> dict[str, Any]:
    values = _values(count, size_bytes)
    with _open(store, catalog) as opened:
        with clock:
            opened.put_many(values)
        assert opened.count() == count
        return _requests(opened)


def bucket_put_each(
    clock: Clock, store: str, catalog: str, count: int, size_bytes: int, threads: int
) -> dict[str, Any]:
    values = _values(count, size_bytes)
    with _open(store, catalog) as opened:
        _many(clock, lambda number: opened.put(values[number]), count, threads)
        assert opened.count() == count
        return _requests(opened)


def bucket_get_each(clock: Clock, store: str, catalog: str, size_bytes: int, threads: int) -> dict[str, Any]:
    with _open(store, catalog) as opened:
        ids = [artifact.id for artifact in opened.find()]
        random.Random(3).shuffle(ids)

        def get(number: int) -> None:
            assert len(opened.read(ids[number])) == size_bytes

        _many(clock, get, len(ids), threads)
        return _requests(opened)


def bucket_ranges(
    clock: Clock, store: str, catalog: str, hash: str, size_bytes: int, count: int, warm: int
) -> dict[str, Any]:
    """Read ranges that nobody has read, then some of them again and again."""
    import holdfast

    wanted = holdfast.Hash.parse(hash)
    with _open(store, catalog) as opened:
        each = []
        with clock:
            for offset in _offsets(size_bytes, count):
                start = time.perf_counter()
                assert len(opened.read(wanted, offset, RANGE_BYTES)) == RANGE_BYTES
                each.append(time.perf_counter() - start)
        again = _offsets(size_bytes, count)[-100:]
        for offset in again:
            opened.read(wanted, offset, RANGE_BYTES)
        start = time.perf_counter()
        for number in range(warm):
            opened.read(wanted, again[number % len(again)], RANGE_BYTES)
        return {"median": statistics.median(each), "warm": warm / (time.perf_counter() - start)}


def bucket_rebuild(clock: Clock, store: str, catalog: str) -> dict[str, Any]:
    with _open(store, catalog) as opened:
        before = opened.count()
        with clock:
            report = opened.rebuild()
        assert (report.artifacts, report.damaged) == (before, 0)
        return {"blobs": report.complete_blobs, "requests": dict(report.requests)}


# -- plain clients


def _plain(bucket: str) -> Any:
    from obstore.store import S3Store

    return S3Store(
        bucket,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )


def obstore_put(clock: Clock, bucket: str, key: str, source: str) -> dict[str, Any]:
    import obstore

    store = _plain(bucket)
    with clock:
        obstore.put(store, key, Path(source))
    return {}


def obstore_get(clock: Clock, bucket: str, key: str, size_bytes: int) -> dict[str, Any]:
    import obstore

    store = _plain(bucket)
    with clock:
        total = sum(len(piece) for piece in obstore.get(store, key).stream(min_chunk_size=1 << 20))
    assert total == size_bytes
    return {}


def obstore_put_each(
    clock: Clock, bucket: str, prefix: str, count: int, size_bytes: int, threads: int
) -> dict[str, Any]:
    import obstore

    values, store = _values(count, size_bytes), _plain(bucket)
    _many(clock, lambda number: obstore.put(store, f"{prefix}/{number:06}", values[number]), count, threads)
    return {}


def obstore_get_each(
    clock: Clock, bucket: str, prefix: str, count: int, size_bytes: int, threads: int
) -> dict[str, Any]:
    import obstore

    store = _plain(bucket)

    def get(number: int) -> None:
        assert len(obstore.get(store, f"{prefix}/{number:06}").bytes()) == size_bytes

    _many(clock, get, count, threads)
    return {}


def obstore_ranges(clock: Clock, bucket: str, key: str, size_bytes: int, count: int) -> dict[str, Any]:
    import obstore

    store, each = _plain(bucket), []
    with clock:
        for offset in _offsets(size_bytes, count):
            start = time.perf_counter()
            assert len(obstore.get_range(store, key, start=offset, length=RANGE_BYTES)) == RANGE_BYTES
            each.append(time.perf_counter() - start)
    return {"median": statistics.median(each)}


def obstore_list(clock: Clock, bucket: str, prefix: str, threads: int) -> dict[str, Any]:
    """List a store, and get its objects of names: what nobody who rebuilds can do without."""
    import obstore

    store = _plain(bucket)
    with ThreadPoolExecutor(threads) as pool, clock:
        keys = [meta["path"] for page in obstore.list(store, prefix) for meta in page]
        names = [key for key in keys if key.removeprefix(prefix).lstrip("/").startswith("commits/")]
        total = sum(pool.map(lambda key: len(obstore.get(store, key).bytes()), names))
    return {"objects": len(keys), "names": len(names), "bytes": total}


def boto3_put(clock: Clock, bucket: str, key: str, source: str) -> dict[str, Any]:
    import boto3

    client = boto3.client("s3")
    with clock:
        client.upload_file(source, bucket, key)
    return {}


def boto3_get(clock: Clock, bucket: str, key: str, size_bytes: int) -> dict[str, Any]:
    import boto3

    client = boto3.client("s3")
    with clock:
        body = client.get_object(Bucket=bucket, Key=key)["Body"]
        total = sum(map(len, iter(lambda: body.read(1 << 20), b"")))
    assert total == size_bytes
    return {}


def bucket_clear(clock: Clock, bucket: str, prefix: str) -> dict[str, Any]:
    """Remove what is under a prefix."""
    import obstore

    store = _plain(bucket)
    with clock:
        for page in obstore.list(store, prefix):
            obstore.delete(store, [meta["path"] for meta in page])
    return {}


def _offsets(size_bytes: int, count: int) -> list[int]:
    chance = random.Random(11)
    return [chance.randrange(0, size_bytes - RANGE_BYTES) // 1024 * 1024 for _ in range(count)]
