"""What the parts of the contract suite share: what a backend gives, and samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import ClassVar, Final

import pytest

from holdfast.store import Store
from holdfast.types import Durability, Hash

MakeStore = Callable[..., Store]

NEAR: Final = (-1, 0, 1)


def sample(size_bytes: int, seed: int = 0) -> bytes:
    """Make bytes that do not compress and never repeat from one seed to another."""
    return random.Random(seed << 40 | size_bytes).randbytes(size_bytes)


def boundary_sizes(chunk_bytes: int, segment_bytes: int) -> tuple[int, ...]:
    """Give the sizes at which something changes: leaf, block, chunk, segment, each ± 1."""
    edges = (1024, 16_384, 2 * 16_384, chunk_bytes, segment_bytes)
    return tuple(sorted({1} | {edge + near for edge in edges for near in NEAR}))


class Interrupted(Exception):
    """What a source, or a progress callback, raises midway."""


class ContractBase:
    """What a backend gives to the suite."""

    persistent: ClassVar[bool] = True
    """Another `Store` at the same location sees the same things."""
    durability: ClassVar[Durability] = Durability.FSYNCED
    chunk_bytes: ClassVar[int] = 1 << 20
    """A length at which this backend cuts, if it does."""
    segment_bytes: ClassVar[int] = 4 << 20
    """A length at which this backend begins another file, if it does."""

    @pytest.fixture
    def make_store(self) -> MakeStore:
        """Give a function that makes a new, empty store; it may get the fields of `Options`, like `allow_empty`."""
        raise NotImplementedError

    def reopen(self, store: Store) -> Store:
        """Open another `Store` at the location of this one, as another process would."""
        raise NotImplementedError

    def corrupt(self, store: Store, hash: Hash, offset_bytes: int) -> None:
        """Flip one bit of the stored bytes of a blob (which is stored as it is), behind the store's back."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, make_store: MakeStore) -> Iterator[Store]:
        with make_store() as store:
            yield store
