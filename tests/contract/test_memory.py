"""The contract on the memory backend."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast import _native
from holdfast.backend.memory import MemoryDisk
from holdfast.chunking import Chunking
from holdfast.core import Options
from holdfast.store import Store
from holdfast.testing.contract import MakeStore, StoreContract
from holdfast.testing.inside import log_core
from holdfast.types import Durability, Hash
from holdfast.wire.record import HEADER_BYTES

HASH_AT = 28


class TestMemory(StoreContract):
    persistent = False
    durability = Durability.BUFFERED

    @pytest.fixture
    def make_store(self) -> MakeStore:
        def make(**options: Any) -> Store:
            self.disk = MemoryDisk()
            return Store._open(
                "/memory",
                create=True,
                disk=self.disk,
                catalog_path=None,
                location="memory://",
                chunking=Chunking.choose("fixed", 65_536),
                compression="none",
                fsync=False,
                options=Options(**options),
            )

        return make

    def corrupt(self, store: Store, hash: Hash, offset_bytes: int) -> None:
        """Find the payload's bytes in the segments, wherever they are, and flip a bit there."""
        content = store.read(hash)
        start = offset_bytes // 65_536 * 65_536 if len(content) > 16_384 else 0
        chunk = content[start : start + 65_536]
        disk = log_core(store).backend.disk
        for name in disk.listdir("/memory/segments"):
            handle = disk.open(f"/memory/segments/{name}", "a")
            at = disk.pread(handle, 1 << 30, 0).find(_native.blake3(chunk))
            if at >= 0:
                at += HEADER_BYTES - HASH_AT + offset_bytes - start
                disk.pwrite(handle, [bytes((disk.pread(handle, 1, at)[0] ^ 4,))], at)
                return
        raise AssertionError(f"{hash} is in no segment as it is")
