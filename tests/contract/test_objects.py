"""The contract on stores in buckets: in memory and in a directory. tests/objects has it on real servers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.backend.objects.layout import data_key
from holdfast.backend.objects.opening import memory_bucket
from holdfast.core import Options
from holdfast.store import Store
from holdfast.testing.contract import MakeStore
from holdfast.testing.contract_care import CareContract
from holdfast.testing.contract_changing import ChangingContract
from holdfast.testing.contract_collecting import CollectingContract
from holdfast.testing.contract_finding import FindingContract
from holdfast.testing.contract_partial import PartialContract
from holdfast.testing.contract_putting import PuttingContract
from holdfast.testing.contract_reading import ReadingContract
from holdfast.testing.contract_repair import RepairContract
from holdfast.testing.contract_streams import StreamsContract
from holdfast.testing.contract_tags import TagsContract
from holdfast.testing.contract_uploads import UploadsContract
from holdfast.testing.inside import object_core
from holdfast.types import Durability, Hash


class ObjectContract(
    CollectingContract,
    PuttingContract,
    ReadingContract,
    ChangingContract,
    FindingContract,
    TagsContract,
    CareContract,
    RepairContract,
    PartialContract,
    StreamsContract,
    UploadsContract,
):
    """The contract as far as buckets keep it."""

    durability = Durability.STORED

    def new_bucket(self) -> Bucket:
        raise NotImplementedError

    def catalog_path(self, bucket: Bucket) -> Path | None:
        """Give where the catalog of a store is that is opened twice; None keeps it in memory."""
        return None

    @pytest.fixture
    def make_store(self) -> MakeStore:
        def make(**options: Any) -> Store:
            bucket = self.new_bucket()
            return Store._open_objects(
                bucket,
                self.catalog_path(bucket),
                create=True,
                reopen={} if self.persistent else None,
                options=Options(**options),
                durability=self.durability,
            )

        return make

    def corrupt(self, store: Store, hash: Hash, offset_bytes: int) -> None:
        bucket = object_core(store).backend.bucket
        key = data_key(hash.digest)
        found = bucket.get(key, max_bytes=1 << 40)
        assert found is not None
        data = bytearray(found[0])
        data[offset_bytes] ^= 4
        bucket.upload(key, [bytes(data)], len(data))


class TestMemoryObjects(ObjectContract):
    persistent = False
    durability = Durability.BUFFERED

    def new_bucket(self) -> Bucket:
        return memory_bucket()


class TestDirectoryObjects(ObjectContract):
    durability = Durability.FSYNCED

    @pytest.fixture(autouse=True)
    def _directories(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.root = tmp_path_factory.mktemp("buckets")
        self.numbers = itertools.count()

    def new_bucket(self) -> Bucket:
        return DirectoryBucket(str(self.root / f"{next(self.numbers)}"), create=True)

    def catalog_path(self, bucket: Bucket) -> Path | None:
        return Path(bucket.location.removeprefix("dir://"), "catalog.db")

    def reopen(self, store: Store) -> Store:
        bucket = DirectoryBucket(store.location.removeprefix("dir://"))
        return Store._open_objects(bucket, self.catalog_path(bucket), durability=self.durability)
