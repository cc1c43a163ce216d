"""Real servers in tests: places in their bucket, and what happens where a server cannot be had."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit

import pytest

from holdfast.backend.objects.credentials import AccountKey, Keys
from holdfast.backend.objects.place import BucketPlace
from holdfast.secret import Secret
from holdfast.servers import Access, find_binary, how_to_get

S3_SERVERS = ("minio", "versitygw")


def need(name: str) -> None:
    """Skip a test whose server is not on this machine; CI makes those of S3 first, and there it fails."""
    if find_binary(name) is None:
        said = f"{name} is not there: {how_to_get(name)}"
        if os.environ.get("NEED_SERVICES") and name in S3_SERVERS:
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


def azure_place(access: Access, prefix: str, **more: Any) -> BucketPlace:
    """Give a place in Azurite, in a container that is there then."""
    key = b64encode(access.secret_key.encode()).decode()
    endpoint = f"{access.endpoint}/{access.access_key}"
    _make_container(access, key)
    fields: dict[str, Any] = {
        "bucket": access.bucket,
        "account": access.access_key,
        "options": (("account_name", access.access_key), ("endpoint", endpoint)),
        "credentials": AccountKey(Secret(key)),
        "allow_http": True,
        "timeout_seconds": 10,
        "retry_seconds": 10,
        **more,
    }
    return BucketPlace("azure", prefix=prefix, endpoint=endpoint, **fields)


def let_all(access: Access, *actions: str) -> None:
    """Let whoever has no credentials do some things (`GetObject`, …) in the bucket of an S3 server, and no more."""
    where = f"arn:aws:s3:::{access.bucket}"
    rule = {"Effect": "Allow", "Principal": {"AWS": ["*"]}}
    rules = [
        rule | {"Action": [f"s3:{one}"], "Resource": [f"{where}/*" if one.endswith("Object") else where]}
        for one in actions
    ]
    body = json.dumps({"Version": "2012-10-17", "Statement": rules}).encode()
    host, now = urlsplit(access.endpoint).netloc, datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    signed = f"host:{host}\nx-amz-content-sha256:{digest}\nx-amz-date:{now}\n"
    names = "host;x-amz-content-sha256;x-amz-date"
    asked = hashlib.sha256(f"PUT\n/{access.bucket}\npolicy=\n{signed}\n{names}\n{digest}".encode())
    scope = f"{now[:8]}/{access.region}/s3/aws4_request"
    key = f"AWS4{access.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{asked.hexdigest()}"
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    who = f"Credential={access.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    headers = {
        "x-amz-content-sha256": digest,
        "x-amz-date": now,
        "authorization": f"AWS4-HMAC-SHA256 {who}",
    }
    url = f"{access.endpoint}/{access.bucket}?policy="
    request = urllib.request.Request(url, data=body, method="PUT", headers=headers)
    urllib.request.urlopen(request, timeout=10).close()


def _make_container(access: Access, key: str) -> None:
    """Ask for a container: https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key."""
    account, now = access.access_key, formatdate(usegmt=True)
    signed = (
        f"PUT{chr(10) * 12}x-ms-date:{now}\nx-ms-version:2021-08-06\n/{account}/{account}/{access.bucket}"
    )
    signature = hmac.new(b64decode(key), f"{signed}\nrestype:container".encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": now,
        "x-ms-version": "2021-08-06",
        "authorization": f"SharedKey {account}:{b64encode(signature).decode()}",
        "content-length": "0",
    }
    url = f"{access.endpoint}/{account}/{access.bucket}?restype=container"
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers), timeout=10).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 409:  # it is there
            raise
