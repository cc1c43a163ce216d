"""How much is in a store: figures from the catalog alone, without a look at storage."""

from __future__ import annotations

from holdfast.catalog.compacting import live_bytes
from holdfast.errors import HoldfastError
from holdfast.facts import FLAG_BLOB, KIND_BLOB, KIND_MASK
from holdfast.log_core import LogCore
from holdfast.reports import ArtifactStats, SegmentShare, SharedWith, Stats
from holdfast.types import Artifact, Hash, id_text

MAX_SHARED = 100
ORPHANS = f"""
SELECT count(*), ifnull(sum(size), 0) FROM (
  SELECT hash, ifnull(plain, stored) AS size FROM data WHERE flags & {FLAG_BLOB}
  UNION ALL SELECT hash, size FROM blobs
    WHERE NOT EXISTS(SELECT 1 FROM data WHERE data.hash = blobs.hash AND data.flags & {FLAG_BLOB})
) AS one
WHERE hash NOT IN (SELECT hash FROM artifacts UNION SELECT hash FROM tags WHERE NOT deleted
  UNION SELECT name FROM requires WHERE length(name) = 32)"""


def stats(core: LogCore) -> Stats:
    """Give the store in figures."""
    counts = core.catalog.counts()
    ((orphans, orphan_bytes),) = core.catalog.ask(ORPHANS)
    both = counts.logical_bytes and counts.unique_bytes  # not so with nothing but parts of blobs
    ratio = counts.logical_bytes / counts.unique_bytes if both else 1.0
    live = live_bytes(core.catalog)
    sizes = core.backend.segment_sizes()  # later than `live`: segments grow
    # Records count with their entries in an index, which a segment that is open does not have yet.
    shares = tuple(
        SegmentShare(segment=segment, size_bytes=size, live_bytes=min(size, live.get(segment, 0)))
        for segment, size in sizes.items()
    )
    return Stats(
        artifacts=counts.artifacts,
        deleted_artifacts=counts.deleted_artifacts,
        blobs=counts.blobs,
        chunks=counts.chunks,
        tags=counts.tags,
        logical_bytes=counts.logical_bytes,
        unique_bytes=counts.unique_bytes,
        stored_bytes=counts.stored_bytes,
        disk_bytes=sum(sizes.values()) + counts.catalog_bytes,
        catalog_bytes=counts.catalog_bytes,
        segments=len(sizes),
        deduplication_ratio=ratio,
        compression_ratio=counts.unique_bytes / counts.stored_bytes if counts.stored_bytes else 1.0,
        tree_bytes=counts.tree_bytes,
        copy_bytes=counts.copy_bytes,
        quarantined=counts.quarantined,
        orphan_blobs=orphans,
        orphan_bytes=orphan_bytes,
        live_bytes=sum(share.live_bytes for share in shares),
        segment_shares=shares,
    )


def artifact_stats(core: LogCore, ref: Artifact | str) -> ArtifactStats:
    """Say how much of an artifact's blob others have too. Reads the manifests of all artifacts' blobs."""
    entry = core.artifact(ref)
    mine = _chunks(core, entry.hash)
    found = core.catalog.find_data(list(mine))
    common: dict[bytes, int] = {}
    shared: set[bytes] = set()
    for other in core.catalog.iter_artifacts():
        if other.id == entry.id:
            continue
        both = mine.keys() if other.hash == entry.hash else mine.keys() & _chunks(core, other.hash).keys()
        if both:
            shared |= both
            common[other.id] = sum(mine[digest] for digest in both)
    size = sum(mine.values())
    shared_bytes = sum(mine[digest] for digest in shared)
    return ArtifactStats(
        id=id_text(entry.id),
        hash=Hash(entry.hash),
        size_bytes=size,
        chunks=len(mine),
        stored_bytes=sum(row[1] for row in found.values()),
        shared_bytes=shared_bytes,
        own_bytes=size - shared_bytes,
        shared_with=tuple(
            SharedWith(id=id_text(other), shared_bytes=common[other]) for other in sorted(common)[:MAX_SHARED]
        ),
    )


def _chunks(core: LogCore, blob: bytes) -> dict[bytes, int]:
    """Give the plain bytes that each chunk of a blob makes up of it."""
    row = core.catalog.find_blob(blob)
    if row is None:
        return {}
    if row.flags & KIND_MASK != KIND_BLOB:
        return {blob: row.size}
    sizes: dict[bytes, int] = {}
    try:
        for _, _, length, digest in core.backend.large_reader(row).manifest.iter_chunks():
            sizes[digest] = sizes.get(digest, 0) + length
    except HoldfastError:
        return sizes  # damaged: what can be read of it
    return sizes
