"""The contract of buckets, on each kind: memory, a directory, and two real servers of different make."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.backend.objects.remote import RemoteBucket
from holdfast.testing.contract_bucket import Another, BucketContract


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
