"""From a place to an open bucket. obstore is imported here and in `remote`, only when it is needed."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from holdfast.backend.foreign import refuse_foreign
from holdfast.backend.log.disk import LocalDisk
from holdfast.backend.objects.bucket import Bucket, Requests
from holdfast.backend.objects.place import BucketPlace, is_loopback
from holdfast.errors import InvalidConfig

if TYPE_CHECKING:
    from obstore.store import ObjectStore

    from holdfast.backend.objects.remote import RemoteBucket

CONNECT_SECONDS: Final = 5
MAX_RETRIES: Final = 100


def open_bucket(place: BucketPlace, *, create: bool = False) -> Bucket:
    """Open the bucket of a place. A remote one is asked nothing yet; a directory is made, with `create`.

    `InvalidConfig` when the settings cannot be used, `StoreNotFound` when there is no such directory, `FormatError`
    when it is another program's.
    """
    if place.provider == "directory":
        refuse_foreign(LocalDisk(), place.path)
        from holdfast.backend.objects.directory import DirectoryBucket

        return DirectoryBucket(place.path, create=create, location=place.location, limit=place.max_requests)
    return open_remote(place)


def open_remote(place: BucketPlace) -> RemoteBucket:
    """Open a bucket of S3, GCS or Azure. Nothing is asked of it yet.

    `InvalidConfig` when credentials, certificates or names cannot be used.
    """
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, S3Store

    from holdfast.backend.objects.remote import RemoteBucket

    kinds: dict[str, Any] = {"s3": S3Store, "gcs": GCSStore, "azure": AzureStore}
    arguments = place.store_arguments()

    def make(timeout_seconds: float, retry_seconds: float, large: bool) -> ObjectStore:
        client = {
            **arguments["client_options"],
            "timeout": timedelta(seconds=timeout_seconds),
            "connect_timeout": timedelta(seconds=min(timeout_seconds, CONNECT_SECONDS)),
        }
        retries = {
            "max_retries": MAX_RETRIES if retry_seconds else 0,
            "retry_timeout": timedelta(seconds=retry_seconds),
        }
        config = {**arguments["config"], **(_how_to_guard(place) if large else {})}
        more = {**arguments, "config": config, "client_options": client, "retry_config": retries}
        store: ObjectStore = kinds[place.provider](place.bucket, prefix=place.prefix or None, **more)
        return store

    def abort_stale(before_ms: int, requests: Requests) -> int | None:
        from holdfast.backend.objects.stale import abort_stale_uploads

        aborted = abort_stale_uploads(place, time.time() - before_ms / 1000, requests)
        return None if aborted is None else len(aborted)

    try:
        return RemoteBucket(
            make,
            location=place.location,
            timeout_seconds=place.timeout_seconds,
            retry_seconds=place.retry_seconds,
            limit=place.max_requests,
            abort_stale=abort_stale,
        )
    except (BaseError, ValueError, TypeError) as error:
        raise InvalidConfig(
            f"{place.location}: obstore cannot use these settings ({type(error).__name__}): check account, keys, "
            "endpoint and region",
            location=place.location,
        ) from None


def _how_to_guard(place: BucketPlace) -> dict[str, str | bool]:
    """Choose how a large body to S3 is guarded on its way, when nobody has chosen.

    The SHA-256 that signs it by default costs client and server together two seconds of CPU for a GiB. TLS guards
    the way by itself. On the loopback a CRC-64 does, which servers of developers check; elsewhere not all of them do.
    """
    chosen = {name for name, _ in place.options} | {name.removeprefix("AWS_").lower() for name in os.environ}
    if place.provider != "s3" or chosen & {"unsigned_payload", "checksum_algorithm"}:
        return {}
    endpoint = urlsplit(place.endpoint)
    if endpoint.scheme != "http":
        return {"unsigned_payload": True}
    if is_loopback(endpoint.hostname or ""):
        return {"unsigned_payload": True, "checksum_algorithm": "CRC64NVME"}
    return {}


def memory_bucket(location: str = "memory", *, limit: int | None = None) -> RemoteBucket:
    """Make an empty bucket in memory."""
    from obstore.store import MemoryStore

    from holdfast.backend.objects.remote import RemoteBucket

    store = MemoryStore()
    return RemoteBucket(lambda *_: store, location=location, retry_seconds=0, limit=limit)
