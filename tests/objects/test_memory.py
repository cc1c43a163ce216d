"""What a call with very many blobs holds in memory, for each of them."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest

from holdfast.backend.objects.bucket import Meta
from holdfast.core import Core
from holdfast.store import Store
from holdfast.testing.inside import object_core
from holdfast.testing.plain_bucket import PlainBucket
from holdfast.types import BytesLike

BLOBS = 20_000
PER_BLOB_BYTES = 150
"""Beside 4 MiB: the spool, what is on its way, and 200 bytes for each. The log holds as much in the same call."""


class Sink(PlainBucket):
    """Takes in blobs, and keeps nothing of them."""

    def create(self, key: str, data: BytesLike) -> Meta | None:
        return Meta(key, len(data), '"1"', 1) if key.endswith("data") else super().create(key, data)

    def head(self, key: str) -> Meta | None:
        return Meta(key, 100, '"1"', 1) if key.endswith("data") else super().head(key)


def peak(work: Callable[[], object]) -> int:
    """Give how many bytes more than before a call holds at most."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def put_all(core: Core) -> None:
    with core.adding() as (group, ingest):
        for first in range(0, BLOBS, 500):
            ingest.add_many([b"%0100d" % number for number in range(first, first + 500)])
        group.commit()


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_a_call_with_many_blobs(monkeypatch: pytest.MonkeyPatch, *, known: bool) -> None:
    monkeypatch.setattr("holdfast.object_group.Spool.__init__.__defaults__", (1 << 20,))
    with Store._open_objects(Sink(), create=True) as store:
        core = object_core(store)
        if known:
            put_all(core)
        held = peak(lambda: put_all(core)) - (4 << 20)
        assert held < BLOBS * PER_BLOB_BYTES, held / BLOBS


def test_tiny_pieces_are_bounded_in_memory_too() -> None:
    from holdfast.backend.objects.spool import Spool

    def fill() -> None:
        with Spool(1 << 20) as spool:
            for number in range(50_000):
                spool.append(b"%06d" % number)
            assert bytes(spool.read(6 * 49_999, 6)) == b"049999"
            assert bytes(spool.read(0, 6)) == b"000000"

    assert peak(fill) < 2 << 20
