"""All of a blob is held against its root, also where each of its pieces matches its own hash: they may be another's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast import _native
from holdfast.backend.log.partial_state import empty_state
from holdfast.bao import outboard_bytes
from holdfast.care.report import Report
from holdfast.care.verify import verify_blob
from holdfast.encoding import _Outboard
from holdfast.errors import CorruptBlob
from holdfast.filling import Filling
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.inside import log_core

RIGHT, OTHER = sample(100_000, 1), sample(100_000, 2)
ROOT = _native.blake3(RIGHT)


class Pieces:
    """A reader that gives some bytes, whatever it was opened for."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size_bytes = len(content)

    def iter_bytes(self, start: int, stop: int) -> Iterator[bytes]:
        yield self.content[start:stop]


def test_verify() -> None:
    for content in (RIGHT, OTHER):
        reader = Pieces(content)
        core: Any = SimpleNamespace(
            blob=lambda _: None, backend=SimpleNamespace(reader=lambda _, r=reader: r)
        )
        if content is RIGHT:
            verify_blob(core, ROOT, Report("verify", None))
        else:
            with pytest.raises(CorruptBlob, match="does not match its hash"):
                verify_blob(core, ROOT, Report("verify", None))


def test_an_outboard_that_is_computed_to_be_sent() -> None:
    right: Any = Pieces(RIGHT)
    other: Any = Pieces(OTHER)
    made = _Outboard(right, ROOT)
    assert len(made.read(0, 1 << 20)) == outboard_bytes(len(RIGHT))
    made.close()
    with pytest.raises(CorruptBlob, match="do not make it up"):
        _Outboard(other, ROOT)


def test_a_partial_blob_whose_outboard_is_computed_again(tmp_path: Path) -> None:
    with Store._open(tmp_path / "store", create=True) as store, ExitStack() as stack:
        work: Any = Filling(log_core(store), ROOT, lambda: None)
        partial = SimpleNamespace(read_pairs=lambda _, length: bytes(length))
        state = empty_state(0)._replace(size_bytes=len(RIGHT))
        for content in (RIGHT, OTHER):
            work._all = lambda *_, c=content: [c]
            assert (work._tree(partial, state, None, stack) is None) == (content is OTHER)
        work.close()
