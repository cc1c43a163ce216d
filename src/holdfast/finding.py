"""Looking artifacts up: one by its id, all of them newest first."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.catalog import ArtifactEntry
from holdfast.core import Core
from holdfast.errors import InvalidInput
from holdfast.types import Artifact, BlobFormat, Hash, id_text, parse_id, to_datetime
from holdfast.wire.document import Details, parse_details

FORMATS = (BlobFormat.RAW, BlobFormat.HASH_SEQ)


def view(core: Core, entry: ArtifactEntry, details: Details | None = None) -> Artifact:
    """Make a row what people see; `details` are those of its document, where they were read already."""
    if details is None:
        details = parse_details(entry.doc)
    created = to_datetime(entry.created_ms)
    deleted_ms = entry.deleted_ms
    return Artifact(
        id=id_text(entry.id),
        hash=Hash(entry.hash),
        size_bytes=entry.size,
        format=FORMATS[entry.format],
        filename=details.filename,
        content_type=details.content_type,
        checksum=details.checksum,
        chunk_count=entry.chunks,
        created_at=created,
        modified_at=created if entry.modified_ms == entry.created_ms else to_datetime(entry.modified_ms),
        revision=entry.revision,
        created_by=details.created_by,
        tags=details.tags,
        links=details.links,
        requires=details.requires,
        metadata=details.metadata,
        durability=core.backend.durability,
        deleted_at=None if deleted_ms is None else to_datetime(deleted_ms),
    )


class Finding:
    """The room of look-ups."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def info(self, ref: Artifact | str) -> Artifact:
        return view(self._core, self._core.artifact(ref))

    def find(
        self, *, deleted: bool = False, limit: int | None = None, after: Artifact | str | None = None
    ) -> Iterator[Artifact]:
        core = self._core
        if limit is not None and limit < 0:
            raise InvalidInput(f"limit is {limit}; it cannot be negative")
        start = None if after is None else parse_id(after.id if isinstance(after, Artifact) else after)
        return (
            view(core, entry)
            for entry in core.catalog.iter_artifacts(deleted=deleted, after=start, limit=limit)
        )
