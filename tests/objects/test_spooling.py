"""What waits on this machine on its way into a bucket is bounded: a larger stream goes up in pieces first."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from holdfast import _native
from holdfast.backend.objects.backend import SINGLE_PUT_BYTES, ObjectBackend
from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.layout import UPLOADS, data_key, gone_key, outboard_key
from holdfast.backend.objects.opening import memory_bucket
from holdfast.backend.objects.piece_writer import PieceWriter
from holdfast.backend.objects.spool import Spool, Stock
from holdfast.backend.objects.waiting import Waiting
from holdfast.core import Options
from holdfast.errors import BlobNotFound, HoldfastError, Unavailable
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.faults import SimulatedCrash
from holdfast.testing.faulty_bucket import BucketFault, FaultyBucket
from holdfast.types import Hash
from tests.objects.test_parts import lasting

LIMIT = 3 << 20
MANY = 11 << 20
"""More than one piece of an upload."""
CONTENT = sample(MANY + 4_321, 5)


def open_store(bucket: Bucket, **options: Any) -> Store:
    return Store._open_objects(
        bucket, None, create=True, options=Options(**{"max_spool_bytes": LIMIT, **options})
    )


def windows(content: bytes, size: int = 700_000) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def left(bucket: Bucket) -> list[str]:
    return [meta.key for meta in bucket.list(UPLOADS) if "zzz" not in meta.key]


@pytest.fixture
def highest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the largest size that any spool had."""
    sizes = [0]
    append = Spool.append

    def watched(self: Spool, data: Any) -> int:
        at = append(self, data)
        sizes[0] = max(sizes[0], self.size_bytes)
        return at

    monkeypatch.setattr(Spool, "append", watched)
    return sizes


@pytest.mark.parametrize("checksum", ["none", "sha256"])
@pytest.mark.parametrize("how", ["put", "many", "writer", "blob"])
def test_a_stream_above_the_limit_goes_up_in_pieces(how: str, checksum: str, highest: list[int]) -> None:
    bucket = lasting(memory_bucket())
    with open_store(bucket, checksum=checksum) as store:
        if how == "put":
            artifact = store.put(windows(CONTENT), tags=["x"])
        elif how == "many":
            artifact = store.put_many([b"first", windows(CONTENT), b"last"], tags=["x"])[1]
        elif how == "writer":
            with store.writer(tags=["x"]) as writer:
                for window in windows(CONTENT):
                    writer.write(window)
            artifact = writer.artifact
        else:
            with store.blobs.put(windows(CONTENT)) as lease:
                artifact = store.put(windows(CONTENT), tags=["x"])
                assert lease.hash == artifact.hash
        assert artifact.hash == Hash(_native.blake3(CONTENT))
        if checksum == "sha256":
            import hashlib

            assert artifact.checksum == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
        assert store.read(artifact.id) == CONTENT
        assert highest[0] <= LIMIT
        assert not left(bucket)
        assert not list(store.uploads())
        assert store.scrub().ok
    with open_store(bucket) as another:
        assert another.read(artifact.id, 9 << 20, 100_000) == CONTENT[9 << 20 :][:100_000]


def test_one_below_the_limit_makes_no_pieces(highest: list[int]) -> None:
    with open_store(memory_bucket()) as store:
        before = store.requests["put"]
        store.put(windows(CONTENT[: LIMIT - 1]))
        assert 0 < highest[0] < LIMIT + 100_000
        assert store.requests["put"] - before == 3


def test_many_blobs_of_one_call_stay_below_it(highest: list[int]) -> None:
    items = [sample(300_000, number) for number in range(40)]
    bucket = lasting(memory_bucket())
    with open_store(bucket) as store:
        artifacts = store.put_many([*items, *(windows(one) for one in items)])
        assert [store.read(one.id) for one in artifacts] == items * 2
        assert highest[0] <= LIMIT + (9 << 20)  # what is taken at once
        assert store.stats().blobs == 40


def test_what_was_let_go_and_then_collected_is_an_error(highest: list[int]) -> None:
    items = [sample(300_000, number) for number in range(40)]
    bucket = lasting(memory_bucket())

    def more() -> Iterator[bytes]:
        yield from items
        first = _native.blake3(items[0])
        bucket.create(gone_key(first, 0), b"")
        bucket.delete([data_key(first), outboard_key(first)])
        yield b"last"

    with open_store(bucket) as store:
        with pytest.raises(BlobNotFound, match="collected"):
            store.put_many(more())
        assert store.count() == 0
        assert [store.read(one.id) for one in store.put_many(items)] == items


