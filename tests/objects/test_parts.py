"""Partial blobs in buckets: what a part says, damage, several machines, crashes at every call, age."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import object_partials
from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.backend.objects.ends import ENDS
from holdfast.backend.objects.layout import (
    PARTS,
    data_key,
    gone_key,
    outboard_key,
    parse_part_key,
    part_key,
)
from holdfast.backend.objects.opening import memory_bucket
from holdfast.core import Options
from holdfast.errors import (
    BlobNotFound,
    CorruptBlob,
    FormatError,
    HoldfastError,
    RangeNotAvailable,
    Unavailable,
)
from holdfast.object_partials import expire_partials
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.contract_partial import check_kept
from holdfast.testing.faults import SimulatedCrash
from holdfast.testing.faulty_bucket import BucketFault, FaultyBucket
from holdfast.testing.inside import object_core
from holdfast.testing.streams import Sender, blocks
from holdfast.types import BLOCK_BYTES, BlobStatus, Hash, now_ms
from holdfast.wire.part import BlocksHead, encode_blocks, head_length, parse_blocks

MINUTE_MS = 60_000


def open_store(bucket: Bucket, **options: Any) -> Store:
    """Open a store with a catalog of its own, as another machine would."""
    return Store._open_objects(bucket, create=True, options=Options(**options))


class _Lasting:
    def __init__(self, inner: Bucket) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def close(self) -> None: ...


def lasting(inner: Bucket) -> Bucket:
    """Give a bucket that outlives the stores on it."""
    bucket: Any = _Lasting(inner)
    return bucket  # type: ignore[no-any-return]


@pytest.fixture
def bucket() -> Bucket:
    return lasting(memory_bucket())


@pytest.fixture
def small_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint comes after two blocks."""
    monkeypatch.setattr(object_partials, "CHECKPOINT_BYTES", 2 * BLOCK_BYTES)


def keys(bucket: Bucket, prefix: str = PARTS) -> list[str]:
    return [meta.key for meta in bucket.list(prefix) if meta.key not in ENDS.values()]


def damage(bucket: Bucket, key: str, at: int) -> None:
    found = bucket.get(key, max_bytes=1 << 30)
    assert found is not None
    data = bytearray(found[0])
    data[at] ^= 0x20
    bucket.upload(key, [bytes(data)], len(data))


SENDER = Sender(sample(9 * BLOCK_BYTES + 77, 4))
WHOLE = len(SENDER.content)


# -- what a part says


def test_a_head_that_is_not_as_it_was_written_is_none() -> None:
    head = BlocksHead(bytes(range(32)), WHOLE, True, WHOLE, 5, ((1, 2), (9, 1)), ((0, 3), (7, 1)))
    packed = encode_blocks(head, "parts/key")
    assert parse_blocks(packed + b"payload", "parts/key") == head
    assert head_length(packed, "parts/key") == len(packed)
    assert (head.data_bytes, head.pairs_bytes) == (2 * BLOCK_BYTES + 77, 4 * 64)
    with pytest.raises(FormatError):
        parse_blocks(packed, "parts/another")
    for at in range(len(packed)):
        for wrong in (packed[:at], packed[:at] + bytes([packed[at] ^ 4]) + packed[at + 1 :]):
            with pytest.raises(FormatError):
                parse_blocks(wrong, "parts/key")


@pytest.mark.parametrize(
    "wrong",
    [
        {"size_bytes": 1 << 63},
        {"blocks": ((2, 1), (1, 1))},
        {"blocks": ((1, 2), (2, 1))},
        {"blocks": ((9, 2),)},
        {"blocks": ((1, 0),)},
        {"pairs": ((9, 1),)},
        {"pairs": ((0, 2), (1, 1))},
    ],
)
def test_a_head_that_cannot_be_is_none(wrong: dict[str, Any]) -> None:
    head = BlocksHead(bytes(32), WHOLE, True, WHOLE, 5, ((1, 2),), ((0, 3),))._replace(**wrong)
    with pytest.raises(FormatError):
        parse_blocks(encode_blocks(head, "key"), "key")


