"""Where things lie in a store's directory, and the file that says what it is (docs/format.md, "The directory")."""

from __future__ import annotations

import os
from typing import Any, Final

import msgspec

from holdfast import _native
from holdfast.backend.foreign import refuse_foreign
from holdfast.backend.log.disk import Disk
from holdfast.chunking import Chunking
from holdfast.errors import (
    Conflict,
    CorruptSegment,
    FormatError,
    InvalidConfig,
    NeedsReopen,
    StoreNotFound,
)
from holdfast.types import id_text, parse_id
from holdfast.wire.record import FORMAT_VERSION

STORE_FILE: Final = "store.json"
PUT_BACK: Final = "put a copy of it back, of whatever age: it never changes, and no other file says the same"
LOCK_FILE: Final = "lock"
CATALOG_FILE: Final = "catalog.db"
SEGMENTS: Final = "segments"
SESSIONS: Final = "sessions"
UPLOADS: Final = "uploads"
QUARANTINE: Final = "quarantine"
FEATURES: Final[frozenset[str]] = frozenset()
"""Features that a store may require of its readers and writers; this version knows none beyond the format itself."""
COMPRESSIONS: Final = ("none", "zstd")

MIN_SEGMENT_BYTES: Final = 64 << 10
MAX_SEGMENT_BYTES: Final = 1 << 30


class StoreFile(msgspec.Struct, frozen=True, kw_only=True):
    """What is fixed when a store is made.

    `features` names what every reader must understand, `write_features` what only those must that write.
    Keys that are not known are left alone.
    """

    format: int
    store_id: str
    created_ms: int
    chunking: dict[str, Any]
    compression: str
    features: list[str] = []
    write_features: list[str] = []
    crc32c: int = 0

    @property
    def id(self) -> bytes:
        return bytes.fromhex(self.store_id.replace("-", ""))


def segment_path(root: str, segment: int) -> str:
    """Give the path of a segment: its id as ten digits."""
    return f"{root}/{SEGMENTS}/{segment:010d}.seg"


def parse_segment_name(name: str) -> int | None:
    """Read the id out of a segment's file name; None for a foreign file."""
    stem, dot, suffix = name.partition(".")
    if suffix == "seg" and dot and len(stem) == 10 and stem.isascii() and stem.isdigit():
        return int(stem)
    return None


