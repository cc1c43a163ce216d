"""Listing a bucket: the short way for what nearly all blobs are gives what the long one gives; pages come ahead."""

from __future__ import annotations

import threading
from itertools import islice

import pytest

from holdfast import object_listing
from holdfast.backend.objects.backend import ObjectBackend
from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.ends import make_ends
from holdfast.backend.objects.layout import BLOBS, base32_name, data_key, gone_key, outboard_key
from holdfast.backend.objects.opening import memory_bucket
from holdfast.errors import TooLarge
from holdfast.object_listing import Listed, Tally, iter_blobs
from holdfast.types import BLOCK_BYTES

ONE, TWO = bytes(range(32)), b"\xab" * 32
NAME = ONE.hex()
SHAPES: dict[str, list[str]] = {
    "data": [data_key(ONE)],
    "outboard": [data_key(ONE), outboard_key(ONE)],
    "outboard alone": [outboard_key(ONE)],
    "other outboard": [data_key(ONE), outboard_key(ONE, 1)],
    "generations": [data_key(ONE), data_key(ONE, 1), outboard_key(ONE, 1), gone_key(ONE, 0)],
    "marked": [data_key(ONE), gone_key(ONE, 0)],
    "collected": [gone_key(ONE, 0)],
    "later": [data_key(ONE, 2), gone_key(ONE, 1)],
    "capitals": [f"blobs/{TWO.hex().upper()}/data"],
    "blanks": [f"blobs/{NAME[:62]} 1/data"],
    "short": [f"blobs/{NAME[:62]}/data"],
    "long": [f"blobs/{NAME}00/data"],
    "no part": [f"blobs/{NAME}", data_key(ONE)],
    "deeper": [f"blobs/{NAME}/data/data", data_key(ONE)],
    "not ours between": [data_key(ONE), f"blobs/{NAME}/data.x", outboard_key(ONE)],
    "base32": [data_key(ONE, 0, base32_name(ONE)), data_key(TWO)],
    "both": [data_key(ONE, 0, base32_name(ONE)), data_key(ONE)],
    "not ours": ["blobs/readme", "blobs/x/y", f"blobs/{NAME}/other"],
}


def listed(bucket: Bucket) -> tuple[list[Listed], list[int], dict[bytes, str]]:
    backend, tally = ObjectBackend(bucket, read_only=False), Tally()
    found = list(iter_blobs(backend, tally))
    told = [tally.foreign, tally.without_outboard, tally.base32, tally.collected.count, backend.has_base32]
    return found, told, {one.hash: backend.data_key(one.hash) for one in found}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [5, BLOCK_BYTES + 1])
def test_the_short_way_says_what_the_long_one_does(
    shape: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = memory_bucket()
    make_ends(bucket)
    for key in {*SHAPES[shape], data_key(b"\x01" * 32), data_key(b"\xff" * 32)}:
        bucket.create(key, bytes(size))
    short = listed(bucket)
    assert len(short[0]) >= 2
    monkeypatch.setattr(object_listing, "_plain", lambda metas: None)
    assert listed(bucket) == short


def test_pages_come_ahead_in_order() -> None:
    bucket = memory_bucket()
    keys = [f"{BLOBS}{number:05}" for number in range(3_500)]
    for key in keys:
        bucket.create(key, b"")
    before = bucket.requests.snapshot()["list"]
    assert [meta.key for meta in bucket.list(BLOBS)] == keys
    assert bucket.requests.snapshot()["list"] == before + 4
    assert [meta.key for meta in bucket.list(BLOBS, after=keys[999])] == keys[1_000:]
    some = bucket.list(BLOBS)
    assert [meta.key for meta in islice(some, 5)] == keys[:5]
    some.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("holdfast-list"):
            thread.join(10)
            assert not thread.is_alive()


def test_a_limit_that_the_next_page_meets_ends_the_listing() -> None:
    bucket = memory_bucket(limit=3_502)
    for number in range(3_500):
        bucket.create(f"{BLOBS}{number:05}", b"")
    seen = []
    with pytest.raises(TooLarge, match="limit of 3502 requests"):
        seen += [meta.key for meta in bucket.list(BLOBS)]
    assert bucket.requests.snapshot()["list"] == 2


def test_what_others_have_between_blobs_is_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of objects under one name: memory stays bounded."""
    monkeypatch.setattr(object_listing, "MANY", 10)
    bucket = memory_bucket()
    make_ends(bucket)
    for key in (*(f"{BLOBS}0thers/{number:03}" for number in range(105)), data_key(ONE)):
        bucket.create(key, b"12345")
    lengths: list[int] = []
    whole = object_listing._any

    def watched(backend: ObjectBackend, tally: Tally, metas: list[Meta]) -> Listed | None:
        lengths.append(len(metas))
        return whole(backend, tally, metas)

    monkeypatch.setattr(object_listing, "_any", watched)
    found, told, _ = listed(bucket)
    assert [one.hash for one in found] == [ONE]
    assert told[0] == 105
    assert max(lengths) == 10
