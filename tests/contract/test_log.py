"""The contract on the log backend."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import _native
from holdfast.chunking import Chunking
from holdfast.core import Options
from holdfast.store import Store
from holdfast.testing.contract import MakeStore, StoreContract
from holdfast.types import Hash
from holdfast.wire.record import HEADER_BYTES

CHUNK_BYTES = 65_536
SEGMENT_BYTES = 4 << 20


class TestLog(StoreContract):
    chunk_bytes = CHUNK_BYTES
    segment_bytes = SEGMENT_BYTES

    @pytest.fixture
    def make_store(self, tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
        root = tmp_path_factory.mktemp("stores")
        numbers = itertools.count()

        def make(**options: Any) -> Store:
            return Store._open(
                str(root / f"{next(numbers)}"),
                create=True,
                chunking=Chunking.choose("fixed", CHUNK_BYTES),
                compression="none",
                segment_bytes=SEGMENT_BYTES,
                options=Options(**options),
                reopen={},
            )

        return make

    def reopen(self, store: Store) -> Store:
        return holdfast.open(store.location)

    def corrupt(self, store: Store, hash: Hash, offset_bytes: int) -> None:
        """Find the payload's bytes in the segments, wherever they are, and flip a bit there."""
        content = store.read(hash)
        start = offset_bytes // CHUNK_BYTES * CHUNK_BYTES if len(content) > 16_384 else 0
        chunk = content[start : start + CHUNK_BYTES]
        for path in _segments(Path(store.location)):
            found = path.read_bytes().find(_native.blake3(chunk))
            if found >= 0:
                at = found + HEADER_BYTES - HASH_AT
                with path.open("r+b") as file:
                    file.seek(at + offset_bytes - start)
                    byte = file.read(1)[0]
                    file.seek(at + offset_bytes - start)
                    file.write(bytes((byte ^ 4,)))
                    file.flush()
                    os.fsync(file.fileno())
                return
        raise AssertionError(f"{hash} is in no segment as it is")


HASH_AT = 28
"""Where a record header has the hash of the payload."""


def _segments(root: Path) -> Iterator[Path]:
    yield from sorted(root.glob("segments/*.seg"))
