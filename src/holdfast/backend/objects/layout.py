"""The keys of a store in a bucket, and its identity (docs/format.md, "Objects"). Pure."""

from __future__ import annotations

import re
from base64 import b32decode
from typing import Any, Final, NamedTuple

import msgspec

from holdfast import _native
from holdfast.errors import FormatError
from holdfast.types import id_text

IDENTITY_KEY: Final = "store.json"
BLOBS: Final = "blobs/"
COMMITS: Final = "commits/"
ARTIFACTS: Final = "artifacts/"
TAGS: Final = "tags/"
DAMAGED: Final = "damaged/"
"""Wrong bytes that were replaced, under the key that they had."""
FORMAT: Final = "holdfast objects"
VERSION: Final = 1
MAX_IDENTITY_BYTES: Final = 1 << 16

DATA: Final = "data"
OUTBOARD: Final = "outboard"
GONE: Final = "gone"
_PART: Final = re.compile(r"(data|outboard|gone)(?:\.(0|[1-9][0-9]{0,8}))?")
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_BASE32: Final = re.compile(r"[a-z2-7]{52}")


class BlobKey(NamedTuple):
    """What an object under `blobs/` is. `name`: the hash as it is written in the key."""

    hash: bytes
    part: str
    generation: int
    name: str


def data_key(hash_: bytes, generation: int = 0) -> str:
    """Give the key of a blob's bytes."""
    return f"{BLOBS}{hash_.hex()}/{_numbered(DATA, generation)}"


def outboard_key(hash_: bytes, generation: int = 0) -> str:
    """Give the key of a blob's outboard: pairs of 64 bytes, in pre-order, nothing else."""
    return f"{BLOBS}{hash_.hex()}/{_numbered(OUTBOARD, generation)}"


def gone_key(hash_: bytes, generation: int) -> str:
    """Give the key of the marker that says that a generation is collected."""
    return f"{BLOBS}{hash_.hex()}/{GONE}.{generation}"


def blob_prefix(hash_: bytes) -> str:
    """Give what all keys of a blob begin with."""
    return f"{BLOBS}{hash_.hex()}/"


def commit_key(id_: bytes) -> str:
    """Give the key of what one acknowledgement says."""
    return f"{COMMITS}{id_text(id_)}"


def artifact_key(id_: bytes) -> str:
    """Give the key of the newest state of an artifact that was changed since it was stored."""
    return f"{ARTIFACTS}{id_text(id_)}"


def tag_key(name: str) -> str:
    """Give the key of the newest state of a tag."""
    return f"{TAGS}{_native.blake3(name.encode()).hex()}"


def parse_blob_key(key: str) -> BlobKey | None:
    """Read a key under `blobs/`; None for one that is not ours."""
    prefix, _, rest = key.partition("/")
    name, slash, part = rest.partition("/")
    match = _PART.fullmatch(part)
    if prefix + "/" != BLOBS or not slash or match is None:
        return None
    number = match[2]  # always there for a marker; never written as 0 for the rest
    if (number is None) if match[1] == GONE else (number == "0"):
        return None
    if _HEX.fullmatch(name):
        hash_ = bytes.fromhex(name)
    elif _BASE32.fullmatch(name):
        hash_ = b32decode(name.upper() + "====")
    else:
        return None
    return BlobKey(hash_, match[1], int(number or 0), name)


def _numbered(part: str, generation: int) -> str:
    return f"{part}.{generation}" if generation else part


class Identity(NamedTuple):
    """What a store in a bucket says of itself."""

    id: bytes
    created_ms: int


def encode_identity(identity: Identity) -> bytes:
    """Give the bytes of `store.json`."""
    return msgspec.json.encode(
        {
            "format": FORMAT,
            "version": VERSION,
            "id": identity.id.hex(),
            "features": [],
            "created_ms": identity.created_ms,
        }
    )


def parse_identity(data: bytes, location: str) -> Identity:
    """Read `store.json`; `FormatError` for a newer one, one with features that we do not know, or another's."""
    try:
        found: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise FormatError(
            f"{IDENTITY_KEY} in {location} cannot be read: {error}", location=location
        ) from error
    if found.get("format") != FORMAT:
        raise FormatError(f"{location} holds something else than a Holdfast store", location=location)
    if found.get("version") != VERSION or found.get("features"):
        raise FormatError(
            f"the store in {location} was made by a newer Holdfast (version {found.get('version')}, features"
            f" {found.get('features')}): use that one",
            location=location,
        )
    try:
        id_ = bytes.fromhex(found["id"])
        if len(id_) != 16:
            raise ValueError
        return Identity(id_, int(found["created_ms"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{IDENTITY_KEY} in {location} is damaged", location=location) from error
