"""Holdfast: bytes go in, are named by their BLAKE3 hash, stored once, and never come back unverified.

    with holdfast.open("./store", create=True) as store:
        artifact = store.put("model.safetensors", tags=["prod"])
        store.read(artifact.id)

Everything public is importable from here. Names are loaded when they are first used, so that importing the
package costs nothing that is not needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from holdfast.artifacts import Writer as Writer
    from holdfast.blobs import Blobs as Blobs
    from holdfast.blobs import Lease as Lease
    from holdfast.errors import *  # noqa: F403
    from holdfast.store import Store as Store
    from holdfast.store import create as create
    from holdfast.store import open_store as open
    from holdfast.types import Artifact as Artifact
    from holdfast.types import BlobFormat as BlobFormat
    from holdfast.types import BlobInfo as BlobInfo
    from holdfast.types import BlobStatus as BlobStatus
    from holdfast.types import Durability as Durability
    from holdfast.types import Hash as Hash
    from holdfast.types import Problem as Problem
    from holdfast.types import Progress as Progress
    from holdfast.types import PutItem as PutItem
    from holdfast.types import RecoveryStats as RecoveryStats
    from holdfast.types import Stats as Stats
    from holdfast.types import TreeReport as TreeReport
    from holdfast.types import VerifyReport as VerifyReport

_STORE: Final = {"Store": "Store", "create": "create", "open": "open_store"}
_ELSEWHERE: Final = {"Writer": "artifacts", "Blobs": "blobs", "Lease": "blobs"}
_VALUES: Final = (
    "Artifact BlobFormat BlobInfo BlobStatus Durability Hash Problem Progress PutItem RecoveryStats Stats"
    " TreeReport VerifyReport"
).split()
_ERRORS: Final = (
    "ArtifactNotFound BackendError BlobNotFound Conflict CorruptBlob CorruptSegment CorruptStream EmptyData"
    " FormatError HoldfastError IntegrityError InvalidConfig InvalidHash InvalidInput InvalidRange"
    " LocalProtocolError Locked MissingChunk NeedsReopen NoSpace NotFound PermissionDenied ProtocolError"
    " RangeNotAvailable RemoteProtocolError SourceNotFound StoreNotFound TagNotFound TooLarge Unavailable"
).split()

__all__ = [*_STORE, *_ELSEWHERE, *_VALUES, *_ERRORS, "__version__"]  # noqa: PLE0604  # names of four modules


def __getattr__(name: str) -> Any:
    if name in _STORE:
        value = getattr(import_module("holdfast.store"), _STORE[name])
    elif name in _ELSEWHERE:
        value = getattr(import_module(f"holdfast.{_ELSEWHERE[name]}"), name)
    elif name in _VALUES:
        value = getattr(import_module("holdfast.types"), name)
    elif name in _ERRORS:
        value = getattr(import_module("holdfast.errors"), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("holdfast")
    else:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