def test_keys_that_are_not_ours_are_left_alone(bucket: Bucket) -> None:
    id_ = bytes(range(16))
    assert parse_part_key(part_key(SENDER.hash.digest, id_)) == SENDER.hash.digest
    strange = [
        f"{PARTS}x",
        f"{PARTS}{SENDER.hash}/x",
        f"{PARTS}{'AB' * 32}/{'0' * 8}-0000-0000-0000-{'0' * 12}",
    ]
    with open_store(bucket) as store:
        for key in strange:
            assert parse_part_key(key) is None
            bucket.create(key, b"somebody else's")
        assert store.rebuild().partial_blobs == 0
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(0, 2)), blocks(0, 2))
        assert store.rebuild().partial_blobs == 1
        expire_partials(object_core(store), now_ms() + 365 * 86_400_000)
        assert store.blobs.status(SENDER.hash) is BlobStatus.MISSING
        for key in strange:
            assert bucket.head(key) is not None


def test_a_part_needs_no_other(bucket: Bucket, small_checkpoints: None) -> None:
    """Each part carries the way from the root to its blocks: any of them may go."""
    with open_store(bucket) as store:
        with suppress(ZeroDivisionError):
            store.blobs.decode(SENDER.hash, _broken(SENDER.stream(), 9 * BLOCK_BYTES))
        made = keys(bucket)
        assert len(made) == 4
        for key in made:
            others = [one for one in made if one != key]
            kept = {one: bucket.get(one, max_bytes=1 << 20) for one in others}
            bucket.delete(others)
            with open_store(bucket) as other:
                here = check_kept(other, SENDER)
                assert here.count(WHOLE) >= 16
                assert b"".join(other.blobs.encode(SENDER.hash, here)) == SENDER.stream(here)
            for one, found in kept.items():
                assert found is not None
                bucket.create(one, found[0])
        assert check_kept(store, SENDER) == blocks(0, 8)


def _broken(stream: bytes, upto: int) -> Any:
    """Give the beginning of a stream, in pieces of a block, then fail."""
    for start in range(0, upto, BLOCK_BYTES):
        yield stream[start : start + BLOCK_BYTES]
    raise ZeroDivisionError


def test_what_one_has_put_oneself_is_not_read_to_be_listed(bucket: Bucket) -> None:
    with open_store(bucket) as store:
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(0, 2)), blocks(0, 2))
        before = bucket.requests.snapshot()
        assert store.blobs.bitfield(SENDER.hash).ranges == blocks(0, 2)
        asked = bucket.requests.since(before, bucket.requests.snapshot())
        assert (asked["list"], asked["get"], asked["head"]) == (2, 0, 2)  # that there is none is asked for
        before = bucket.requests.snapshot()
        assert store.blobs.status(Hash(bytes(32))) is BlobStatus.MISSING
        asked = bucket.requests.since(before, bucket.requests.snapshot())
        assert (asked["list"], asked["get"], asked["head"]) == (2, 0, 2)  # that there is none is asked for


def test_what_comes_whole_makes_no_parts(bucket: Bucket) -> None:
    with open_store(bucket) as store:
        store.blobs.decode(SENDER.hash, SENDER.stream())
        assert bucket.requests.snapshot()["put"] == 2 + _made_at_opening(bucket)
        assert keys(bucket) == []
        assert keys(bucket, "blobs/") == [data_key(SENDER.hash.digest), outboard_key(SENDER.hash.digest)]


def _made_at_opening(bucket: Bucket) -> int:
    fresh = memory_bucket()
    open_store(fresh).close()
    return fresh.requests.snapshot()["put"]


# -- several machines


def test_machines_fill_one_blob_together(bucket: Bucket) -> None:
    """Each with a catalog of its own, all at once; whoever sees the last part completes it."""
    sender = Sender(sample(40 * BLOCK_BYTES + 5, 9))
    stores = [open_store(bucket) for _ in range(4)]
    errors: list[BaseException] = []

    def fill(number: int) -> None:
        part = ChunkRanges.union(blocks(i, i + 1) for i in range(number, 41, 4))
        try:
            stores[number].blobs.decode(sender.hash, sender.stream(part), part)
            half = blocks(0, 20)
            stores[number].blobs.decode(sender.hash, sender.stream(half), half)
        except BaseException as error:  # raised below
            errors.append(error)

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for store in stores:
        assert store.blobs.status(sender.hash) is BlobStatus.COMPLETE
        assert store.blobs.read(sender.hash) == sender.content
        store.close()
    assert keys(bucket) == []


