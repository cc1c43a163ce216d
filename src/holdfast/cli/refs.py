"""What a person may type to name something: an id, `blake3:HEX`, the beginning of either, or `tag:NAME`."""

from __future__ import annotations

import re
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from holdfast.errors import ArtifactNotFound, BlobNotFound, InvalidInput, NotFound

if TYPE_CHECKING:
    import holdfast
    from holdfast.types import Artifact, Hash

MIN_DIGITS = 4
ID_DIGITS = 32
_HASH = re.compile(r"[0-9a-fA-F]{64}|[a-zA-Z2-7]{52}")
_SHOWN = 5


def resolve(store: holdfast.Store, text: str) -> Artifact | Hash:
    """Give what a REF names: an artifact, or a blob if it is a hash."""
    if text.startswith("tag:"):
        return store.tags.get(text.removeprefix("tag:")).hash
    if (whole := _whole_hash(text)) is not None:
        return whole
    if text.startswith("blake3:"):
        return _by_hash_prefix(store, text)
    return resolve_artifact(store, text)


def resolve_hash(store: holdfast.Store, text: str) -> Hash:
    """Give the hash that is meant where only hashes make sense: digits begin a blob's hash before an artifact's id."""
    from holdfast.types import Hash

    if re.fullmatch(rf"[0-9a-fA-F]{{{MIN_DIGITS},63}}", text):
        try:
            return _by_hash_prefix(store, text)
        except BlobNotFound as error:
            try:
                return resolve_artifact(store, text).hash
            except (NotFound, InvalidInput):
                raise error from None
    found = resolve(store, text)
    return found if isinstance(found, Hash) else found.hash


def resolve_artifact(store: holdfast.Store, text: str, *, deleted: bool = False) -> Artifact:
    """Give the one artifact that a REF names, for commands that a bare blob would make no sense to."""
    try:
        return _find_artifact(store, text, deleted=deleted)
    except ArtifactNotFound as error:
        try:
            other = _find_artifact(store, text, deleted=not deleted).id
        except (InvalidInput, NotFound):
            raise error from None
        said = "is not deleted" if deleted else f"is deleted: `holdfast restore {other}` brings it back"
        raise ArtifactNotFound(f"{other} {said}", ref=text, deleted=not deleted) from None


def _find_artifact(store: holdfast.Store, text: str, *, deleted: bool) -> Artifact:
    whole = store.tags.get(text.removeprefix("tag:")).hash if text.startswith("tag:") else _whole_hash(text)
    if whole is not None:
        return _one(text, list(store.find(hash=whole, deleted=deleted, limit=_SHOWN + 1)))
    if not text.startswith("blake3:"):
        return _artifact(store, text, deleted=deleted)
    prefix = _hash_digits(text)
    found = (a for a in store.find(deleted=deleted) if str(a.hash).startswith(prefix))
    return _one(text, list(islice(found, _SHOWN + 1)))


def _whole_hash(text: str) -> Hash | None:
    from holdfast.types import Hash

    return Hash.parse(text) if _HASH.fullmatch(text.removeprefix("blake3:")) else None


def _artifact(store: holdfast.Store, text: str, *, deleted: bool) -> Artifact:
    digits = text.lower().replace("-", "")
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_DIGITS},{ID_DIGITS}}}", digits):
        raise InvalidInput(
            f"{text!r:.100} is no REF (an id, blake3:HASH, at least {MIN_DIGITS} digits of either, or tag:NAME)",
            ref=text,
        )
    if len(digits) == ID_DIGITS and not deleted:
        return store.info(_id(digits))
    # ids sort as they are written, and `find` goes down from any of them
    above = min((int(digits, 16) + 1) << 4 * (ID_DIGITS - len(digits)), 16**ID_DIGITS - 1)
    found = store.find(deleted=deleted, after=_id(f"{above:032x}"))
    matching = takewhile(lambda artifact: artifact.id.replace("-", "").startswith(digits), found)
    return _one(text, list(islice(matching, _SHOWN + 1)))


def _id(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _hash_digits(text: str) -> str:
    digits = text.removeprefix("blake3:").lower()
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_DIGITS},64}}", digits):
        raise InvalidInput(
            f"{text!r:.100} is no hash (64 hex digits, 52 base32 letters, or at least {MIN_DIGITS} hex digits)",
            ref=text,
        )
    return digits


def _by_hash_prefix(store: holdfast.Store, text: str) -> Hash:
    found = [blob.hash for blob in islice(store.blobs.list(prefix=_hash_digits(text)), _SHOWN + 1)]
    if not found:
        raise BlobNotFound(f"no blob's hash begins with {text.removeprefix('blake3:')}", ref=text)
    if len(found) > 1:
        raise _ambiguous(text, [f"blake3:{hash}" for hash in found])
    return found[0]


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
