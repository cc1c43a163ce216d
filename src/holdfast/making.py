"""From a path to an open store's core: the log store is made, or found and checked, and its catalog caught up."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

from holdfast.backend.log.backend import LogBackend
from holdfast.backend.log.disk import Disk, LocalDisk, is_network_filesystem
from holdfast.backend.log.layout import (
    CATALOG_FILE,
    MAX_SEGMENT_BYTES,
    MIN_SEGMENT_BYTES,
    SEGMENTS,
    StoreFile,
    create_store,
    read_store_file,
)
from holdfast.backend.log.reserve import Reserve
from holdfast.chunking import Chunking
from holdfast.core import Options
from holdfast.errors import Conflict, InvalidConfig, NoSpace, StoreNotFound
from holdfast.log_core import LogCore
from holdfast.recovery import CatalogKeeper
from holdfast.types import now_ms

log = logging.getLogger("holdfast")

DEFAULT_SEGMENT_BYTES: Final = 64 << 20
DEFAULT_COMPRESSION: Final = "zstd"
LOCK_TIMEOUT_SECONDS: Final = 30.0


class How(TypedDict, total=False):
    """How a log store is opened; what stands in it already must agree with `chunking` and `compression`."""

    create: bool
    """Make it where it is not there."""
    exist_ok: bool
    read_only: bool
    disk: Disk | None
    catalog_path: Path | str | None
    """"" is the store's own, None keeps the catalog in memory."""
    chunking: Chunking | None
    compression: str | None
    segment_bytes: int
    reserve_bytes: int | None
    """Kept for compaction on a full disk; None: a segment, or 5 % of the file system if that is less."""
    use_reserve: bool
    """Where the disk is too full to open the store, use the reserve: a part of it if that does, else all."""
    fsync: bool
    lock_timeout_seconds: float
    options: Options | None


def open_core(root: str, **how: Unpack[How]) -> LogCore:
    """Open the log store in a directory, on any disk."""
    segment_bytes = how.get("segment_bytes", DEFAULT_SEGMENT_BYTES)
    if not MIN_SEGMENT_BYTES <= segment_bytes <= MAX_SEGMENT_BYTES:
        raise InvalidConfig(
            f"segment_size_bytes is {segment_bytes}; {MIN_SEGMENT_BYTES} to {MAX_SEGMENT_BYTES} are allowed"
        )
    disk = how.get("disk")
    read_only = how.get("read_only", False)
    chunking, compression = how.get("chunking"), how.get("compression")
    used = LocalDisk() if disk is None else disk
    if how.get("create", False):
        _create(used, root, how.get("exist_ok", True), chunking, compression)
    store = read_store_file(used, root)
    _check_conflicts(root, store.chunking, store.compression, chunking, compression)
    if disk is None and not read_only and is_network_filesystem(root):
        raise InvalidConfig(
            f"{root} is on a network file system, where locks and fsync cannot be relied on: use a local disk,"
            " or read_only",
            path=root,
        )
    if disk is None:
        _look_at_rights(root)
    reserve = Reserve(used, root, how.get("reserve_bytes"), segment_bytes)
    try:
        return _open_core(root, used, store, segment_bytes, reserve, how)
    except NoSpace as error:
        if not reserve.held_bytes():
            raise
        if not how.get("use_reserve", False):
            raise NoSpace(
                f"{error}. `holdfast gc`, `holdfast compact` and `holdfast rm` may use what is kept in reserve"
                " (in Python: open with use_reserve=True); or open it read_only",
                **error.evidence,
            ) from error
    while reserve.lend():
        with suppress(NoSpace):
            return _open_core(root, used, store, segment_bytes, reserve, how)
    reserve.release()
    return _open_core(root, used, store, segment_bytes, reserve, how)


def _open_core(
    root: str, used: Disk, store: StoreFile, segment_bytes: int, reserve: Reserve, how: How
) -> LogCore:
    read_only = how.get("read_only", False)
    backend = LogBackend(
        used,
        root,
        store,
        read_only=read_only,
        segment_bytes=segment_bytes,
        reserve=reserve,
        fsync=how.get("fsync", True),
        lock_timeout_seconds=how.get("lock_timeout_seconds", LOCK_TIMEOUT_SECONDS),
    )
    catalog_path = how.get("catalog_path", "")
    where = Path(f"{root}/{CATALOG_FILE}") if catalog_path == "" else catalog_path
    keeper = CatalogKeeper(backend, Path(where) if where is not None else None)
    try:
        backend.attach(keeper.current, keeper.known_segments, keeper.apply)
        keeper.open()
    except BaseException:
        keeper.close()
        backend.abandon()
        raise
    return LogCore(backend, keeper, how.get("options") or Options())


def _look_at_rights(root: str) -> None:
    """Say when everybody may write where the store lies: then anybody can take its files away, or put others there."""
    for path in (root, f"{root}/{SEGMENTS}"):
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        if mode & 0o002:
            log.warning("everybody may write to %s: take that right away (chmod o-w)", path)


def _create(
    disk: Disk, root: str, exist_ok: bool, chunking: Chunking | None, compression: str | None
) -> None:
    try:
        read_store_file(disk, root)
        is_ours = False
    except StoreNotFound:
        is_ours = create_store(
            disk,
            root,
            chunking=chunking or Chunking.choose(),
            compression=DEFAULT_COMPRESSION if compression is None else compression,
            now_ms=now_ms(),
        )
    if not is_ours and not exist_ok:
        raise Conflict(f"there is a store at {root} already", path=root)


def _check_conflicts(
    root: str,
    has_chunking: dict[str, Any],
    has_compression: str,
    chunking: Chunking | None,
    compression: str | None,
) -> None:
    """An option that was given and is not what the store was made with is an error, not a silent difference."""
    if chunking is not None and chunking != Chunking.from_dict(has_chunking):
        raise InvalidConfig(
            f"the store at {root} was made with chunking {has_chunking}, which cannot be changed", path=root
        )
    if compression is not None and compression != has_compression:
        raise InvalidConfig(
            f"the store at {root} was made with compression {has_compression!r}, which cannot be changed",
            path=root,
        )
