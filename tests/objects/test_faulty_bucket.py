"""The bucket that fails on purpose does just what it says, and nothing beside."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.opening import memory_bucket
from holdfast.errors import PermissionDenied, Unavailable
from holdfast.testing.contract_bucket import Another, BucketContract
from holdfast.testing.faults import SimulatedCrash
from holdfast.testing.faulty_bucket import BODIES, CALLS, BucketFault, BucketSite, FaultyBucket


class TestWithoutAFault(BucketContract):
    @pytest.fixture
    def another(self) -> Another:
        from obstore.store import MemoryStore

        from holdfast.backend.objects.remote import RemoteBucket

        store = MemoryStore()
        return lambda limit=None: FaultyBucket(
            RemoteBucket(lambda *_: store, location="memory", retry_seconds=0, limit=limit)
        )

    def test_nothing_is_said_of_its_inside(self, bucket: Bucket) -> None:
        assert bucket.location == "memory"


def work(bucket: Bucket) -> None:
    """Make every kind of call once, and some twice."""
    bucket.create("a", b"0123456789")
    bucket.upload("b", [b"abcdefghij"], 10)
    bucket.copy("a", "c")
    found = bucket.head("a")
    assert found is not None
    bucket.replace("a", b"9876543210", found.e_tag or "")
    bucket.get("b", max_bytes=10)
    bucket.get_range("b", 0, 10)
    list(bucket.iter("b", 0, 10) or ())
    list(bucket.list(""))
    bucket.delete(["b"])


def test_every_call_is_a_site() -> None:
    bucket = FaultyBucket(memory_bucket())
    work(bucket)
    assert [site.number for site in bucket.sites] == list(range(1, 11))
    assert {site.call for site in bucket.sites} == CALLS
    assert str(bucket.sites[0]) == "1:create(a)"


@pytest.mark.parametrize("fault", [BucketFault.BEFORE, BucketFault.AFTER, BucketFault.HANG])
def test_a_failure_is_applied_or_not(fault: BucketFault) -> None:
    hung: list[int] = []
    for number in range(1, 11):
        recorded, plain = FaultyBucket(memory_bucket()), memory_bucket()
        bucket = FaultyBucket(plain, fault, number, on_hang=lambda: hung.append(1))
        work(recorded)
        site = recorded.sites[number - 1]
        if not site.can(fault):
            work(bucket)
            continue
        with pytest.raises(Unavailable, match="injected"):
            work(bucket)
        assert bucket.hit == site
        applied = {meta.key for meta in plain.list("")}
        assert (site.call, site.key) != ("create", "a") or ("a" in applied) is (
            fault is not BucketFault.BEFORE
        )
        bucket.head("a")  # once only
    assert bool(hung) is (fault is BucketFault.HANG)


def test_a_crash_is_for_good() -> None:
    for fault, left in ((BucketFault.CRASH_BEFORE, []), (BucketFault.CRASH_AFTER, ["a"])):
        plain = memory_bucket()
        bucket = FaultyBucket(plain, fault, 1)
        with pytest.raises(SimulatedCrash):
            work(bucket)
        with pytest.raises(SimulatedCrash):
            bucket.head("a")
        bucket.close()
        assert [meta.key for meta in plain.list("")] == left


def test_a_service_that_stays_away() -> None:
    bucket = FaultyBucket(memory_bucket(), BucketFault.BEFORE, 2, for_good=True)
    bucket.create("a", b"1")
    for _ in range(3):
        with pytest.raises(Unavailable):
            bucket.head("a")
    bucket.heal()
    assert bucket.head("a") is not None


@pytest.mark.parametrize("call", sorted(BODIES))
def test_bodies_are_spoiled(call: str) -> None:
    reads: dict[str, Callable[[Bucket], bytes]] = {
        "get": lambda bucket: (bucket.get("a", max_bytes=10) or (b"", None))[0],
        "get_range": lambda bucket: bucket.get_range("a", 0, 10) or b"",
        "iter": lambda bucket: b"".join(bucket.iter("a", 0, 10) or ()),
    }
    data = b"0123456789"
    bucket = FaultyBucket(memory_bucket())
    bucket.create("a", data)
    bucket.arm(BucketFault.TRUNCATED, 1)
    assert reads[call](bucket) == b"01234"
    bucket.arm(BucketFault.FLIPPED, 1)
    wrong = reads[call](bucket)
    assert len(wrong) == 10
    assert sum((x ^ y).bit_count() for x, y in zip(wrong, data, strict=True)) == 1
    assert reads[call](bucket) == data


def test_a_listing_that_lacks_what_is_fresh() -> None:
    bucket = FaultyBucket(memory_bucket())
    for key in "bac":
        bucket.create(key, b"")
    bucket.arm(BucketFault.MISSING, 1)
    assert [meta.key for meta in bucket.list("")] == ["a", "b"]
    assert [meta.key for meta in bucket.list("")] == ["a", "b", "c"]


def test_a_listing_and_a_stream_that_break_off_in_the_middle() -> None:
    bucket = FaultyBucket(memory_bucket())
    for key in "abcd":
        bucket.create(key, b"0123")
    bucket.arm(BucketFault.MIDWAY, 1)
    listing = bucket.list("")
    assert [next(listing).key, next(listing).key] == ["a", "b"]
    with pytest.raises(Unavailable):
        next(listing)
    bucket.arm(BucketFault.MIDWAY, 1)
    pieces = bucket.iter("a", 0, 4) or iter(())
    assert next(pieces) == b"01"
    with pytest.raises(Unavailable):
        next(pieces)
    assert len(list(bucket.list(""))) == 4


def test_another_error_and_another_side() -> None:
    seen: list[BucketSite] = []
    inner = memory_bucket()

    def meanwhile(site: BucketSite) -> None:
        seen.append(site)
        inner.create("a", b"theirs")

    bucket = FaultyBucket(
        inner,
        BucketFault.DENIED,
        2,
        error=PermissionDenied("no"),
        on_site=meanwhile,
        where=lambda s: s.key == "a",
    )
    assert bucket.create("a", b"ours") is None
    bucket.head("b")
    with pytest.raises(PermissionDenied):
        bucket.head("a")
    assert [site.key for site in seen] == ["a", "b", "a"]