def list_segments(disk: Disk, root: str) -> list[int]:
    """Give the ids of the segments that are there, in order.

    `NeedsReopen` when the store was removed under its user, `CorruptSegment` when only its segments are gone.
    """
    path = f"{root}/{SEGMENTS}"
    try:
        names = disk.listdir(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if disk.stat(f"{root}/{STORE_FILE}") is None:
            raise NeedsReopen(f"the store at {root} was removed while it was open", path=root) from error
        raise CorruptSegment(
            f"{path} is gone, and with it what was stored there: bring it back, or restore a copy of the store",
            path=path,
        ) from error
    return sorted(filter(None, map(parse_segment_name, names)))


def encode_store_file(store: StoreFile) -> bytes:
    """Give the JSON of the store file with its checksum (of the same JSON with `crc32c` 0)."""
    sealed = msgspec.structs.replace(store, crc32c=_checksum(msgspec.to_builtins(store)))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n"


def _checksum(document: dict[str, Any]) -> int:
    """Sum what stands in the file, keys of newer versions included."""
    return _native.crc32c(msgspec.json.encode({**document, "crc32c": 0}))


def parse_store_file(data: bytes, path: str) -> StoreFile:
    """Read the store file; `FormatError` says why it cannot be this version's."""
    try:
        document = msgspec.json.decode(data)
        version = document["format"]
        if str(version).startswith("holdfast objects"):
            raise FormatError(f"{path} is a directory of objects: open it as dir://{path}", path=path)
        if version != FORMAT_VERSION:
            raise FormatError(
                f"the store at {path} has format {version}; this version of Holdfast reads {FORMAT_VERSION}:"
                " upgrade it",
                path=path,
            )
        if _checksum(document) != document["crc32c"]:
            raise FormatError(
                f"{path}/{STORE_FILE} is damaged: its checksum does not match; {PUT_BACK}", path=path
            )
        store = msgspec.convert(document, StoreFile)
        parse_id(store.store_id)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise FormatError(
            f"{path}/{STORE_FILE} is damaged or is no store file: {error}; {PUT_BACK}", path=path
        ) from error
    unknown = sorted(set(store.features) - FEATURES)
    if unknown:
        raise FormatError(
            f"the store at {path} needs a newer version of Holdfast (features: {', '.join(unknown)})",
            path=path,
        )
    if store.compression not in COMPRESSIONS:
        raise FormatError(f"the store at {path} has an unknown compression {store.compression!r}", path=path)
    return store


def check_writable(store: StoreFile, path: str) -> None:
    """Refuse to write where a newer version keeps what this one would break; reading is possible all the same."""
    unknown = sorted(set(store.write_features) - FEATURES)
    if unknown:
        raise FormatError(
            f"writing to the store at {path} needs a newer version of Holdfast (features: {', '.join(unknown)});"
            " this one can open it read-only",
            path=path,
        )


def read_store_file(disk: Disk, root: str) -> StoreFile:
    """Read what the store at `root` is; `StoreNotFound` or `FormatError` with the path otherwise."""
    try:
        handle = disk.open(f"{root}/{STORE_FILE}", "r")
    except (FileNotFoundError, NotADirectoryError):
        found = disk.stat(root)
        if found is None:
            raise StoreNotFound(
                f"there is no store at {root}: make one with `holdfast init` or open(…, create=True)",
                path=root,
            ) from None
        if not found.is_dir:
            raise FormatError(f"{root} is not a directory, so it is not a store", path=root) from None
        if not _is_unfinished(disk, root):
            if disk.stat(f"{root}/{STORE_FILE}") is not None:  # made just now
                return read_store_file(disk, root)
            refuse_foreign(disk, root)
            beside = disk.stat(f"{root}/{SEGMENTS}")
            lost = beside is not None and beside.is_dir and bool(disk.listdir(f"{root}/{SEGMENTS}"))
            raise FormatError(
                f"{root} is a directory, but not a Holdfast store ({STORE_FILE} is missing)"
                + (f", though it has segments: {PUT_BACK}" if lost else ""),
                path=root,
            ) from None
        raise StoreNotFound(
            f"there is no store at {root}, it is an empty directory, or one whose making broke off: make one"
            " with `holdfast init`",
            path=root,
        ) from None
    try:
        return parse_store_file(disk.pread(handle, 1 << 20, 0), root)
    finally:
        disk.close(handle)


_LEFTOVERS: Final = frozenset({SEGMENTS, SESSIONS, QUARANTINE, LOCK_FILE, STORE_FILE + ".new"})


def create_store(disk: Disk, root: str, *, chunking: Chunking, compression: str, now_ms: int) -> bool:
    """Make the directory of a new store; durable when it returns. Its store file comes last: without it, no store.

    An existing empty directory is taken, and what is left of one whose making broke off; anything else in it is
    `Conflict`. Of several that make it at once, one does: False when somebody else was first.
    """
    if compression not in COMPRESSIONS:
        raise InvalidConfig(f"compression is {compression!r}; it can be {' or '.join(COMPRESSIONS)}")
    found = disk.stat(root)
    if found is None:
        _make_directories(disk, root)
    elif not found.is_dir:
        raise Conflict(f"{root} exists and is not a directory", path=root)
    foreign = sorted(set(disk.listdir(root)) - _LEFTOVERS)
    if foreign and disk.stat(f"{root}/{STORE_FILE}") is None:
        raise Conflict(f"{root} is not empty ({foreign[0]} is there): choose another place", path=root)
    guard = disk.open(f"{root}/{LOCK_FILE}", "rw")
    try:
        disk.lock(guard, wait=True)
        if disk.stat(f"{root}/{STORE_FILE}") is not None:  # somebody was faster: there is one store, not two
            read_store_file(disk, root)
            return False
        _fill_directory(disk, root, chunking, compression, now_ms)
        return True
    finally:
        disk.close(guard)


def _is_unfinished(disk: Disk, root: str) -> bool:
    """Whether a directory without a store file is empty, or what is left of a store whose making broke off."""
    names = set(disk.listdir(root))
    return names <= _LEFTOVERS and (SEGMENTS not in names or not disk.listdir(f"{root}/{SEGMENTS}"))


def _fill_directory(disk: Disk, root: str, chunking: Chunking, compression: str, now_ms: int) -> None:
    for name in (SEGMENTS, SESSIONS, QUARANTINE):
        if disk.stat(f"{root}/{name}") is None:
            disk.mkdir(f"{root}/{name}")
    store = StoreFile(
        format=FORMAT_VERSION,
        store_id=id_text(os.urandom(16)),
        created_ms=now_ms,
        chunking=chunking.to_dict(),
        compression=compression,
    )
    temporary = f"{root}/{STORE_FILE}.new"
    handle = disk.open(temporary, "rw")
    try:
        disk.truncate(handle, 0)
        disk.pwrite(handle, [encode_store_file(store)], 0)
        disk.fsync(handle)
    finally:
        disk.close(handle)
    disk.fsync_dir(root)  # what is in the directory is durable before what says that it is a store
    disk.rename(temporary, f"{root}/{STORE_FILE}")
    disk.fsync_dir(root)
    disk.fsync_dir(os.path.dirname(root) or "/")


def _make_directories(disk: Disk, path: str) -> None:
    parent = os.path.dirname(path)
    if parent and parent != path and disk.stat(parent) is None:
        _make_directories(disk, parent)
        disk.fsync_dir(os.path.dirname(parent) or "/")
    try:
        disk.mkdir(path)
    except FileExistsError:
        pass