def test_another_machine_goes_on_without_a_catalog(bucket: Bucket, small_checkpoints: None) -> None:
    with open_store(bucket) as store:
        some = blocks(0, 3) | blocks(6, 7)
        store.blobs.decode(SENDER.hash, SENDER.stream(some), some)
    with open_store(bucket) as other:
        assert [info.status for info in other.blobs.list(partial=True)] == [BlobStatus.PARTIAL]
        assert check_kept(other, SENDER) == some
        rest = other.blobs.missing_ranges(SENDER.hash)
        assert other.blobs.decode(SENDER.hash, SENDER.stream(rest), rest).status is BlobStatus.COMPLETE
        assert other.blobs.read(SENDER.hash) == SENDER.content
        assert keys(bucket) == []
        assert other.verify(SENDER.hash).ok


def test_a_reader_goes_on_when_the_blob_is_completed(bucket: Bucket) -> None:
    with open_store(bucket) as store, open_store(bucket) as other:
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(0, 5)), blocks(0, 5))
        pieces = store.blobs.encode(SENDER.hash, blocks(0, 5))
        with store.blobs.open(SENDER.hash) as file:
            other.blobs.decode(SENDER.hash, SENDER.stream(blocks(5)), blocks(5))
            assert keys(bucket) == []
            assert file.read(100) == SENDER.content[:100]
        assert b"".join(pieces) == SENDER.stream(blocks(0, 5))


def test_what_others_left_behind_goes(bucket: Bucket) -> None:
    with open_store(bucket) as store, open_store(bucket) as late:
        late.blobs.decode(SENDER.hash, SENDER.stream(blocks(1, 2)), blocks(1, 2))
        (left,) = keys(bucket)
        kept = bucket.get(left, max_bytes=1 << 20)
        assert kept is not None
        store.blobs.decode(SENDER.hash, SENDER.stream())
        assert keys(bucket) == []
        bucket.create(left, kept[0])  # as a machine that was suspended
        assert store.blobs.status(SENDER.hash) is BlobStatus.COMPLETE
        assert store.rebuild().partial_blobs == 0
        assert list(store.blobs.list(partial=True)) == list(store.blobs.list())
        store.blobs.decode(SENDER.hash, SENDER.stream())
        assert keys(bucket) == []
        bucket.create(left, kept[0])
        assert expire_partials(object_core(store), now_ms()) == 1
        assert keys(bucket) == []
        assert store.blobs.read(SENDER.hash) == SENDER.content


def test_a_blob_that_is_collected_while_it_is_completed_comes_back_as_the_next(bucket: Bucket) -> None:
    """The collector marks the generation before the one who completes looks: it goes up again, from the parts."""
    faulty = FaultyBucket(bucket)
    data = data_key(SENDER.hash.digest)

    def on_site(site: Any) -> None:
        is_look = site.call == "head" and site.key == gone_key(SENDER.hash.digest, 0)
        if is_look and bucket.head(data) is not None:  # earlier ones ask whether there is anything
            faulty.on_site = None
            bucket.create(site.key, b"")
            bucket.delete([data, outboard_key(SENDER.hash.digest)])

    with open_store(faulty) as store:
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(0, 4)), blocks(0, 4))
        faulty.on_site = on_site
        info = store.blobs.decode(SENDER.hash, SENDER.stream(blocks(4)), blocks(4))
        assert info.status is BlobStatus.COMPLETE
        assert store.blobs.read(SENDER.hash) == SENDER.content
        assert keys(bucket, "blobs/") == [
            data_key(SENDER.hash.digest, 1),
            gone_key(SENDER.hash.digest, 0),
            outboard_key(SENDER.hash.digest, 1),
        ]


def test_a_blob_that_was_collected_is_taken_in_anew(bucket: Bucket) -> None:
    """The catalog of this machine still has it."""
    with open_store(bucket) as store:
        store.blobs.put(SENDER.content).release()
        bucket.create(gone_key(SENDER.hash.digest, 0), b"")
        bucket.delete([data_key(SENDER.hash.digest), outboard_key(SENDER.hash.digest)])
        assert store.blobs.decode(SENDER.hash, SENDER.stream()).status is BlobStatus.COMPLETE
        assert store.blobs.read(SENDER.hash) == SENDER.content
        assert bucket.head(data_key(SENDER.hash.digest, 1)) is not None