def test_what_the_catalog_knows_and_was_let_go_and_is_gone_goes_up_the_next_time() -> None:
    items = [sample(300_000, number) for number in range(40)]
    bucket = lasting(memory_bucket())
    with open_store(bucket) as store:
        store.blobs.put(items[0]).release()
        first = _native.blake3(items[0])
        bucket.create(gone_key(first, 0), b"")
        bucket.delete([data_key(first), outboard_key(first)])
        with pytest.raises(BlobNotFound, match="collected"):
            store.put_many(items)
        assert [store.read(one.id) for one in store.put_many(items)] == items
        assert store.stats().blobs == 40
        assert store.health().ok


def test_equal_streams_of_one_call_are_put_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    put, hashes = ObjectBackend.put, list[bytes]()

    def watched(self: ObjectBackend, blob: Waiting, spool: Stock) -> int:
        hashes.append(blob.hash)
        return put(self, blob, spool)

    monkeypatch.setattr(ObjectBackend, "put", watched)
    bucket = lasting(memory_bucket())
    with open_store(bucket) as store:
        store.put_many([windows(CONTENT), windows(CONTENT)])
        assert hashes == [_native.blake3(CONTENT)]
        assert not left(bucket)


def test_what_cannot_be_finished_leaves_no_pieces() -> None:
    inner = lasting(memory_bucket())
    open_store(inner).close()
    last = FaultyBucket(
        inner,
        BucketFault.BEFORE,
        1,
        where=lambda site: site.call == "create" and site.key.endswith("/00000002"),
    )
    with open_store(last) as store:
        with pytest.raises(Unavailable):
            store.put(windows(CONTENT))
        assert last.hit is not None
        assert not left(inner)


def test_the_chaining_values_of_what_went_up_are_not_kept() -> None:
    with ThreadPoolExecutor(1) as pool:
        writer = PieceWriter.begin(memory_bucket(), pool, bytes(16), b"", 1_000)
        for window in windows(CONTENT):
            writer.take(window)
        stock = writer.finish()
        assert stock.blob.hash == _native.blake3(CONTENT)
        assert not any(piece.head.groups for piece in writer.chain.pieces)
        writer.discard()


def test_a_tree_of_large_files_goes_through_no_spool(tmp_path: Path, highest: list[int]) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(3):
        (tree / f"{number}.bin").write_bytes(sample(SINGLE_PUT_BYTES + 1000 + number, number))
    (tree / "small").write_bytes(b"small")
    with open_store(memory_bucket(), max_spool_bytes=64 << 20) as store:
        artifact = store.put_tree(tree)
        assert highest[0] < 1 << 20  # outboards
        store.export(artifact, tmp_path / "out")
    for file in tree.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("fault", [BucketFault.BEFORE, BucketFault.AFTER, BucketFault.CRASH_AFTER])
def test_whatever_fails_leaves_nothing_wrong(fault: BucketFault) -> None:
    """Break each request of such a put; a second try succeeds, and what is left of pieces expires."""
    content = CONTENT[: 9 << 20]
    for number in count(1):
        inner = lasting(memory_bucket())
        open_store(inner).close()
        faulty = FaultyBucket(inner)
        store = open_store(faulty)
        faulty.arm(fault, number)
        stored = False
        with suppress(SimulatedCrash, HoldfastError):
            stored = store.put(windows(content)).size_bytes == len(content)
        faulty.crashed = True
        store.close()
        with open_store(inner, upload_expiry_seconds=0.0) as other:
            assert other.count() >= stored
            artifact = other.put(windows(content))
            other.gc(min_age_seconds=0)
            assert other.read(artifact.id) == content
            assert other.scrub().ok
        if faulty.hit is None:
            break
    assert number > 10


def test_pieces_on_their_way_are_claimed_and_do_not_expire() -> None:
    bucket = lasting(memory_bucket())

    def source(other: Store) -> Iterator[bytes]:
        for number, window in enumerate(windows(CONTENT)):
            if number == 14:  # beyond the first piece
                assert [one.offset_bytes > 0 for one in other.uploads()] in ([], [True])
                assert left(bucket)
                other.gc(min_age_seconds=0)
                assert left(bucket)
            yield window

    with open_store(bucket, upload_expiry_seconds=0.0) as store, open_store(bucket) as other:
        assert store.read(store.put(source(other))) == CONTENT
        assert not left(bucket)
