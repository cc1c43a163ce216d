"""How much is in a store: figures from the catalog alone, without a look at storage."""

from __future__ import annotations

from holdfast.core import Core
from holdfast.types import Stats


def stats(core: Core) -> Stats:
    """Give the store in figures."""
    counts = core.catalog.counts()
    ratio = counts.logical_bytes / counts.unique_bytes if counts.unique_bytes else 1.0
    return Stats(
        artifacts=counts.artifacts,
        deleted_artifacts=counts.deleted_artifacts,
        blobs=counts.blobs,
        chunks=counts.chunks,
        tags=counts.tags,
        logical_bytes=counts.logical_bytes,
        unique_bytes=counts.unique_bytes,
        stored_bytes=counts.stored_bytes,
        disk_bytes=core.backend.disk_bytes() + counts.catalog_bytes,
        catalog_bytes=counts.catalog_bytes,
        segments=len(core.backend.segment_ids()),
        deduplication_ratio=ratio,
        compression_ratio=counts.unique_bytes / counts.stored_bytes if counts.stored_bytes else 1.0,
        tree_bytes=counts.tree_bytes,
        copy_bytes=counts.copy_bytes,
        quarantined=counts.quarantined,
    )