def test_what_a_stream_completed_is_held_until_it_is_named(bucket: Bucket) -> None:
    with open_store(bucket) as store:
        core = object_core(store)
        for _ in range(2):
            store.blobs.decode(SENDER.hash, SENDER.stream())
            assert SENDER.hash.digest in {digest for digest, _ in core.held()}
        store.tags.set("name", SENDER.hash)
        assert SENDER.hash.digest not in {digest for digest, _ in core.held()}


# -- damage


def test_a_damaged_part_is_never_believed(bucket: Bucket) -> None:
    """Whatever bit is wrong in a part: nothing wrong is read, and its blocks can be had again."""
    rng = random.Random(1)
    with open_store(bucket) as store:
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(2, 4)), blocks(2, 4))
    (key,) = keys(bucket)
    found = bucket.get(key, max_bytes=1 << 20)
    assert found is not None
    head = head_length(found[0], key)
    pairs = parse_blocks(found[0], key).pairs_bytes
    places = [*rng.sample(range(head), 10), head, head + pairs - 1, head + pairs, len(found[0]) - 1]
    for at in places:
        damage(bucket, key, at)
        with open_store(bucket) as store:
            for start in (2, 3):
                with suppress(CorruptBlob, RangeNotAvailable, BlobNotFound):
                    got = store.blobs.read(SENDER.hash, start * BLOCK_BYTES, BLOCK_BYTES)
                    assert got == SENDER.content[start * BLOCK_BYTES : (start + 1) * BLOCK_BYTES]
            with suppress(CorruptBlob, RangeNotAvailable, BlobNotFound):
                assert b"".join(store.blobs.encode(SENDER.hash, blocks(2, 4))) == SENDER.stream(blocks(2, 4))
            rest = store.blobs.missing_ranges(SENDER.hash)
            store.blobs.decode(SENDER.hash, SENDER.stream(rest), rest)
            rest = store.blobs.missing_ranges(SENDER.hash)  # what proved wrong only when it was put together
            store.blobs.decode(SENDER.hash, SENDER.stream(rest), rest)
            assert store.blobs.read(SENDER.hash) == SENDER.content
            assert keys(bucket) == []
        bucket.delete(keys(bucket, "blobs/"))
        bucket.upload(key, [found[0]], len(found[0]))


def test_a_part_that_lies_about_the_size_is_found_out(bucket: Bucket) -> None:
    content = SENDER.content
    short = 8 * BLOCK_BYTES
    with open_store(bucket) as store:
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(0, 8)), blocks(0, 8))
        head = BlocksHead(SENDER.hash.digest, short, True, short, 1, (), ())
        object_core(store).backend.parts.put(head, b"", ())
        assert store.blobs.bitfield(SENDER.hash).is_size_verified
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(0, 1)), blocks(0, 1))
        assert store.blobs.status(SENDER.hash) is BlobStatus.PARTIAL
        assert not store.blobs.bitfield(SENDER.hash).is_size_verified
        rest = store.blobs.missing_ranges(SENDER.hash)
        assert store.blobs.decode(SENDER.hash, SENDER.stream(rest), rest).size_bytes == len(content)
        assert store.blobs.read(SENDER.hash) == content


def test_a_part_of_another_blob_counts_for_nothing(bucket: Bucket) -> None:
    other = Sender(sample(WHOLE, 8))
    with open_store(bucket) as store:
        store.blobs.decode(other.hash, other.stream(blocks(0, 2)), blocks(0, 2))
        (key,) = keys(bucket)
        found = bucket.get(key, max_bytes=1 << 20)
        assert found is not None
        taken = key.replace(str(other.hash), str(SENDER.hash))
        bucket.create(taken, found[0])
        assert store.blobs.status(SENDER.hash) is BlobStatus.MISSING
        head = parse_blocks(found[0], key)
        packed = encode_blocks(head, taken)
        bucket.upload(taken, [packed, found[0][len(packed) :]], len(found[0]))
        with open_store(bucket) as fresh:
            assert fresh.blobs.status(SENDER.hash) is BlobStatus.MISSING


