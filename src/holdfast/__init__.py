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

__version__: str

if TYPE_CHECKING:
    from holdfast.artifacts import Writer as Writer
    from holdfast.bitfield import Bitfield as Bitfield
    from holdfast.blobs import Blobs as Blobs
    from holdfast.blobs import Lease as Lease
    from holdfast.errors import ArtifactNotFound as ArtifactNotFound
    from holdfast.errors import BackendError as BackendError
    from holdfast.errors import BlobNotFound as BlobNotFound
    from holdfast.errors import Conflict as Conflict
    from holdfast.errors import CorruptBlob as CorruptBlob
    from holdfast.errors import CorruptObject as CorruptObject
    from holdfast.errors import CorruptSegment as CorruptSegment
    from holdfast.errors import CorruptStream as CorruptStream
    from holdfast.errors import EmptyData as EmptyData
    from holdfast.errors import FormatError as FormatError
    from holdfast.errors import HoldfastError as HoldfastError
    from holdfast.errors import IntegrityError as IntegrityError
    from holdfast.errors import InvalidConfig as InvalidConfig
    from holdfast.errors import InvalidHash as InvalidHash
    from holdfast.errors import InvalidInput as InvalidInput
    from holdfast.errors import InvalidRange as InvalidRange
    from holdfast.errors import LocalProtocolError as LocalProtocolError
    from holdfast.errors import Locked as Locked
    from holdfast.errors import MissingChunk as MissingChunk
    from holdfast.errors import NeedsReopen as NeedsReopen
    from holdfast.errors import NoSpace as NoSpace
    from holdfast.errors import NotFound as NotFound
    from holdfast.errors import PermissionDenied as PermissionDenied
    from holdfast.errors import ProtocolError as ProtocolError
    from holdfast.errors import RangeNotAvailable as RangeNotAvailable
    from holdfast.errors import RemoteProtocolError as RemoteProtocolError
    from holdfast.errors import SourceNotFound as SourceNotFound
    from holdfast.errors import StoreNotFound as StoreNotFound
    from holdfast.errors import TagNotFound as TagNotFound
    from holdfast.errors import TooLarge as TooLarge
    from holdfast.errors import Unavailable as Unavailable
    from holdfast.errors import UnreadableRoot as UnreadableRoot
    from holdfast.errors import UploadNotFound as UploadNotFound
    from holdfast.opening import create as create
    from holdfast.opening import open as open
    from holdfast.ranges import ChunkRanges as ChunkRanges
    from holdfast.reports import Ailment as Ailment
    from holdfast.reports import ArtifactStats as ArtifactStats
    from holdfast.reports import Chain as Chain
    from holdfast.reports import CompactReport as CompactReport
    from holdfast.reports import Forecast as Forecast
    from holdfast.reports import GcReport as GcReport
    from holdfast.reports import Health as Health
    from holdfast.reports import KeptSegment as KeptSegment
    from holdfast.reports import Mended as Mended
    from holdfast.reports import Problem as Problem
    from holdfast.reports import RecoveryStats as RecoveryStats
    from holdfast.reports import RefreshStats as RefreshStats
    from holdfast.reports import RepairReport as RepairReport
    from holdfast.reports import ScrubReport as ScrubReport
    from holdfast.reports import SegmentShare as SegmentShare
    from holdfast.reports import SharedWith as SharedWith
    from holdfast.reports import Stats as Stats
    from holdfast.reports import TreeReport as TreeReport
    from holdfast.reports import VerifyReport as VerifyReport
    from holdfast.reports import Waiting as Waiting
    from holdfast.resumable import ResumableWriter as ResumableWriter
    from holdfast.store import Store as Store
    from holdfast.tags import Tags as Tags
    from holdfast.types import KEEP as KEEP
    from holdfast.types import Artifact as Artifact
    from holdfast.types import BlobFormat as BlobFormat
    from holdfast.types import BlobInfo as BlobInfo
    from holdfast.types import BlobStatus as BlobStatus
    from holdfast.types import Durability as Durability
    from holdfast.types import Hash as Hash
    from holdfast.types import LabelCount as LabelCount
    from holdfast.types import Progress as Progress
    from holdfast.types import PutItem as PutItem
    from holdfast.types import SeqInfo as SeqInfo
    from holdfast.types import Tag as Tag
    from holdfast.types import Upload as Upload

_ELSEWHERE: Final = {
    "Store": "store",
    "create": "opening",
    "open": "opening",
    "Writer": "artifacts",
    "Bitfield": "bitfield",
    "Blobs": "blobs",
    "ChunkRanges": "ranges",
    "Lease": "blobs",
    "ResumableWriter": "resumable",
    "Tags": "tags",
}
_VALUES: Final = (
    "Artifact",
    "BlobFormat",
    "BlobInfo",
    "BlobStatus",
    "Durability",
    "Hash",
    "KEEP",
    "LabelCount",
    "Progress",
    "PutItem",
    "SeqInfo",
    "Tag",
    "Upload",
)
_REPORTS: Final = (
    "Chain",
    "CompactReport",
    "Forecast",
    "GcReport",
    "KeptSegment",
    "Problem",
    "RecoveryStats",
    "RefreshStats",
    "SharedWith",
    "ScrubReport",
    "RepairReport",
    "Mended",
    "Health",
    "ArtifactStats",
    "Ailment",
    "SegmentShare",
    "Stats",
    "TreeReport",
    "VerifyReport",
    "Waiting",
)
_ERRORS: Final = (
    "ArtifactNotFound",
    "BackendError",
    "BlobNotFound",
    "Conflict",
    "CorruptBlob",
    "CorruptObject",
    "CorruptSegment",
    "CorruptStream",
    "EmptyData",
    "FormatError",
    "HoldfastError",
    "IntegrityError",
    "InvalidConfig",
    "InvalidHash",
    "InvalidInput",
    "InvalidRange",
    "LocalProtocolError",
    "Locked",
    "MissingChunk",
    "NeedsReopen",
    "NoSpace",
    "NotFound",
    "PermissionDenied",
    "ProtocolError",
    "RangeNotAvailable",
    "RemoteProtocolError",
    "SourceNotFound",
    "StoreNotFound",
    "TagNotFound",
    "TooLarge",
    "Unavailable",
    "UnreadableRoot",
    "UploadNotFound",
)

__all__ = [*_ELSEWHERE, *_VALUES, *_REPORTS, *_ERRORS, "__version__"]  # noqa: PLE0604  # the names of all modules that stand behind this one


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        value = getattr(import_module(f"holdfast.{_ELSEWHERE[name]}"), name)
    elif name in _VALUES:
        value = getattr(import_module("holdfast.types"), name)
    elif name in _REPORTS:
        value = getattr(import_module("holdfast.reports"), name)
    elif name in _ERRORS:
        value = getattr(import_module("holdfast.errors"), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("holdfast")
    elif name == "config":
        value = import_module("holdfast.config")
    else:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
