"""From a bucket to an open store's core: its identity is made, or found and checked, and its catalog opened."""

from __future__ import annotations

import logging
import os
from itertools import islice
from pathlib import Path
from typing import Final

from holdfast.backend.objects.backend import ObjectBackend
from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.cache import BlockCache
from holdfast.backend.objects.ends import make_ends
from holdfast.backend.objects.layout import (
    ARTIFACTS,
    BLOBS,
    COLLECTOR_KEY,
    COMMITS,
    DAMAGED,
    IDENTITY_KEY,
    MAX_IDENTITY_BYTES,
    PARTS,
    TAGS,
    UPLOADS,
    WRITER_KEY,
    Identity,
    encode_identity,
    parse_blob_key,
    parse_identity,
)
from holdfast.backend.objects.probe import honours_conditions
from holdfast.backend.objects.single_writer import SingleWriter
from holdfast.core import Options
from holdfast.errors import (
    Conflict,
    CorruptObject,
    FormatError,
    InvalidConfig,
    PermissionDenied,
    StoreNotFound,
)
from holdfast.object_core import ObjectCore
from holdfast.object_recovery import CONDITIONS, ObjectKeeper
from holdfast.types import Durability, now_ms

log = logging.getLogger("holdfast")

OURS: Final = (
    ARTIFACTS,
    BLOBS,
    COMMITS,
    DAMAGED,
    PARTS,
    TAGS,
    UPLOADS,
    "check/",
    "catalog.db",
    IDENTITY_KEY,
    COLLECTOR_KEY,
    WRITER_KEY,
)
LOOKED_AT: Final = 1_000


def open_object_core(
    bucket: Bucket,
    catalog_path: Path | None,
    *,
    create: bool = False,
    exist_ok: bool = True,
    read_only: bool = False,
    options: Options | None = None,
    durability: Durability = Durability.STORED,
    directory: str | None = None,
    cache: BlockCache | None = None,
    single_writer: str | None = None,
) -> ObjectCore:
    """Open the store in a bucket, which is the core's from then on.

    `create` makes it where there is none, also around blobs that are there already. `single_writer`: the service
    is not relied on to honour conditions, one process alone writes (`SingleWriter`, whose name it is).
    `StoreNotFound`, `FormatError`, `Conflict` (with `exist_ok` false, or when something else lies there), and what the
    bucket raises.
    """
    if single_writer is not None and not read_only:
        bucket = SingleWriter(bucket, single_writer)
    is_checked = False
    try:
        identity = _find_identity(bucket)
        if identity is not None and create and not exist_ok:
            raise Conflict(f"there is a store at {bucket.location} already", path=bucket.location)
        if identity is None:
            if not create or read_only:
                raise StoreNotFound(
                    f"there is no store at {bucket.location}: `holdfast init` or create=True makes one"
                    + (
                        ", around the blobs that are there"
                        if any(map(_is_blob, islice(bucket.list(BLOBS), LOOKED_AT)))
                        else ""
                    ),
                    path=bucket.location,
                )
            is_checked = not isinstance(bucket, SingleWriter)
            if is_checked:
                _check_conditions(bucket)  # before anything is there
            identity = _make_identity(bucket)
        if not identity.is_writable and not read_only:
            raise FormatError(
                f"a newer Holdfast alone may write to the store at {bucket.location}: use that one, or open it"
                " read_only",
                path=bucket.location,
            )
        backend = ObjectBackend(bucket, read_only=read_only, cache=cache)
        try:
            keeper = _open_keeper(backend, identity.id, catalog_path, is_checked=is_checked)
            return ObjectCore(backend, keeper, options or Options(), durability, directory)
        except BaseException:
            backend.pool.shutdown()
            raise
    except BaseException:
        bucket.close()
        raise


def _open_keeper(
    backend: ObjectBackend, store_id: bytes, path: Path | None, *, is_checked: bool
) -> ObjectKeeper:
    """Open the catalog, and see that writers are kept apart; where the bucket may not be written, to read alone."""
    if backend.read_only:
        return _try_keeper(backend, store_id, path, read_only=True)
    try:
        keeper = _try_keeper(backend, store_id, path, read_only=False)
        try:
            _see_to_conditions(backend.bucket, keeper, is_checked=is_checked)
        except BaseException:
            keeper.close()
            raise
        return keeper
    except PermissionDenied as error:
        refused = _refused_write(backend.bucket)
        if refused is None:
            raise  # something else is not allowed
        backend.read_only, backend.refused = True, refused
        log.warning("%s is opened read-only: %s", backend.bucket.location, error)
    try:
        return _try_keeper(backend, store_id, path, read_only=False)  # the catalog may be ours all the same
    except PermissionDenied:
        return _try_keeper(backend, store_id, path, read_only=True)


def _try_keeper(
    backend: ObjectBackend, store_id: bytes, path: Path | None, *, read_only: bool
) -> ObjectKeeper:
    keeper = ObjectKeeper(backend, store_id, path, read_only=read_only)
    try:
        keeper.open()
    except BaseException:
        keeper.close()
        raise
    return keeper


def _refused_write(bucket: Bucket) -> PermissionDenied | None:
    """Give how a bucket refuses to be written; None where it does not."""
    try:
        honours_conditions(bucket)
    except PermissionDenied as error:
        return error
    return None


def _is_blob(meta: Meta) -> bool:
    return parse_blob_key(meta.key) is not None


def _find_identity(bucket: Bucket) -> Identity | None:
    found = bucket.get(IDENTITY_KEY, max_bytes=MAX_IDENTITY_BYTES)
    try:
        return None if found is None else parse_identity(found[0], bucket.location)
    except CorruptObject:  # wrong bytes are asked for once more
        found = bucket.get(IDENTITY_KEY, max_bytes=MAX_IDENTITY_BYTES)
        return None if found is None else parse_identity(found[0], bucket.location)


def _make_identity(bucket: Bucket) -> Identity:
    """Make the store, unless somebody else is quicker: then it is theirs."""
    strange = [meta.key for meta in islice(bucket.list(""), LOOKED_AT) if not meta.key.startswith(OURS)]
    if strange:
        raise Conflict(
            f"{bucket.location} holds other objects ({strange[0]!r:.100}): give the store a prefix of its own,"
            " or move them away",
            path=bucket.location,
        )
    make_ends(bucket)
    identity = Identity(os.urandom(16), now_ms())
    if bucket.create(IDENTITY_KEY, encode_identity(identity)) is not None:
        return identity
    found = _find_identity(bucket)
    if found is None:
        raise FormatError(f"{IDENTITY_KEY} at {bucket.location} was made and removed meanwhile: try again")
    return found


def _see_to_conditions(bucket: Bucket, keeper: ObjectKeeper, *, is_checked: bool) -> None:
    """See once, for each catalog, that the bucket keeps two writers apart."""
    if isinstance(bucket, SingleWriter) or keeper.current().get_meta(CONDITIONS) is not None:
        return
    if not is_checked:
        _check_conditions(bucket)
    keeper.current().set_meta(CONDITIONS, 1)


def _check_conditions(bucket: Bucket) -> None:
    """Refuse a service that does not keep two writers apart."""
    seen = honours_conditions(bucket)
    if not (seen.create_if_absent and seen.replace_if_match):
        what = "create-if-absent" if not seen.create_if_absent else "If-Match"
        raise InvalidConfig(
            f"the service at {bucket.location} does not honour {what}: two writers would overwrite each other"
            " unnoticed. Use a service that does (`holdfast config check` shows what works), open it read_only, or, if"
            " this machine alone writes to it, set single_writer = true in [blob_store]",
            path=bucket.location,
        )
