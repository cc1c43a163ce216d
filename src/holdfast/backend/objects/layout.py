"""The keys of a store in a bucket, and its identity (docs/format.md, "Objects"). Pure."""

from __future__ import annotations

import re
from base64 import b32decode, b32encode
from typing import Any, Final, NamedTuple

import msgspec

from holdfast import _native
from holdfast.errors import CorruptObject, FormatError
from holdfast.types import id_text

IDENTITY_KEY: Final = "store.json"
BLOBS: Final = "blobs/"
COMMITS: Final = "commits/"
ARTIFACTS: Final = "artifacts/"
TAGS: Final = "tags/"
PARTS: Final = "parts/"
"""Blocks of partial blobs."""
UPLOADS: Final = "uploads/"
"""What came of puts of unknown hash that can go on."""
COLLECTOR_KEY: Final = "collector.json"
"""Says who collects."""
WRITER_KEY: Final = "writer.json"
"""Says who writes, where the service cannot keep two writers apart."""
DAMAGED: Final = "damaged/"
"""Wrong bytes that were replaced, under the key that they had."""
FORMAT: Final = "holdfast objects"
VERSION: Final = 1
MAX_IDENTITY_BYTES: Final = 1 << 16

DATA: Final = "data"
OUTBOARD: Final = "outboard"
GONE: Final = "gone"
_PART: Final = re.compile(r"(data|outboard|gone)(?:\.(0|[1-9][0-9]{0,8}))?")
_NAMES_KEY: Final = re.compile(
    rf"(?:{COMMITS}|{ARTIFACTS})[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}|{TAGS}[0-9a-f]{{64}}"
)
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_PART_KEY: Final = re.compile(rf"{PARTS}([0-9a-f]{{64}})/[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}")
_UPLOAD_KEY: Final = re.compile(rf"{UPLOADS}([0-9a-f]{{32}})/([0-9a-f]{{8}})")
_BASE32: Final = re.compile(r"[a-z2-7]{52}")


class BlobKey(NamedTuple):
    """What an object under `blobs/` is. `name`: the hash as it is written in the key."""

    hash: bytes
    part: str
    generation: int
    name: str


def data_key(hash_: bytes, generation: int = 0, name: str = "") -> str:
    """Give the key of a blob's bytes. `name`: how the hash is written, where not in hex."""
    return f"{BLOBS}{name or hash_.hex()}/{_numbered(DATA, generation)}"


def outboard_key(hash_: bytes, generation: int = 0, name: str = "") -> str:
    """Give the key of a blob's outboard: pairs of 64 bytes, in pre-order, nothing else."""
    return f"{BLOBS}{name or hash_.hex()}/{_numbered(OUTBOARD, generation)}"


def gone_key(hash_: bytes, generation: int) -> str:
    """Give the key of the marker that says that a generation is collected."""
    return f"{BLOBS}{hash_.hex()}/{GONE}.{generation}"


def blob_prefix(hash_: bytes, name: str = "") -> str:
    """Give what all keys of a blob begin with."""
    return f"{BLOBS}{name or hash_.hex()}/"


def base32_name(hash_: bytes) -> str:
    """Write a hash as older buckets do: 52 letters and digits."""
    return b32encode(hash_).decode().lower().rstrip("=")


def commit_key(id_: bytes) -> str:
    """Give the key of what one acknowledgement says."""
    return f"{COMMITS}{id_text(id_)}"


def artifact_key(id_: bytes) -> str:
    """Give the key of the newest state of an artifact that was changed since it was stored."""
    return f"{ARTIFACTS}{id_text(id_)}"


def tag_key(name: str) -> str:
    """Give the key of the newest state of a tag."""
    return f"{TAGS}{_native.blake3(name.encode()).hex()}"


def is_names_key(key: str) -> bool:
    """Whether a key is one that an object of names can have; others are not ours."""
    return _NAMES_KEY.fullmatch(key) is not None


def parts_prefix(hash_: bytes) -> str:
    """Give what the keys of all parts of a partial blob begin with."""
    return f"{PARTS}{hash_.hex()}/"


def part_key(hash_: bytes, id_: bytes) -> str:
    """Give the key of a part of a partial blob; nobody else makes one of the same id."""
    return f"{PARTS}{hash_.hex()}/{id_text(id_)}"


def parse_part_key(key: str) -> bytes | None:
    """Read the hash in the key of a part; None for one that is not ours."""
    found = _PART_KEY.fullmatch(key)
    return None if found is None else bytes.fromhex(found[1])


def upload_prefix(token: bytes) -> str:
    """Give what the keys of all objects of an upload begin with."""
    return f"{UPLOADS}{token.hex()}/"


def upload_key(token: bytes, number: int) -> str:
    """Give the key of an object of an upload: they are numbered without a gap, and whoever makes one has it."""
    return f"{UPLOADS}{token.hex()}/{number:08x}"


def parse_upload_key(key: str) -> tuple[bytes, int] | None:
    """Read token and number in the key of an object of an upload; None for one that is not ours."""
    found = _UPLOAD_KEY.fullmatch(key)
    return None if found is None else (bytes.fromhex(found[1]), int(found[2], 16))


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
    """What a store in a bucket says of itself. `is_writable`: no newer version alone may write there."""

    id: bytes
    created_ms: int
    is_writable: bool = True


def encode_identity(identity: Identity) -> bytes:
    """Give the bytes of `store.json`, with a checksum of the same JSON in which that is 0."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "id": identity.id.hex(),
        "created_ms": identity.created_ms,
        "features": [],
        "write_features": [],
        "crc32c": 0,
    }
    return msgspec.json.encode({**document, "crc32c": _checksum(document)})


def parse_identity(data: bytes, location: str) -> Identity:
    """Read `store.json`; `CorruptObject` for a damaged one, `FormatError` for another's, or a newer version's."""
    try:
        found: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(location, str(error)) from error
    if not str(found.get("format")).startswith(FORMAT):
        raise FormatError(f"{location} holds something else than a Holdfast store", location=location)
    if _checksum(found) != found.get("crc32c"):
        raise _damaged(location, "its checksum does not match")
    if found["format"] != FORMAT or found.get("version") != VERSION or found.get("features"):
        raise FormatError(
            f"the store in {location} was made by a newer Holdfast (version {found.get('version')}, features"
            f" {found.get('features')}): use that one",
            location=location,
        )
    try:
        id_ = bytes.fromhex(found["id"])
        if len(id_) != 16:
            raise ValueError("an id has 16 bytes")
        return Identity(id_, int(found["created_ms"]), not found.get("write_features"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(location, str(error)) from error


def _checksum(document: dict[str, Any]) -> int:
    return _native.crc32c(msgspec.json.encode({**document, "crc32c": 0}))


def _damaged(location: str, why: str) -> CorruptObject:
    return CorruptObject(
        f"{IDENTITY_KEY} in {location} is damaged ({why}): put a copy of it back; no other object says the same",
        location=location,
    )
