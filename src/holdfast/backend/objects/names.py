"""Objects that hold documents: read, compared, and made facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.layout import ARTIFACTS, COMMITS
from holdfast.errors import CorruptObject, FormatError
from holdfast.facts import ArtifactRow, Facts
from holdfast.types import parse_id
from holdfast.wire.bundle import MAX_BUNDLE_BYTES, Bundle, Document, encode_bundle, parse_bundle
from holdfast.wire.document import (
    DOCUMENT_VERSION,
    TagDocument,
    Tombstone,
    encode_tombstone,
    parse_artifact,
    parse_details,
    parse_tag,
    parse_tombstone,
)
from holdfast.wire.record import Kind


class Named(NamedTuple):
    """An object of documents as it was read. `skipped`: documents of a newer version that need not be understood."""

    key: str
    documents: Sequence[Document]
    e_tag: str
    skipped: int = 0


def read_named(bucket: Bucket, key: str) -> Named | None:
    """Read an object of documents; None when there is none.

    One that is damaged is asked for once more, then it is `CorruptObject`; a newer version's is `FormatError`.
    """
    found = bucket.get(key, max_bytes=MAX_BUNDLE_BYTES)
    try:
        return _parse(key, found)
    except CorruptObject:
        return _parse(key, bucket.get(key, max_bytes=MAX_BUNDLE_BYTES))


def _parse(key: str, found: tuple[bytes, Meta] | None) -> Named | None:
    if found is None:
        return None
    data, meta = found
    documents, skipped = parse_names(data, key)
    return Named(key, documents, meta.e_tag or "", skipped)


def parse_names(data: bytes, key: str) -> Bundle:
    """Read the documents of an object, and look into each; `CorruptObject`, or `FormatError` for a newer version's.

    One whose sums are right and that says what cannot be is damaged as well: the others are still to be read.
    """
    bundle = parse_bundle(data, key)
    for kind, payload in bundle.documents:
        try:
            if kind == Kind.ARTIFACT:
                parse_details(parse_artifact(payload).details)
            elif kind == Kind.TOMBSTONE:
                parse_tombstone(payload)
            else:
                parse_tag(payload)
        except FormatError as error:
            if payload[:1] > bytes((DOCUMENT_VERSION,)):
                raise FormatError(
                    f"{key} has a document of version {payload[0]}: it was made by a newer version of Holdfast, "
                    "use that one",
                    path=key,
                ) from error
            raise CorruptObject(f"{key} holds a document that cannot be: {error}", path=key) from error
    return bundle


_EPOCH_MS: Final = 1_577_836_800_000
"""2020, UTC."""
_LAST_MS: Final = (1 << 42) - 1
_OF_COMMITS: Final = 1 << 61


def place_of(key: str) -> int:
    """Give the number that stands in a row for the object that it was read from: 62 bits.

    Of several that say the same the lowest number stands there. So `artifacts/` come before `commits/`, and of these
    the newest comes first: what a collection has gathered from others takes their place, in whatever order they are
    read. Two of one millisecond may have one number; then what rests on one is taken to rest on the other as well.
    """
    raw = int.from_bytes(_native.blake3(key.encode())[:8], "little")
    if not key.startswith(COMMITS):
        return raw >> 3
    made_ms = int.from_bytes(parse_id(key.removeprefix(COMMITS))[:6]) - _EPOCH_MS
    return _OF_COMMITS | (_LAST_MS - min(max(made_ms, 0), _LAST_MS)) << 19 | raw >> 45


GRAVE_BYTES: Final = len(encode_bundle([(Kind.TOMBSTONE, encode_tombstone(Tombstone(bytes(16), 2, 0)))], ""))
"""How long the object of an artifact is of which only the tombstone is left; all others are longer."""


def is_grave(named: Named) -> bool:
    """Whether nothing but its tombstone is left of an artifact: it was forgotten, and cannot be restored."""
    return bool(named.documents) and all(kind == Kind.TOMBSTONE for kind, _ in named.documents)


def newest(named: Named | None) -> int:
    """Give the highest revision that an object has; 0 for none."""
    return 0 if named is None else max((revision_of(one) for one in named.documents), default=0)


def intended(documents: Sequence[Document]) -> list[TagDocument]:
    """Give the states of a tag that somebody is about to make its own: roots, and nothing else yet."""
    return [parse_tag(payload) for kind, payload in documents if kind == Kind.INTENDED_TAG]


def revision_of(document: Document) -> int:
    """Give the revision that a document gives its name; 0 for what is only intended."""
    kind, payload = document
    if kind == Kind.INTENDED_TAG:
        return 0
    if kind == Kind.TAG:
        return parse_tag(payload).revision
    return parse_tombstone(payload).revision if kind == Kind.TOMBSTONE else parse_artifact(payload).revision


def facts_of(documents: Sequence[Document], facts: Facts, key: str) -> None:
    """Add what the documents of an object say; the location of a row is the object's number."""
    location = place_of(key)
    for kind, payload in documents:
        if kind == Kind.ARTIFACT:
            facts.artifacts.append(ArtifactRow(*parse_artifact(payload), location))
        elif kind == Kind.TOMBSTONE:
            facts.tombstones.append((*parse_tombstone(payload), location))
            if len(documents) == 1 and key.startswith(ARTIFACTS):
                facts.forgotten.append(facts.tombstones[-1][0])
        elif kind == Kind.TAG:
            tag = parse_tag(payload)
            row = (tag.name, tag.hash, tag.format, tag.revision, tag.modified_ms, int(tag.deleted), location)
            facts.tags.append(row)
