"""What tests of stores in buckets share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast.backend.objects.bucket import Bucket
from holdfast.store import Store
from holdfast.types import Durability


@pytest.fixture
def store(bucket: Bucket) -> Iterator[Store]:
    """Make a store in the bucket that the module's own fixture gives."""
    with Store._open_objects(bucket, None, create=True, durability=Durability.BUFFERED) as store:
        yield store
