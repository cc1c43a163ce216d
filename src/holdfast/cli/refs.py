"""What a person may type to name something: an id, `blake3:HEX`, or the beginning of either."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from holdfast.errors import ArtifactNotFound, BlobNotFound, InvalidInput

if TYPE_CHECKING:
    import holdfast
    from holdfast.types import Artifact, Hash

MIN_DIGITS = 4
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ID_PREFIX = re.compile(r"[0-9a-f][0-9a-f-]{0,35}")
_HASH = re.compile(r"[0-9a-fA-F]{64}|[a-zA-Z2-7]{52}")
_SHOWN = 5


def resolve(store: holdfast.Store, text: str) -> Artifact | Hash:
    """Give what a REF names: a whole hash any blob, a prefix the one of an artifact."""
    if (whole := _whole_hash(text)) is not None:
        return whole
    if text.startswith("blake3:"):
        return _by_hash_prefix(store, text)
    return _artifact(store, text, deleted=False)


def resolve_artifact(store: holdfast.Store, text: str, *, deleted: bool = False) -> Artifact:
    """Give the one artifact that a REF names, for commands that a bare blob would make no sense to."""
    if _whole_hash(text) is not None or text.startswith("blake3:"):
        prefix = str(_whole_hash(text) or text.removeprefix("blake3:").lower())
        found = [a for a in store.find(deleted=deleted) if str(a.hash).startswith(prefix)]
        return _one(text, found)
    return _artifact(store, text, deleted=deleted)


def _whole_hash(text: str) -> Hash | None:
    from holdfast.types import Hash

    return Hash.parse(text) if _HASH.fullmatch(text.removeprefix("blake3:")) else None


def _artifact(store: holdfast.Store, text: str, *, deleted: bool) -> Artifact:
    if text.startswith("tag:"):
        raise InvalidInput(f"{text!r}: names of tags are not in this version yet", ref=text)
    wanted = text.lower()
    if _ID.fullmatch(wanted) and not deleted:
        return store.info(wanted)
    digits = wanted.replace("-", "")
    if not _ID_PREFIX.fullmatch(wanted) or len(digits) < MIN_DIGITS:
        raise InvalidInput(
            f"{text!r:.100} is no REF (an id, blake3:HASH, or at least {MIN_DIGITS} digits of either)",
            ref=text,
        )
    found = []
    for artifact in store.find(deleted=deleted):
        if artifact.id.replace("-", "").startswith(digits):
            found.append(artifact)
            if len(found) > _SHOWN:
                break
    return _one(text, found)


def _by_hash_prefix(store: holdfast.Store, text: str) -> Hash:
    digits = text.removeprefix("blake3:").lower()
    if not re.fullmatch(r"[0-9a-f]+", digits) or len(digits) < MIN_DIGITS or len(digits) > 64:
        raise InvalidInput(
            f"{text!r:.100} is no hash (64 hex digits, 52 base32 letters, or {MIN_DIGITS} hex digits up)",
            ref=text,
        )
    found: dict[str, Hash] = {}
    for artifact in store.find():
        if str(artifact.hash).startswith(digits):
            found[str(artifact.hash)] = artifact.hash
            if len(found) > _SHOWN:
                break
    if not found:
        raise BlobNotFound(f"no blob's hash begins with {digits}", ref=text)
    if len(found) > 1:
        raise _ambiguous(text, list(found))
    return next(iter(found.values()))


def _one(text: str, found: list[Artifact]) -> Artifact:
    if not found:
        raise ArtifactNotFound(f"no artifact is named by {text!r:.100}", ref=text)
    if len(found) > 1:
        raise _ambiguous(text, [artifact.id for artifact in found])
    return found[0]


def _ambiguous(text: str, names: list[str]) -> InvalidInput:
    more = ", …" if len(names) > _SHOWN else ""
    return InvalidInput(
        f"{text!r:.100} is ambiguous: {', '.join(names[:_SHOWN])}{more}",
        ref=text,
        candidates=tuple(names[:_SHOWN]),
    )
