"""What can be configured, where it comes from, and which of several answers counts.

Only plain values live here: without a file and without variables nothing heavy is imported. `_load` brings
pydantic, and only when there is something to validate. Arguments over `HOLDFAST_…` variables over a file over
the defaults below; the first `holdfast.toml` found counts (working directory, then the platform's directory).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from holdfast.config._values import Between
from holdfast.errors import NotFound, PermissionDenied
from holdfast.secret import Secret

__all__ = [
    "BlobStore", "Cache", "Config", "Gc", "Limits", "Log", "Secret", "default_location", "find_file", "load",
]  # fmt: skip

FILE_NAME: Final = "holdfast.toml"
PREFIX: Final = "HOLDFAST_"
VARIABLES: Final = ("HOLDFAST_STORE", "HOLDFAST_CONFIG", "HOLDFAST_DEBUG", "HOLDFAST_SERVERS")
"""Variables that are no settings. Settings have two underscores: `HOLDFAST_LOG__FSYNC`."""

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_GIB: Final = 1024 * _MIB
_YEAR_SECONDS: Final = 366 * 86_400
_STRICT: Final = {"extra": "forbid"}

StoreType = Literal["legacy", "filesystem", "directory", "s3", "gcs", "azure", "memory"]
_REMOTE_KEYS: Final = (
    "prefix", "endpoint", "allow_http", "ca_file", "db_path", "timeout_seconds", "retry_seconds", "single_writer",
)  # fmt: skip
_S3_KEYS: Final = (
    "bucket", "region", "profile", "access_key", "secret_key", "session_token", "virtual_host",
)  # fmt: skip
STORE_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "legacy": (),
    "filesystem": ("path",),
    "directory": ("path", "db_path"),
    "s3": (*_S3_KEYS, *_REMOTE_KEYS),
    "gcs": ("bucket", "service_account", *_REMOTE_KEYS),
    "azure": ("container", "account", "account_key", "sas_token", *_REMOTE_KEYS),
    "memory": (),
}
"""Which keys of `[blob_store]` go with which type."""
REQUIRED_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "directory": ("path",),
    "s3": ("bucket",),
    "gcs": ("bucket",),
    "azure": ("container",),
}
SECRET_KEYS: Final = ("access_key", "secret_key", "session_token", "account_key", "sas_token")
OPEN_SECRETS: Final = ("access_key",)
"""Those that may stand in a file that others can read: they name who asks, and prove nothing."""


@dataclass(frozen=True, slots=True)
class BlobStore:
    """`[blob_store]`: where the bytes live. What is None comes from the provider's usual variables and files."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    type: StoreType = "legacy"
    path: str | None = None
    bucket: str | None = None
    container: str | None = None
    account: str | None = None
    prefix: str | None = None
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    access_key: Secret | None = None
    secret_key: Secret | None = None
    session_token: Secret | None = None
    account_key: Secret | None = None
    sas_token: Secret | None = None
    service_account: str | None = None
    virtual_host: bool | None = None
    allow_http: bool | None = None
    ca_file: str | None = None
    db_path: str | None = None
    timeout_seconds: Annotated[float, Between(0.1, 3600)] = 30
    retry_seconds: Annotated[float, Between(0, 86_400)] = 120
    single_writer: bool = False


@dataclass(frozen=True, slots=True)
class Log:
    """`[log]`: how a local store writes. The last three count when a store is made."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    segment_size_bytes: Annotated[int, Between(64 * _KIB, _GIB)] = 64 * _MIB
    fsync: bool = True
    reserve_bytes: Annotated[int, Between(0, 1 << 50)] | None = None
    chunking: Literal["fastcdc", "fixed", "whole"] | None = None
    chunk_size_bytes: Annotated[int, Between(4 * _KIB, 16 * _MIB)] | None = None
    compression: Literal["none", "zstd"] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """`[limits]`: what may come in. An upload that nobody goes on with expires so long after its last write.

    `max_requests`: how many requests one opening of an object store may make. `max_spool_bytes`: how much of what is
    put into one may wait in temporary files.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    max_artifact_bytes: Annotated[int, Between(1, 1 << 62)] | None = None
    max_artifacts: Annotated[int, Between(1, 1 << 62)] | None = None
    default_content_type: str | None = None
    allow_empty: bool = False
    checksum: Literal["none", "sha256"] = "none"
    upload_expiry_seconds: Annotated[float, Between(1, 100 * _YEAR_SECONDS)] = 7 * 86_400
    max_requests: Annotated[int, Between(1, 1 << 62)] | None = None
    max_spool_bytes: Annotated[int, Between(64 * _MIB, 1 << 62)] = 4 * _GIB