def test_a_body_that_is_wrong_once_is_asked_for_again(bucket: Bucket) -> None:
    with open_store(bucket) as store:
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(1, 5)), blocks(1, 5))
    for fault in (BucketFault.FLIPPED, BucketFault.TRUNCATED):
        for at in (1, 2):
            faulty = FaultyBucket(bucket, fault, at, where=lambda site: site.call == "get_range")
            with open_store(faulty) as store:
                assert (
                    store.blobs.read(SENDER.hash, BLOCK_BYTES, BLOCK_BYTES)
                    == SENDER.content[BLOCK_BYTES : 2 * BLOCK_BYTES]
                )
                assert faulty.hit is not None
                assert store.blobs.bitfield(SENDER.hash).ranges == blocks(1, 5)


def test_many_small_parts_become_one(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_partials, "MERGED_AT", 4)
    with open_store(bucket) as store, open_store(bucket) as other:
        reader = other.blobs
        for block in (7, 1, 5, 3):
            store.blobs.decode(SENDER.hash, SENDER.stream(blocks(block, block + 1)), blocks(block, block + 1))
            assert (
                reader.read(SENDER.hash, block * BLOCK_BYTES, 5) == SENDER.content[block * BLOCK_BYTES :][:5]
            )
        (key,) = keys(bucket)
        found = bucket.get(key, max_bytes=1 << 20)
        assert found is not None
        assert parse_blocks(found[0], key).blocks == ((1, 1), (3, 1), (5, 1), (7, 1))
        for block in (7, 1, 5, 3):
            assert (
                reader.read(SENDER.hash, block * BLOCK_BYTES, 5) == SENDER.content[block * BLOCK_BYTES :][:5]
            )
        check_kept(store, SENDER)
        rest = store.blobs.missing_ranges(SENDER.hash)
        store.blobs.decode(SENDER.hash, SENDER.stream(rest), rest)
        assert other.blobs.read(SENDER.hash) == SENDER.content


def test_a_damaged_small_part_is_not_put_with_others(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_partials, "MERGED_AT", 3)
    with open_store(bucket) as store:
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(1, 2)), blocks(1, 2))
        (bad,) = keys(bucket)
        meta = bucket.head(bad)
        assert meta is not None
        damage(bucket, bad, meta.size_bytes - 1)
        for block in (3, 5, 7):
            store.blobs.decode(SENDER.hash, SENDER.stream(blocks(block, block + 1)), blocks(block, block + 1))
        assert len(keys(bucket)) == 2
        assert bad in keys(bucket)
        assert check_kept(store, SENDER) == blocks(3, 4) | blocks(5, 6) | blocks(7, 8)


# -- age


def test_what_nobody_goes_on_with_expires_by_the_buckets_own_times(bucket: Bucket) -> None:
    with open_store(bucket, partial_age_seconds=60.0) as store:
        core = object_core(store)
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(0, 2)), blocks(0, 2))
        assert expire_partials(core, now_ms() + MINUTE_MS // 2) == 0
        assert expire_partials(core, now_ms() + 2 * MINUTE_MS) == 1
        assert keys(bucket) == []
        assert store.blobs.status(SENDER.hash) is BlobStatus.MISSING


def test_what_is_being_filled_does_not_expire(bucket: Bucket) -> None:
    with open_store(bucket, partial_age_seconds=60.0) as store:
        core = object_core(store)
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(0, 2)), blocks(0, 2))

        def source() -> Any:
            assert expire_partials(core, now_ms() + 2 * MINUTE_MS) == 0
            yield SENDER.stream(blocks(2))

        assert store.blobs.decode(SENDER.hash, source(), blocks(2)).status is BlobStatus.COMPLETE


def test_a_stream_keeps_what_is_old_from_expiring_elsewhere(bucket: Bucket) -> None:
    with open_store(bucket, partial_age_seconds=0.02) as store:
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(0, 2)), blocks(0, 2))
        (first,) = keys(bucket)
        threading.Event().wait(0.05)

        def source() -> Any:
            assert len(keys(bucket)) == 2
            yield SENDER.stream(blocks(2, 3))

        store.blobs.decode(SENDER.hash, source(), blocks(2, 3))
        assert check_kept(store, SENDER) == blocks(0, 3)
        assert first in keys(bucket)


def test_what_expired_under_a_stream_is_told_truly(bucket: Bucket) -> None:
    with open_store(bucket) as store:
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(0, 2)), blocks(0, 2))

        def source() -> Any:
            bucket.delete(keys(bucket))
            yield SENDER.stream(blocks(0, 4))

        info = store.blobs.decode(SENDER.hash, source(), blocks(0, 4))
        assert info.status is BlobStatus.PARTIAL
        assert check_kept(store, SENDER) == blocks(2, 4)


