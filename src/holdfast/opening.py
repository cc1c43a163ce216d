"""Making and opening stores: what a location means, and how the configuration becomes options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from holdfast.arguments import path_of
from holdfast.backend.memory import MemoryDisk
from holdfast.chunking import Chunking
from holdfast.core import Options
from holdfast.errors import InvalidConfig, InvalidInput
from holdfast.store import Store
from holdfast.types import Durability

if TYPE_CHECKING:
    from holdfast.config import Config

OBJECT_SCHEMES: Final = frozenset({"s3", "gs", "az", "dir"})
"""The kinds of locations that are object stores."""


def create(
    location: str | os.PathLike[str],
    *,
    chunking: str | None = None,
    chunk_size_bytes: int | None = None,
    compression: str | None = None,
    exist_ok: bool = False,
    config: Config | None = None,
) -> Store:
    """Make a store and open it. What is chosen here is recorded in the store and holds for good.

    `chunking`: "fastcdc" (the default), "fixed" or "whole"; `compression`: "zstd" (the default) or "none".
    `Conflict` when there is one already, unless `exist_ok`.
    """
    wanted = _wanted_chunking(chunking, chunk_size_bytes)
    return _open_at(
        location, create=True, exist_ok=exist_ok, chunking=wanted, compression=compression, config=config
    )


def open(
    location: str | os.PathLike[str] | None = None,
    *,
    create: bool = False,
    read_only: bool = False,
    use_reserve: bool = False,
    catalog: str | os.PathLike[str] | None = None,
    config: Config | None = None,
) -> Store:
    """Open the store at a location; without one, the configured one.

    `create=True` makes it if it is not there. `read_only` takes no lock and has no session: a collection that
    another process runs does not wait for it. `catalog` says where that of an object store lies: a path, or
    ":memory:". A bucket that does not let us write is opened read-only, with a warning. `use_reserve`: where the
    disk is too full to open a store, use its reserve; for who goes on to delete, collect or compact.
    `StoreNotFound`, `FormatError`, `PermissionDenied`.
    """
    if location is None:
        if config is None:
            from holdfast.config import load

            config = load()
        location = config.location()
    log = config.log if config is not None and create else None
    return _open_at(
        location,
        catalog=catalog,
        create=create,
        read_only=read_only,
        use_reserve=use_reserve,
        chunking=_wanted_chunking(log.chunking, log.chunk_size_bytes) if log else None,
        compression=log.compression if log else None,
        config=config,
    )


def _open_at(
    location: str | os.PathLike[str],
    *,
    catalog: str | os.PathLike[str] | None = None,
    create: bool = False,
    exist_ok: bool = True,
    read_only: bool = False,
    use_reserve: bool = False,
    chunking: Chunking | None,
    compression: str | None,
    config: Config | None,
) -> Store:
    text = path_of("the location", location)
    if config is not None and not hasattr(config, "limits"):
        raise InvalidConfig(f"config is what holdfast.config.load gives, not {type(config).__name__}")
    common: dict[str, Any] = {"create": create, "exist_ok": exist_ok, "read_only": read_only}
    if config is not None:
        common["options"] = _options(config)
    scheme, separator, _ = text.partition("://")
    if separator and scheme.lower() in OBJECT_SCHEMES:
        return _open_objects(text, catalog, config, chunking, compression, common)
    if catalog is not None:
        raise InvalidConfig("the catalog of a local store belongs to it; `catalog` is for object stores")
    common |= {"chunking": chunking, "compression": compression, "use_reserve": use_reserve}
    if config is not None:
        common |= {
            "segment_bytes": config.log.segment_size_bytes,
            "reserve_bytes": config.log.reserve_bytes,
            "fsync": config.log.fsync,
        }
    if text == "memory://":
        common |= {"create": True, "fsync": False, "reserve_bytes": 0}
        return Store._open("/memory", disk=MemoryDisk(), catalog_path=None, location=text, **common)
    path = _local_path(text)
    reopen = {"read_only": read_only, "config": config}
    return Store._open(path, location=os.path.abspath(path), reopen=reopen, **common)


def _open_objects(
    text: str,
    catalog: str | os.PathLike[str] | None,
    config: Config | None,
    chunking: Chunking | None,
    compression: str | None,
    common: dict[str, Any],
) -> Store:
    """Open a store in a bucket, or in a directory of objects."""
    from holdfast.backend.objects.cache import MEMORY_BYTES, BlockCache, BlockFile
    from holdfast.backend.objects.opening import open_bucket
    from holdfast.config.places import MEMORY_CATALOG, cache_of, catalog_of, place_of

    if chunking is not None or compression not in (None, "none"):
        raise InvalidConfig(
            f"{text}: blobs are whole objects in a bucket; chunking and compression are for local stores",
            location=text,
        )
    place = place_of(text, config)
    assert place is not None, "the scheme is one of theirs"
    where = os.fspath(catalog) if catalog is not None else catalog_of(place, config)
    is_directory = place.provider == "directory"
    cache_path, cache_bytes = cache_of(place, config)
    off = config is not None and config.cache.max_bytes == 0
    cache = BlockCache(
        0 if off else MEMORY_BYTES, BlockFile(Path(cache_path), cache_bytes) if cache_bytes else None
    )
    return Store._open_objects(
        open_bucket(place, create=common["create"]),
        None if where == MEMORY_CATALOG else Path(where),
        location=text,
        reopen={"read_only": common["read_only"], "config": config, "catalog": catalog},
        durability=Durability.FSYNCED if is_directory else Durability.STORED,
        directory=place.path if is_directory else None,
        cache=cache,
        single_writer=place.identity if place.single_writer and not is_directory else None,
        **common,
    )


def _options(config: Config) -> Options:
    limits = config.limits
    return Options(
        limits.max_artifact_bytes,
        limits.max_artifacts,
        limits.default_content_type,
        limits.allow_empty,
        limits.checksum,
        upload_expiry_seconds=limits.upload_expiry_seconds,
        min_age_seconds=config.gc.min_age_seconds,
        partial_age_seconds=config.gc.partial_age_seconds,
        gc_batch_size=config.gc.batch_size,
        gc_interval_seconds=config.gc.interval_seconds,
        gc_enabled=config.gc.enabled,
        max_spool_bytes=limits.max_spool_bytes,
    )


def _local_path(text: str) -> str:
    scheme, separator, _ = text.partition("://")
    if not separator:
        if not text or "\0" in text:
            raise InvalidInput(f"not a location: {text!r:.200}")
        kind = text.partition(":/")[0].lower()
        if kind in OBJECT_SCHEMES and text[len(kind) : len(kind) + 2] == ":/":
            # else a local store would be made where a bucket was meant
            raise InvalidInput(
                f"{kind}:/… is no location: it takes two slashes, as in {kind}://…; a path of that name is ./{kind}:/…"
            )
        return text
    if scheme == "file":
        from urllib.parse import unquote, urlsplit

        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            # what stands before the path may hold a secret, and is not repeated
            raise InvalidInput(f"file://…{parts.path} names another host; only local paths are opened")
        return unquote(parts.path)
    raise InvalidInput(
        f"{scheme}://…: unknown kind of location; a path, file://, dir://, s3://, gs://, az:// and memory:// can be"
        " opened"
    )


def _wanted_chunking(kind: str | None, chunk_size_bytes: int | None) -> Chunking | None:
    if kind is None and chunk_size_bytes is None:
        return None
    return Chunking.choose(kind or "fastcdc", chunk_size_bytes)
