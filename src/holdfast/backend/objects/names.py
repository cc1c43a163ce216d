"""Objects that hold documents: read, compared, and made facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from holdfast.backend.objects.bucket import Bucket
from holdfast.errors import FormatError, IntegrityError
from holdfast.facts import ArtifactRow, Facts
from holdfast.wire.bundle import MAX_BUNDLE_BYTES, Document, parse_bundle
from holdfast.wire.document import parse_artifact, parse_tag, parse_tombstone
from holdfast.wire.record import Kind


class Named(NamedTuple):
    """An object of documents as it was read."""

    documents: Sequence[Document]
    e_tag: str


def read_named(bucket: Bucket, key: str) -> Named | None:
    """Read an object of documents; None when there is none. One that cannot be read is asked for once more."""
    for attempt in range(2):
        found = bucket.get(key, max_bytes=MAX_BUNDLE_BYTES)
        if found is None:
            return None
        data, meta = found
        try:
            return Named(parse_bundle(data), meta.e_tag or "")
        except FormatError as error:
            if attempt:
                raise IntegrityError(f"{key}: {error}", key=key) from error
    raise AssertionError


def newest(named: Named | None) -> int:
    """Give the highest revision that an object has; 0 for none."""
    return 0 if named is None else max((revision_of(one) for one in named.documents), default=0)


def revision_of(document: Document) -> int:
    """Give the revision that a document gives its name."""
    kind, payload = document
    if kind == Kind.TAG:
        return parse_tag(payload).revision
    return parse_tombstone(payload).revision if kind == Kind.TOMBSTONE else parse_artifact(payload).revision


def facts_of(documents: Iterable[Document], facts: Facts) -> None:
    """Add what documents say. They have no place in a log: every location is 0."""
    for kind, payload in documents:
        if kind == Kind.ARTIFACT:
            facts.artifacts.append(ArtifactRow._make((*parse_artifact(payload), 0)))
        elif kind == Kind.TOMBSTONE:
            facts.tombstones.append((*parse_tombstone(payload), 0))
        elif kind == Kind.TAG:
            tag = parse_tag(payload)
            row = (tag.name, tag.hash, tag.format, tag.revision, tag.modified_ms, int(tag.deleted), 0)
            facts.tags.append(row)