# -- crashes


class Run(NamedTuple):
    """What is done to a store, and what must be here after it was acknowledged."""

    name: str
    prepare: Callable[[Store], object]
    work: Callable[[Store], object]
    before: ChunkRanges
    after: ChunkRanges


def _decode(ranges: ChunkRanges | None) -> Callable[[Store], object]:
    return lambda store: store.blobs.decode(SENDER.hash, [SENDER.stream(ranges)], ranges)


ALL = blocks(0, 10).clip(WHOLE)
RUNS = (
    Run("whole", lambda _: None, _decode(None), ChunkRanges.empty(), ALL),
    Run("part", lambda _: None, _decode(blocks(3, 6)), ChunkRanges.empty(), blocks(3, 6)),
    Run("next", _decode(blocks(3, 6)), _decode(blocks(0, 5)), blocks(3, 6), blocks(0, 6)),
    Run("last", _decode(blocks(3, 6)), _decode(blocks(0, 3) | blocks(6)), blocks(3, 6), ALL),
    Run("merged", _decode(blocks(3, 4)), _decode(blocks(5, 6)), blocks(3, 4), blocks(3, 4) | blocks(5, 6)),
    Run("proof", _decode(blocks(0, 9)), _decode(ChunkRanges.last()), blocks(0, 9), blocks(0, 9)),
)


