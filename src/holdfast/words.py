"""What people say about an artifact, checked, and made what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypedDict

from holdfast.arguments import items_of, mapping_of
from holdfast.core import Core
from holdfast.errors import InvalidInput
from holdfast.types import Artifact, Hash, Scalar, id_text
from holdfast.wire.document import Details

MAX_TEXT_BYTES: Final = 4_096
"""The longest filename, tag, link, creator or metadata key."""


class Words(NamedTuple):
    """What a caller says about an artifact, as it came in."""

    filename: str | None = None
    content_type: str | None = None
    tags: Iterable[str] = ()
    links: Iterable[str] = ()
    requires: Iterable[Hash | Artifact | str] = ()
    metadata: Mapping[str, Scalar] | None = None
    created_by: str | None = None


class Said(TypedDict, total=False):
    """The keywords, beside the filename, of whatever stores an artifact."""

    content_type: str | None
    tags: Iterable[str]
    links: Iterable[str]
    requires: Iterable[Hash | Artifact | str]
    metadata: Mapping[str, Scalar] | None
    created_by: str | None


def gather(filename: str | None, said: Said) -> Words:
    """Put together what a call says."""
    check_keywords(said, Said)
    return Words(filename, **said)


def check_keywords(given: Mapping[str, Any], known: type) -> None:
    """Raise `TypeError`, as any call does, for a keyword that is not one of those of the `TypedDict`."""
    names = known.__annotations__.keys()
    for name in given.keys() - names:
        from difflib import get_close_matches  # slow to import, and nobody waits for this

        near = get_close_matches(name, names, 1)
        raise TypeError(f"there is no keyword {name!r}" + (f"; is {near[0]!r} meant?" if near else ""))


def describe(core: Core, words: Words, default_name: str | None = None) -> Details:
    """Check the words and make them what is stored; `InvalidInput` says which one will not do."""
    filename = words.filename if words.filename is not None else default_name
    return Details(
        filename=check_text("filename", filename),
        content_type=check_text("content_type", words.content_type)
        or guess_type(filename)
        or core.options.default_content_type,
        created_by=check_text("created_by", words.created_by),
        tags=check_texts("tags", words.tags),
        links=check_texts("links", words.links),
        requires=check_requires(core, words.requires),
        metadata=check_metadata(words.metadata),
    )


def check_text(what: str, value: Any) -> str | None:
    """Give a text that may be stored, or None for none."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidInput(f"{what} is text, not {type(value).__name__}")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} is not valid UTF-8: {value!r:.100}") from None
    if length > MAX_TEXT_BYTES:
        raise InvalidInput(f"{what} has {length} bytes; {MAX_TEXT_BYTES} are allowed")
    return value


def check_texts(what: str, values: Iterable[str]) -> tuple[str, ...]:
    """Give texts that may be stored, each once."""
    if not values:
        return ()
    if isinstance(values, (str, bytes)):
        raise InvalidInput(f"{what} is a list of texts, not one: [{values!r:.100}]")
    kept = dict.fromkeys(check_text(what, value) for value in items_of(what, values))
    if None in kept or "" in kept:
        raise InvalidInput(f"{what} holds an empty text")
    return tuple(filter(None, kept))


def check_key(key: Any) -> str:
    """Give a key of metadata: text, which may be empty."""
    text = check_text("a metadata key", key)
    if text is None:
        raise InvalidInput("a metadata key is text, not None")
    return text


def check_metadata(values: Mapping[str, Scalar] | None) -> dict[str, Scalar]:
    """Give metadata that JSON keeps as it is."""
    if not values:
        return {}
    checked: dict[str, Scalar] = {}
    for key, value in mapping_of("metadata", values).items():
        name = check_key(key)
        if isinstance(value, float) and value - value != 0:
            raise InvalidInput(f"metadata {key!r:.100} is {value}; JSON has no such number")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise InvalidInput(f"metadata {key!r:.100} does not fit 64 bits: store it as text")
        if value is not None and not isinstance(value, (str, int, float, bool)):
            raise InvalidInput(
                f"metadata {key!r:.100} is {type(value).__name__}; text, numbers, true, false and null are kept"
            )
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise InvalidInput(f"metadata {key!r:.100} is not valid UTF-8") from None
        checked[name] = value
    return checked


def check_requires(core: Core, values: Iterable[Hash | Artifact | str]) -> tuple[str, ...]:
    """Write requirements as `blake3:HEX` or an id; all of them must be here. The caller has pinned."""
    if not values:
        return ()
    if isinstance(values, (str, bytes, Hash, Artifact)):
        raise InvalidInput("requires is a list of hashes and artifacts, not one")
    written = []
    for value in items_of("requires", values):
        if isinstance(value, Hash):
            core.claim(value)
            written.append(f"blake3:{value}")
        elif isinstance(value, str) and value.startswith("blake3:"):
            hash_ = Hash.parse(value)
            core.claim(hash_)
            written.append(f"blake3:{hash_}")
        elif isinstance(value, (Artifact, str)):
            written.append(id_text(core.artifact(value).id))
        else:
            raise InvalidInput(f"requires holds hashes, artifacts and ids, not {type(value).__name__}")
    return tuple(dict.fromkeys(written))


@lru_cache(1024)
def _type_of(ending: str) -> str | None:
    import mimetypes  # reads the system's tables: only who needs a type pays for it

    return mimetypes.guess_type(f"name.{ending}")[0]


def guess_type(filename: str | None) -> str | None:
    """Guess a content type from the ending of a name."""
    if not filename:
        return None
    _, dot, ending = filename.rpartition(".")
    return _type_of(ending.lower()) if dot and len(ending) < 20 else None
