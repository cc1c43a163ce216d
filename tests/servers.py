"""Real servers in tests: places in their bucket, and what happens where a server cannot be had."""

from __future__ import annotations

import os
from typing import Any

import pytest

from holdfast.backend.objects.credentials import Keys
from holdfast.backend.objects.place import BucketPlace
from holdfast.secret import Secret
from holdfast.servers import Access, find_binary, how_to_get


def need(name: str) -> None:
    """Skip a test whose server is not on this machine; CI makes the servers first, and there it fails."""
    if find_binary(name) is None:
        said = f"{name} is not there: {how_to_get(name)}"
        if os.environ.get("NEED_SERVICES"):
            pytest.fail(said)
        pytest.skip(said)


def place_in(access: Access, prefix: str = "", *, endpoint: str = "", **more: Any) -> BucketPlace:
    """Give a place in the bucket of a server, by the fields of `BucketPlace`."""
    endpoint = endpoint or access.endpoint
    fields: dict[str, Any] = {
        "bucket": access.bucket,
        "options": (("endpoint", endpoint), ("region", access.region)),
        "credentials": Keys(Secret(access.access_key), Secret(access.secret_key)),
        "allow_http": True,
        "timeout_seconds": 10,
        "retry_seconds": 10,
        **more,
    }
    return BucketPlace("s3", prefix=prefix, endpoint=endpoint, **fields)
