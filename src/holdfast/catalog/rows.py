"""What the catalog gives back: rows as named tuples, and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

Location: TypeAlias = tuple[int, int, int, int]
"""location, stored, plain, flags with kind: where a payload lies and how"""


class ArtifactEntry(NamedTuple):
    """An artifact as the catalog has it: `facts.ArtifactRow` and `deleted_ms` (None: live)."""

    id: bytes
    revision: int
    hash: bytes
    size: int
    format: int
    created_ms: int
    modified_ms: int
    chunks: int
    doc: bytes
    deleted_ms: int | None


class ArtifactBlob(NamedTuple):
    """A live artifact with the place of its blob. `location` is None when the blob is large: see `find_blob`."""

    hash: bytes
    size: int
    location: int | None
    stored: int
    plain: int
    flags: int


class BlobRow(NamedTuple):
    """A complete blob: the data record that is all of it (`chunks` 1), or the blob record that describes it.

    A blob record has `KIND_BLOB` in its flags, and its own payload's length as `stored` and `plain`.
    """

    hash: bytes
    size: int
    created_ms: int
    location: int
    stored: int
    plain: int
    flags: int
    chunks: int


class TagEntry(NamedTuple):
    """A tag as the catalog has it, deleted ones included."""

    name: str
    hash: bytes
    format: int
    revision: int
    modified_ms: int
    deleted: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Figures over the whole catalog.

    `chunks`, `unique_bytes` (plain) and `stored_bytes` count data records; `tree_bytes` are the stored outboard
    and manifest pages; `logical_bytes` the sizes of all live artifacts; `copy_bytes` the further copies.
    """

    artifacts: int
    deleted_artifacts: int
    blobs: int
    chunks: int
    tags: int
    segments: int
    quarantined: int
    logical_bytes: int
    unique_bytes: int
    stored_bytes: int
    tree_bytes: int
    copy_bytes: int
    catalog_bytes: int
