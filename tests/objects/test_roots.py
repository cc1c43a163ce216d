"""In a bucket, too, all of a blob is held against its root; and who puts for one writer alone looks each time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast import _native
from holdfast.backend.objects.opening import memory_bucket
from holdfast.backend.objects.single_writer import STRIPES, SingleWriter
from holdfast.backend.objects.spool import Spool
from holdfast.backend.objects.stock import PartStock
from holdfast.bao import OutboardBuilder
from holdfast.errors import CorruptBlob, CorruptObject
from holdfast.object_checks import BlobCheck
from holdfast.object_core import ObjectCore
from holdfast.object_repair import Repair
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.inside import object_core

RIGHT, OTHER = sample(100_000, 1), sample(100_000, 2)
SIZE = len(RIGHT)
ROOT = _native.blake3(RIGHT)
UNKNOWN = 1 << 62


@pytest.fixture
def core() -> Iterator[ObjectCore]:
    with Store._open_objects(memory_bucket(), create=True) as store:
        yield object_core(store)


def spool_of(content: bytes) -> Spool:
    spool = Spool()
    spool.append(content)
    return spool


def pairs_of(content: bytes) -> bytes:
    hasher = _native.BlobHasher()
    hasher.update(content)
    with OutboardBuilder() as builder:
        builder.feed(hasher.take_groups())
        builder.feed(hasher.finish()[1])
        return b"".join(builder.finish(len(content)))


def test_an_outboard_that_is_made_again(core: ObjectCore) -> None:
    backend: Any = core.backend
    backend.fetch = lambda _, start, stop: RIGHT[start:stop]
    backend.remake_outboard(ROOT, SIZE).close()
    backend.fetch = lambda _, start, stop: OTHER[start:stop]
    with pytest.raises(CorruptBlob, match="other bytes"):
        backend.remake_outboard(ROOT, SIZE)


def test_what_is_checked_at_once_and_as_a_whole(core: ObjectCore) -> None:
    """Data and outboard may both be another blob's, and fit each other."""
    backend: Any = core.backend
    for content in (RIGHT, OTHER):
        backend.fetch = lambda _, start, stop, c=content: c[start:stop]
        backend.fetch_outboard = lambda _, start, stop, c=content: pairs_of(c)[start:stop]
        check = BlobCheck(backend, ROOT, SIZE, has_outboard=True)
        assert (not check._check_at_once()) == (content is RIGHT)
        assert check._is_whole() == (content is RIGHT)


def test_what_repair_takes_whole(core: ObjectCore) -> None:
    repair: Any = Repair(core, [], None)
    for content in (RIGHT, OTHER):
        with Spool() as spool:
            assert repair._copy(iter((content,)), ROOT, SIZE, spool) == (content is RIGHT)
        with Spool() as spool:
            assert repair._copy_any(iter((content,)), ROOT, UNKNOWN, spool) == (content is RIGHT)
    assert repair._waiting(ROOT, SIZE, spool_of(RIGHT)).hash == ROOT
    with pytest.raises(CorruptBlob, match="changed while"):
        repair._waiting(ROOT, SIZE, spool_of(OTHER))


def test_pieces_that_are_put_together() -> None:
    for content in (RIGHT, OTHER):
        stock: Any = SimpleNamespace(
            _forget_builder=lambda: None,
            _wrong=lambda: CorruptObject("another one"),
            _builder=None,
            blob=SimpleNamespace(hash=ROOT),
        )
        pieces = PartStock._watched(stock, iter((content[:50_000], content[50_000:])))
        if content is RIGHT:
            assert b"".join(map(bytes, pieces)) == content
        else:
            with pytest.raises(CorruptObject):
                list(pieces)


@pytest.mark.parametrize("is_new", [True, False])
def test_one_writer_looks_again(is_new: bool) -> None:
    """Where the claim became its own in between, and before it puts without the condition that was refused."""
    seen, put = ["mine", "another's"], []
    writer: Any = SingleWriter.__new__(SingleWriter)
    writer._stripes = [threading.Lock() for _ in range(STRIPES)]
    writer._own = lambda: is_new
    writer._e_tag = lambda _: seen.pop(0)
    writer.inner = SimpleNamespace(upload=lambda *_: put.append("without a condition"))

    def refused() -> None:
        if is_new:
            put.append("though it had become another's")

    assert writer._put_if("key", b"data", "mine", refused) is None
    assert not put
