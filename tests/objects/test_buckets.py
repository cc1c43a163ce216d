"""The contract of buckets, on each kind: memory, a directory, and two real servers of different make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.backend.objects.opening import open_remote
from holdfast.backend.objects.place import BucketPlace
from holdfast.backend.objects.remote import RemoteBucket
from holdfast.servers import LocalServer
from holdfast.testing.contract_bucket import Another, BucketContract
from tests.objects.fake_gcs import FakeGcs
from tests.servers import azure_place, place_in


class TestMemory(BucketContract):
    @pytest.fixture
    def another(self) -> Another:
        from obstore.store import MemoryStore

        store = MemoryStore()

        def open_again(limit: int | None = None) -> Bucket:
            return RemoteBucket(lambda *_: store, location="memory", retry_seconds=0, limit=limit)

        return open_again


class TestDirectory(BucketContract):
    @pytest.fixture
    def another(self, tmp_path: Path) -> Another:
        def open_again(limit: int | None = None) -> Bucket:
            return DirectoryBucket(str(tmp_path / "objects"), create=True, limit=limit)

        return open_again


class _RealServer(BucketContract):
    name: ClassVar[str]

    @pytest.fixture
    def another(self, servers: Callable[[str], LocalServer], prefix: str) -> Another:
        place = place_in(servers(self.name).access, prefix)
        return lambda limit=None: open_remote(replace(place, max_requests=limit))


class TestMinio(_RealServer):
    name = "minio"


class TestVersitygw(_RealServer):
    name = "versitygw"


class TestAzurite(BucketContract):
    racers = 6

    @pytest.fixture
    def another(self, servers: Callable[[str], LocalServer], prefix: str) -> Another:
        place = azure_place(servers("azurite").access, prefix)
        return lambda limit=None: open_remote(replace(place, max_requests=limit))


class TestFakeGcs(BucketContract):
    """The conditions of GCS compare generations and not ETags."""

    @pytest.fixture
    def another(self, prefix: str) -> Iterator[Another]:
        with FakeGcs() as gcs:
            place = BucketPlace(
                "gcs",
                bucket="photos",
                prefix=prefix,
                options=(("base_url", gcs.endpoint),),
                credentials=lambda: {"token": "of nobody", "expires_at": None},
                allow_http=True,
                retry_seconds=5,
            )
            yield lambda limit=None: open_remote(replace(place, max_requests=limit))
