"""Directories that other programs keep, known by name before they are taken for a store or for room for one."""

from __future__ import annotations

import re
from typing import Final

from holdfast.backend.log.disk import Disk
from holdfast.errors import FormatError, HoldfastError

_REDB_MAGIC: Final = b"redb\x1a\x0a\xa9\x0d\x0a"
_IROH_FILE: Final = re.compile(r"[0-9a-f]{64}\.(data|obao4|sizes4|bitfield)")


def refuse_foreign(disk: Disk, root: str) -> None:
    """Raise `FormatError` when a directory holds the file store of iroh-blobs: nothing is written beside it.

    Known by its database (`blobs.db`, of redb), or by the names of its files (`data/HASH.data` and the like).
    """
    if _is_iroh(disk, root):
        raise FormatError(
            f"{root} holds an iroh-blobs file store, which this version of Holdfast neither opens nor changes"
            " (taking its blobs over is to come): choose another place for a Holdfast store",
            path=root,
            found="iroh-blobs",
        )


def _is_iroh(disk: Disk, root: str) -> bool:
    try:
        handle = disk.open(f"{root}/blobs.db", "r")
        try:
            if disk.pread(handle, len(_REDB_MAGIC), 0) == _REDB_MAGIC:
                return True
        finally:
            disk.close(handle)
    except (OSError, HoldfastError):
        pass  # not there, or not ours to read: its other files may tell
    try:
        return any(map(_IROH_FILE.fullmatch, disk.listdir(f"{root}/data")))
    except (OSError, HoldfastError):
        return False