@pytest.mark.parametrize("fault", [BucketFault.CRASH_BEFORE, BucketFault.CRASH_AFTER, BucketFault.BEFORE])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
@pytest.mark.usefixtures("small_checkpoints")
def test_a_crash_at_every_call(run: Run, fault: BucketFault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine dies, or loses the bucket for good, at its n-th call; another one with no catalog goes on."""
    if run.name == "merged":
        monkeypatch.setattr(object_partials, "MERGED_AT", 2)
    for number in range(1, 200):
        inner = lasting(memory_bucket())
        with open_store(inner) as store:
            run.prepare(store)
        store = open_store(faulty := FaultyBucket(inner, for_good=True))
        faulty.arm(fault, number)
        acknowledged = False
        try:
            run.work(store)
            acknowledged = True
        except (SimulatedCrash, HoldfastError):
            pass
        faulty.crashed = True
        store.close()
        with open_store(inner) as other:
            here = check_kept(other, SENDER)
            assert run.before <= here, "what was acknowledged before is gone"
            if acknowledged:
                assert run.after <= here, "what was acknowledged is gone"
            rest = other.blobs.missing_ranges(SENDER.hash)
            assert other.blobs.decode(SENDER.hash, SENDER.stream(rest), rest).status is BlobStatus.COMPLETE
            assert other.blobs.read(SENDER.hash) == SENDER.content
            assert other.verify(SENDER.hash).ok
            assert keys(inner) == [] or other.rebuild().partial_blobs == 0
            expire_partials(object_core(other), now_ms())
            assert keys(inner) == []
            assert other.blobs.read(SENDER.hash) == SENDER.content
        if faulty.hit is None:
            assert acknowledged
            return
    raise AssertionError("it never ends")


FAULTS = [fault for fault in BucketFault if not fault.startswith("crash")]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("small_checkpoints")
def test_a_failure_at_every_call_is_told_and_nothing_is_lost(fault: BucketFault) -> None:
    for number in range(1, 200):
        inner = lasting(memory_bucket())
        with open_store(faulty := FaultyBucket(inner)) as store:
            _decode(blocks(3, 6))(store)
            faulty.arm(fault, number)
            with suppress(Unavailable):
                store.blobs.decode(SENDER.hash, SENDER.stream())
            hit = faulty.hit
            faulty.heal()
            assert blocks(3, 6) <= check_kept(store, SENDER)
            store.blobs.decode(SENDER.hash, SENDER.stream())
            assert store.blobs.read(SENDER.hash) == SENDER.content
            expire_partials(object_core(store), now_ms())  # what a listing lacked is left over
            assert keys(inner) == []
        if hit is None:
            return
    raise AssertionError("it never ends")


CHILD = """
import sys
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.streams import Sender
sender = Sender(sample(int(sys.argv[2]), 3))
with Store._open_objects(DirectoryBucket(sys.argv[1])) as store:
    done = 0
    def pieces():
        global done
        for piece in sender.pieces(store.blobs.missing_ranges(sender.hash)):
            yield piece
            done += len(piece)
            print(done, flush=True)
    store.blobs.decode(sender.hash, pieces(), store.blobs.missing_ranges(sender.hash))
"""


def test_a_killed_import_goes_on_where_it_was(tmp_path: Path) -> None:
    """Bytes that had come and are asked for again: at most what a checkpoint holds."""
    size, path = 48 << 20, str(tmp_path / "bucket")
    sender = Sender(sample(size, 3))
    Store._open_objects(DirectoryBucket(path, create=True), create=True).close()
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, path, str(size)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    came = 0
    for line in process.stdout:
        came = int(line)
        if came > 30 << 20:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()
    with Store._open_objects(DirectoryBucket(path)) as store:
        kept = store.blobs.bitfield(sender.hash).present_bytes
        assert kept >= came - (16 << 20)
        rest = store.blobs.missing_ranges(sender.hash)
        assert store.blobs.decode(sender.hash, sender.pieces(rest), rest).status is BlobStatus.COMPLETE
        assert store.blobs.read(sender.hash) == sender.content


# -- hash seqs, encoding, the lock between threads


def test_a_hash_seq_takes_the_parts_of_its_children_away(bucket: Bucket) -> None:
    with open_store(memory_bucket()) as far, open_store(bucket) as store:
        child = far.blobs.put(SENDER.content).hash
        seq = far.blobs.hash_seq([child]).hash
        store.blobs.decode(child, far.blobs.encode(child, blocks(0, 2)), blocks(0, 2))
        assert store.blobs.decode_seq(seq, far.blobs.encode_seq(seq)).is_complete
        assert keys(bucket) == []


@pytest.mark.parametrize("how", ["missing", "damaged", "short"])
def test_a_blob_is_sent_whatever_became_of_its_outboard(bucket: Bucket, how: str) -> None:
    with open_store(bucket) as store:
        store.blobs.put(SENDER.content)
    key = outboard_key(SENDER.hash.digest)
    for ranges in (None, blocks(2, 4), ChunkRanges.last(), ChunkRanges.leaves(17, 18)):
        if how == "missing":
            bucket.delete([key])
        elif how == "damaged":
            damage(bucket, key, 70)
        else:
            bucket.upload(key, [b"short"], 5)
        with open_store(bucket) as store:
            assert b"".join(store.blobs.encode(SENDER.hash, ranges)) == SENDER.stream(ranges)


def test_the_parts_that_are_known_are_changed_by_one_thread_at_a_time(bucket: Bucket) -> None:
    with open_store(bucket) as store:
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(0, 2)), blocks(0, 2))
        parts = object_core(store).backend.parts
        here = parts.find(SENDER.hash.digest)
        assert here is not None
        steps: dict[str, Callable[[], object]] = {
            "find": lambda: parts.find(SENDER.hash.digest),
            "forget": lambda: parts.forget(SENDER.hash.digest),
            "put": lambda: parts.put(here.parts[0].head._replace(blocks=(), pairs=()), b"", ()),
            "pairs": lambda: parts.pairs_of(here.parts[0]),
        }
        for step in steps.values():
            thread = threading.Thread(target=step)
            with parts._mutex:
                thread.start()
                thread.join(0.15)
                assert thread.is_alive()
            thread.join()


def test_a_part_is_never_made_twice(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.backend.objects.parts.new_ids", lambda *_: [bytes(16)])
    with open_store(bucket) as store:
        store.blobs.decode(SENDER.hash, SENDER.stream(blocks(0, 2)), blocks(0, 2))
        with pytest.raises(Unavailable, match="random"):
            store.blobs.decode(SENDER.hash, SENDER.stream(blocks(2, 4)), blocks(2, 4))
        assert check_kept(store, SENDER) == blocks(0, 2)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_whatever_comes_from_wherever(data: st.DataObject) -> None:
    """Machines take turns, each with what it knows; parts get lost and damaged. What is here is right, and it ends."""
    inner = lasting(memory_bucket())
    count = data.draw(st.integers(1, 12))
    sender = Sender(sample(count * BLOCK_BYTES - data.draw(st.integers(0, BLOCK_BYTES - 1)), 2))
    checkpoint = data.draw(st.sampled_from((1, 40_000, 1 << 20)))
    with (
        patch.object(object_partials, "MERGED_AT", data.draw(st.sampled_from((2, 3, 64)))),
        patch.object(object_partials, "CHECKPOINT_BYTES", checkpoint),
        open_store(inner) as one,
        open_store(inner) as two,
    ):
        stores = (one, two)
        for _ in range(data.draw(st.integers(0, 8))):
            store = stores[data.draw(st.integers(0, 1))]
            start = data.draw(st.integers(0, count * 16))
            ranges = ChunkRanges.leaves(start, start + data.draw(st.integers(1, 100)))
            stream = sender.stream(ranges)
            what = data.draw(st.sampled_from(("send", "send", "break", "lose", "damage")))
            made = keys(inner)
            if what == "lose" and made:
                inner.delete([data.draw(st.sampled_from(made))])
            elif what == "damage" and made:
                key = data.draw(st.sampled_from(made))
                meta = inner.head(key)
                assert meta is not None
                damage(inner, key, data.draw(st.integers(0, meta.size_bytes - 1)))
            elif what == "break":
                with suppress(HoldfastError):
                    store.blobs.decode(sender.hash, stream[: len(stream) // 2], ranges)
            else:
                with suppress(CorruptBlob):
                    store.blobs.decode(sender.hash, stream, ranges)
        for store in stores:
            for _ in range(10):
                rest = store.blobs.missing_ranges(sender.hash)
                with suppress(CorruptBlob):
                    store.blobs.decode(sender.hash, sender.stream(rest), rest)
            assert store.blobs.status(sender.hash) is BlobStatus.COMPLETE
            assert store.blobs.read(sender.hash) == sender.content


@pytest.mark.usefixtures("small_checkpoints")
def test_streams_uploads_and_collections_of_several_machines_at_once(bucket: Bucket) -> None:
    """What was named stays, whatever a collector without any window does; what is not may have to come again."""
    errors: list[BaseException] = []
    named: dict[str, bytes] = {}
    working = threading.Semaphore(0)

    def stream(seed: int) -> None:
        sender, rng = Sender(sample(7 * BLOCK_BYTES + seed, seed)), random.Random(seed)
        with open_store(bucket) as store:
            for _ in range(2_000):
                rest = store.blobs.missing_ranges(sender.hash)
                if not rest:
                    try:
                        store.tags.set(f"tag-{seed}", sender.hash)
                        named[f"tag-{seed}"] = sender.content
                        return
                    except BlobNotFound:
                        continue
                some = rest & blocks(first := rng.randrange(8), first + 3)
                with suppress(CorruptBlob):
                    store.blobs.decode(sender.hash, sender.stream(some), some)
        raise AssertionError("it never ends")

    def upload(seed: int) -> None:
        content = sample(5 * BLOCK_BYTES + seed, seed)
        with open_store(bucket) as store:
            token = store.writer(f"upload-{seed}", resumable=True).suspend()
            for stop in range(10_000, len(content) + 10_000, 10_000):
                writer = store.writer(resume=token)
                writer.write(content[writer.offset_bytes : stop])
                writer.suspend()
            artifact = store.writer(resume=token).commit()
            named[artifact.id] = content

    def collect() -> None:
        with open_store(bucket) as store:
            while not working.acquire(blocking=False):
                store.gc(min_age_seconds=0)
                time.sleep(0.01)  # else a stream may start anew for ever

    def run(work: Callable[[int], None], seed: int) -> None:
        try:
            work(seed)
        except BaseException as error:  # raised below
            errors.append(error)

    works = [(stream, 1), (stream, 2), (upload, 3), (upload, 4)]
    threads = [threading.Thread(target=run, args=(work, seed)) for work, seed in works]
    collector = threading.Thread(target=run, args=(lambda _: collect(), 0))
    for thread in (*threads, collector):
        thread.start()
    for thread in threads:
        thread.join()
    working.release()
    collector.join()
    with suppress(IndexError):
        raise errors[0]
    assert len(named) == 4
    with open_store(bucket) as store:
        for name, content in named.items():
            found = store.tags.get(name).hash if name.startswith("tag-") else store.info(name).hash
            assert store.blobs.read(found) == content
        store.gc(min_age_seconds=0)
        for name, content in named.items():
            found = store.tags.get(name).hash if name.startswith("tag-") else store.info(name).hash
            assert store.blobs.read(found) == content
        assert store.scrub().ok
        assert keys(bucket) == []