@dataclass(frozen=True, slots=True)
class Gc:
    """`[gc]`: collection. `min_age_seconds` is the undo window of what was deleted.

    `partial_age_seconds`: how long a partial blob to which nothing is added is kept, and one that a stream completed
    is held for a name by the process that took it in.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    enabled: bool = True
    interval_seconds: Annotated[float, Between(1, _YEAR_SECONDS)] = 3600
    batch_size: Annotated[int, Between(1, 1_000_000)] = 10_000
    min_age_seconds: Annotated[float, Between(0, 100 * _YEAR_SECONDS)] = 86_400
    partial_age_seconds: Annotated[float, Between(0, 100 * _YEAR_SECONDS)] = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Cache:
    """`[cache]`: the local copies of what an object store holds."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    max_bytes: Annotated[int, Between(0, 1 << 62)] | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that is configured, checked."""

    blob_store: BlobStore = field(default_factory=BlobStore)
    log: Log = field(default_factory=Log)
    limits: Limits = field(default_factory=Limits)
    gc: Gc = field(default_factory=Gc)
    cache: Cache = field(default_factory=Cache)
    file: Path | None = None
    """The file that was read."""

    @property
    def is_default_location(self) -> bool:
        """Whether the configuration names no place of its own."""
        return self.blob_store.type in ("legacy", "filesystem") and self.blob_store.path is None

    def location(self) -> str:
        """Give the location that `holdfast.open` takes."""
        store = self.blob_store
        if store.type == "memory":
            return "memory://"
        if store.type == "legacy" or store.type == "filesystem":
            return store.path if store.path is not None else str(default_location())
        from holdfast.backend.objects.place import check_prefix, location_of

        if store.type == "directory":
            return location_of("directory", os.path.abspath(store.path or "."))
        name = store.container if store.type == "azure" else store.bucket
        return location_of(store.type, name or "", check_prefix(store.prefix or ""))


def default_location() -> Path:
    """Give the place of the store that is used when nobody names one."""
    import platformdirs

    return platformdirs.user_data_path("holdfast", appauthor=False) / "store"


def find_file(
    path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ
) -> Path | None:
    """Give the file that counts: the one that is named (which must be there), or the first that exists.

    A place that may not be looked at is passed over, with a warning, unless it is the one that is named.
    """
    named = path or environ.get("HOLDFAST_CONFIG") or None
    if named is not None:
        try:
            there = Path(named).is_file()
        except PermissionError as error:
            raise PermissionDenied(
                f"{os.fspath(named)}: no permission to look it up", path=os.fspath(named), errno=error.errno
            ) from error
        if not there:
            raise NotFound(f"there is no configuration file {os.fspath(named)}", path=os.fspath(named))
        return Path(named)
    here = Path(FILE_NAME)
    if _is_there(here):
        return here
    user = _user_directory(environ) / FILE_NAME
    return user if _is_there(user) else None


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except PermissionError:
        import logging

        logging.getLogger("holdfast").warning("%s may not be looked up: it does not count", file)
        return False


def _user_directory(environ: Mapping[str, str]) -> Path:
    """Give the platform's configuration directory; on Linux as platformdirs does, without the time to import it."""
    system: str = sys.platform
    if system == "linux":
        base = environ.get("XDG_CONFIG_HOME", "").strip()
        return (Path(base) if base else Path("~/.config").expanduser()) / "holdfast"
    import platformdirs

    return platformdirs.user_config_path("holdfast", appauthor=False)


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Read the configuration.

    `path` names a file in place of the search; `overrides` (section, key, value) count over everything else.
    `InvalidConfig` names the file or variable, the key, and what is allowed. Secrets are not read yet.
    """
    file = find_file(path, environ)
    ours = {name for name in environ if name.startswith(PREFIX) and name not in VARIABLES}
    if file is None and not ours and not overrides:
        return Config()
    from holdfast.config._load import load_settings

    return load_settings(file, environ, overrides or {})
