"""From a location and the configuration to the place of an object store and of its catalog.

Of `[blob_store]`, what speaks of the provider (endpoint, credentials, times) counts for every location of that
provider; bucket, prefix, path and db_path count for the configured location alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from holdfast.backend.objects.credentials import AccountKey, SasToken
from holdfast.backend.objects.place import (
    SCHEMES,
    BucketPlace,
    check_bucket,
    check_endpoint,
    check_prefix,
    is_loopback,
)
from holdfast.config import BlobStore, Cache, Config
from holdfast.errors import InvalidConfig
from holdfast.secret import Secret

if TYPE_CHECKING:
    from urllib.parse import SplitResult

MEMORY_CATALOG: Final = ":memory:"
CATALOG_NAME: Final = "catalog.db"
CACHE_NAME: Final = "blocks.db"
CACHE_BYTES: Final = 1 << 30
_READ_BY_OBSTORE: Final = tuple(
    f"AZURE_STORAGE_{what}"
    for what in ("ACCOUNT_KEY", "ACCESS_KEY", "MASTER_KEY", "SAS_KEY", "SAS_TOKEN", "TOKEN", "CLIENT_SECRET")
)


def place_of(
    location: str, config: Config | None = None, *, environ: Mapping[str, str] = os.environ
) -> BucketPlace | None:
    """Give the place that a location means; None when it is no location of an object store.

    `InvalidConfig` says what is wrong with the location or with what is configured for its provider.
    """
    scheme, separator, rest = location.partition("://")
    provider = SCHEMES.get(scheme.lower())
    if not separator or provider is None:
        return None
    config = config or Config()
    store = config.blob_store if config.blob_store.type == provider else BlobStore(type=provider)
    if provider == "directory":
        place = BucketPlace("directory", path=_directory(location))
    else:
        bucket, _, prefix = rest.partition("/")
        place = BucketPlace(provider, check_bucket(bucket), check_prefix(prefix))
        complete = {"s3": _s3, "gcs": _gcs, "azure": _azure}[provider]
        place = complete(place, store, environ)
    return replace(
        place,
        timeout_seconds=store.timeout_seconds,
        retry_seconds=store.retry_seconds,
        max_requests=config.limits.max_requests,
        single_writer=store.single_writer,
    )


def catalog_of(place: BucketPlace, config: Config | None = None) -> str:
    """Give the path of the catalog of an object store, or `:memory:`; whoever opens it makes its directory.

    The configured `db_path` where the place is the configured one; for a directory `catalog.db` in it; else a file
    under the user's data directory, one for each service, bucket and prefix.
    """
    store = config.blob_store if config is not None else BlobStore()
    if config is not None and store.db_path is not None and config.location() == place.location:
        return store.db_path if store.db_path == MEMORY_CATALOG else os.path.abspath(store.db_path)
    if place.provider == "directory":
        return os.path.join(place.path, CATALOG_NAME)
    import platformdirs

    name = hashlib.sha256(place.identity.encode()).hexdigest()[:32]
    base = platformdirs.user_data_path("holdfast", appauthor=False)
    return str(base / "objects" / name / CATALOG_NAME)


def cache_of(place: BucketPlace, config: Config | None = None) -> tuple[str, int]:
    """Give the path of the file with cached blocks, and how many bytes may be in it; 0: there is none.

    Without a word a remote bucket has a GiB in one file for all stores of a user, and a directory has none: it is as
    near as the file would be.
    """
    cache = config.cache if config is not None else Cache()
    max_bytes = cache.max_bytes
    if max_bytes is None:
        max_bytes = 0 if place.provider == "directory" and cache.path is None else CACHE_BYTES
    if not max_bytes:
        return "", 0
    if cache.path is not None:
        return os.path.join(os.path.abspath(cache.path), CACHE_NAME), max_bytes
    import platformdirs

    return str(platformdirs.user_cache_path("holdfast", appauthor=False) / CACHE_NAME), max_bytes


def _directory(location: str) -> str:
    parts = urlsplit(location)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or parts.query or parts.fragment:
        raise InvalidConfig(
            f"{location:.200}: dir:// takes an absolute path, as in dir://{os.path.abspath('objects')}",
            location=location,
        )
    if "\0" in path:
        raise InvalidConfig("a path has no zero byte in it")
    return os.path.abspath(path)


def _s3(place: BucketPlace, store: BlobStore, environ: Mapping[str, str]) -> BucketPlace:
    from holdfast.config._aws import find

    found = find(store, environ)
    options: dict[str, str | bool] = {}
    endpoint, allow_http = _endpoint(found.endpoint, store.allow_http, environ.get("AWS_ALLOW_HTTP"))
    if found.region:
        options["region"] = found.region
    if endpoint is not None:
        host = f"{place.bucket}.{endpoint.netloc}" if store.virtual_host else endpoint.netloc
        url = endpoint._replace(netloc=host).geturl()
        # the second one of the environment would count over the first
        options |= {"endpoint": url, "aws_endpoint_url_s3": url}
    if store.virtual_host is not None:
        options["virtual_hosted_style_request"] = store.virtual_host
    if found.credentials is not None:
        options["skip_signature"] = False
    return replace(
        place,
        endpoint=endpoint.geturl() if endpoint is not None else "",
        options=tuple(options.items()),
        credentials=found.credentials,
        allow_http=allow_http,
        ca_file=found.ca_file,
    )


def _gcs(place: BucketPlace, store: BlobStore, environ: Mapping[str, str]) -> BucketPlace:
    options: dict[str, str | bool] = {}
    endpoint, allow_http = _endpoint(
        store.endpoint or environ.get("GOOGLE_BASE_URL") or "",
        store.allow_http,
        environ.get("GOOGLE_ALLOW_HTTP"),
    )
    if endpoint is not None:
        options["base_url"] = endpoint.geturl()
    if store.service_account is not None:
        for name in ("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN"):
            if environ.get(name):
                raise InvalidConfig(
                    f"service_account stands in [blob_store], and {name} is set, which would count over it: unset one"
                )
        if not Path(store.service_account).is_file():
            raise InvalidConfig(
                f"[blob_store] service_account: there is no file {store.service_account}",
                path=store.service_account,
            )
        options |= {"service_account": store.service_account, "skip_signature": False}
    return replace(
        place,
        endpoint=endpoint.geturl() if endpoint is not None else "",
        options=tuple(options.items()),
        allow_http=allow_http,
        ca_file=store.ca_file or "",
    )


def _azure(place: BucketPlace, store: BlobStore, environ: Mapping[str, str]) -> BucketPlace:
    connection = _connection(environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    account = (
        store.account
        or environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        or environ.get("AZURE_STORAGE_ACCOUNT")
        or connection.get("accountname")
        or ""
    )
    if not account:
        raise InvalidConfig(
            "no storage account for Azure: set account in [blob_store], AZURE_STORAGE_ACCOUNT_NAME or"
            " AZURE_STORAGE_CONNECTION_STRING"
        )
    # the service and the key of a connection string are those of its own account
    if connection.get("accountname", account) != account:
        connection = {}
    endpoint, allow_http = _endpoint(
        store.endpoint
        or environ.get("AZURE_STORAGE_ENDPOINT")
        or environ.get("AZURE_ENDPOINT")
        or connection.get("blobendpoint")
        or _azure_host(account, connection),
        store.allow_http,
        environ.get("AZURE_ALLOW_HTTP"),
    )
    options: dict[str, str | bool] = {"account_name": account}
    if endpoint is not None:
        options["endpoint"] = endpoint.geturl()
    credentials = _azure_credentials(store, environ, connection)
    if credentials is not None:
        options["skip_signature"] = False
    return replace(
        place,
        account=account,
        endpoint=endpoint.geturl() if endpoint is not None else "",
        options=tuple(options.items()),
        credentials=credentials,
        allow_http=allow_http,
        ca_file=store.ca_file or "",
    )


def _azure_host(account: str, connection: Mapping[str, str]) -> str:
    suffix = connection.get("endpointsuffix")
    return f"https://{account}.blob.{suffix}" if suffix else ""


def _azure_credentials(
    store: BlobStore, environ: Mapping[str, str], connection: Mapping[str, str]
) -> AccountKey | SasToken | None:
    if store.account_key is not None:
        return AccountKey(store.account_key)
    if store.sas_token is not None:
        return SasToken(store.sas_token)
    if any(environ.get(name) for name in _READ_BY_OBSTORE):
        return None
    if environ.get("AZURE_STORAGE_KEY"):
        return AccountKey(Secret(environ["AZURE_STORAGE_KEY"]))
    if connection.get("accountkey"):
        return AccountKey(Secret(connection["accountkey"]))
    if connection.get("sharedaccesssignature"):
        return SasToken(Secret(connection["sharedaccesssignature"]))
    return None


def _connection(text: str) -> dict[str, str]:
    """Read a connection string of Azure; keys in lower case."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {key.strip().lower(): value.strip() for key, _, value in pairs if key.strip() and value.strip()}


def _endpoint(text: str, allow_http: bool | None, variable: str | None) -> tuple[SplitResult | None, bool]:
    """Give the endpoint, and whether plain http is allowed: to this machine always, elsewhere when that is said."""
    said = (
        allow_http
        if allow_http is not None
        else (variable or "").strip().lower() in ("1", "true", "yes", "on")
    )
    if not text:
        return None, said
    parts = check_endpoint(text)
    if parts.scheme == "http" and not said and (allow_http is False or not is_loopback(parts.hostname or "")):
        raise InvalidConfig(
            f"endpoint {parts.geturl()} is plain http, where everybody on the way can read and change what is sent:"
            " use https, or say allow_http = true in [blob_store]"
        )
    return parts, said or parts.scheme == "http"
