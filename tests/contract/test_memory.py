"""The contract on the memory backend."""

from __future__ import annotations

from typing import Any

import pytest

import holdfast
from holdfast.store import Store
from holdfast.testing.contract import MakeStore, StoreContract
from holdfast.types import Durability, Hash


class TestMemory(StoreContract):
    persistent = False
    durability = Durability.BUFFERED

    @pytest.fixture
    def make_store(self) -> MakeStore:
        def make(**options: Any) -> Store:
            return holdfast.open("memory://", **options)

        return make

    def corrupt(self, store: Store, hash: Hash, offset_bytes: int) -> None:
        raise NotImplementedError
