"""What is taken in, sent, and put in parts, on real servers: the same contract as on every backend."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.layout import data_key
from holdfast.backend.objects.opening import open_remote
from holdfast.core import Options
from holdfast.servers import LocalServer
from holdfast.store import Store
from holdfast.testing.contract_base import MakeStore
from holdfast.testing.contract_partial import PartialContract
from holdfast.testing.contract_streams import StreamsContract
from holdfast.testing.contract_uploads import UploadsContract
from holdfast.testing.inside import object_core
from holdfast.types import Durability, Hash
from tests.servers import place_in


class _OnServer(PartialContract, StreamsContract, UploadsContract):
    durability = Durability.STORED
    server: ClassVar[str]

    @pytest.fixture
    def make_store(self, servers: Callable[[str], LocalServer], prefix: str) -> MakeStore:
        self.access = servers(self.server).access
        numbers = itertools.count()

        def make(**options: Any) -> Store:
            return self._open(f"{prefix}/{next(numbers)}", create=True, options=Options(**options))

        return make

    def _open(self, prefix: str, **how: Any) -> Store:
        bucket: Bucket = open_remote(place_in(self.access, prefix))
        return Store._open_objects(bucket, location=prefix, durability=self.durability, **how)

    def reopen(self, store: Store) -> Store:
        return self._open(store.location)

    def corrupt(self, store: Store, hash: Hash, offset_bytes: int) -> None:
        bucket = object_core(store).backend.bucket
        key = data_key(hash.digest)
        found = bucket.get(key, max_bytes=1 << 40)
        assert found is not None
        data = bytearray(found[0])
        data[offset_bytes] ^= 4
        bucket.upload(key, [bytes(data)], len(data))


class TestVersitygw(_OnServer):
    server = "versitygw"


class TestMinio(_OnServer):
    server = "minio"
