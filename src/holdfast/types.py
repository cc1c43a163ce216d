"""The values that cross the public surface: frozen, slotted, typed. No I/O, no logic beyond checks.

Units are in the names: `_bytes`, `_ms` (milliseconds since the Unix epoch, UTC). Ranges are half-open.
"""

from __future__ import annotations

import base64
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import IO, Any, Final, TypeAlias

import msgspec

from holdfast.errors import InvalidHash, InvalidInput, InvalidRange

BLOCK_BYTES: Final = 16_384
"""The unit of verification: bao-tree's block, iroh's chunk group."""
HASH_BYTES: Final = 32
MAX_BLOB_BYTES: Final = 1 << 62

BytesLike: TypeAlias = bytes | bytearray | memoryview
Source: TypeAlias = "str | os.PathLike[str] | BytesLike | IO[bytes] | Iterable[BytesLike]"
Scalar: TypeAlias = str | int | float | bool | None


class Hash(msgspec.Struct, frozen=True, order=True):
    """A BLAKE3 digest: 32 bytes, written as 64 lowercase hex digits."""

    digest: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.digest, bytes) or len(self.digest) != HASH_BYTES:
            raise InvalidHash(f"a hash is 32 bytes, got {self.digest!r:.80}")

    def __str__(self) -> str:
        return self.digest.hex()

    def __repr__(self) -> str:
        return f"Hash({self.digest.hex()})"

    @classmethod
    def parse(cls, text: str) -> Hash:
        """Read 64 hex digits or 52 letters of unpadded base32, in either case, with or without `blake3:`."""
        digits = text.removeprefix("blake3:") if isinstance(text, str) else ""
        try:
            if re.fullmatch(r"[0-9a-fA-F]{64}", digits):
                return cls(bytes.fromhex(digits))
            if re.fullmatch(r"[a-zA-Z2-7]{52}", digits):
                return cls(base64.b32decode(digits.upper() + "===="))
        except ValueError:
            pass
        raise InvalidHash(
            f"not a hash: {text!r:.100} (64 hex digits or 52 base32 letters are expected)", text=text
        )


class Durability(StrEnum):
    """What an acknowledgement promises."""

    FSYNCED = "fsynced"
    STORED = "stored"
    BUFFERED = "buffered"


class BlobFormat(StrEnum):
    """Whether a blob is to be read as bytes or as a sequence of hashes."""

    RAW = "raw"
    HASH_SEQ = "hash_seq"


class BlobStatus(StrEnum):
    """How much of a blob is here."""

    MISSING = "missing"
    PARTIAL = "partial"
    COMPLETE = "complete"


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """A value with a plain form."""

    def to_dict(self) -> dict[str, Any]:
        """Give plain data, as `--json` prints it: hashes as hex, times as ISO 8601."""
        return {name: plain(getattr(self, name)) for name in self.__struct_fields__}


def plain(value: Any) -> Any:
    """Turn a value into what JSON can carry."""
    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, (Hash, StrEnum)):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, frozenset)):
        return [plain(item) for item in value]
    return value


class Keep(Enum):
    """The type of `KEEP`."""

    KEEP = "keep"

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = Keep.KEEP
"""What `update` takes for a field that stays as it is; None clears it."""


class Artifact(Value, frozen=True, kw_only=True):
    """What a person stored: an id, names and metadata, pointing to one blob."""

    id: str
    hash: Hash
    size_bytes: int
    format: BlobFormat = BlobFormat.RAW
    filename: str | None = None
    content_type: str | None = None
    checksum: str | None = None
    chunk_count: int = 1
    created_at: datetime
    modified_at: datetime
    revision: int = 1
    created_by: str | None = None
    tags: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    metadata: Mapping[str, Scalar] = {}
    durability: Durability = Durability.FSYNCED
    deleted_at: datetime | None = None


Ref: TypeAlias = "Artifact | Hash | str"
"""What names an artifact (itself or its id) or, for reading, a blob."""


class Tag(Value, frozen=True, kw_only=True):
    """A durable name for a hash, in the blob layer. It keeps its blob, and with `hash_seq` its children."""

    name: str
    hash: Hash
    format: BlobFormat
    revision: int
    modified_at: datetime


class Upload(Value, frozen=True, kw_only=True):
    """A put that has begun and can go on: `offset_bytes` is how much of it is durable."""

    token: str
    offset_bytes: int
    created_at: datetime
    modified_at: datetime
    expires_at: datetime


class LabelCount(Value, frozen=True, kw_only=True):
    """A tag or a link in use, and how many live artifacts bear it."""

    name: str
    artifacts: int


class BlobInfo(Value, frozen=True, kw_only=True):
    """What the store knows of a blob. `stored_bytes` is its payloads on disk, chunks that others share included.

    Of a partial one it is what is here; its `size_bytes` is a claim while `is_size_verified` is false.
    """

    hash: Hash
    size_bytes: int
    status: BlobStatus
    has_outboard: bool
    stored_bytes: int
    created_at: datetime
    is_size_verified: bool = True


class SeqInfo(Value, frozen=True, kw_only=True):
    """How much of a hash seq is here; children count as often as they are named. `is_complete`: it, and all of them.

    While the hash seq itself is partial, `children` is a claim, and none of them is counted.
    """

    hash: Hash
    children: int
    is_complete: bool
    complete_children: int = 0
    partial_children: int = 0
    complete_bytes: int = 0


class PutItem(msgspec.Struct, frozen=True):
    """One item of `put_many`: a source, and what replaces the call's defaults for it (None: the default stays)."""

    source: Source
    filename: str | None = msgspec.field(default=None)
    content_type: str | None = msgspec.field(default=None)
    tags: Iterable[str] | None = msgspec.field(default=None)
    links: Iterable[str] | None = msgspec.field(default=None)
    requires: Iterable[Hash | Artifact | str] | None = msgspec.field(default=None)
    metadata: Mapping[str, Scalar] | None = msgspec.field(default=None)
    created_by: str | None = msgspec.field(default=None)


class Progress(Value, frozen=True, kw_only=True):
    """How far a long operation is. Totals are None where they are not known."""

    phase: str
    done_bytes: int = 0
    total_bytes: int | None = None
    done_items: int = 0
    total_items: int | None = None
    requests: Mapping[str, int] = {}
    """Of a bucket, in phase `price`: what the rest takes, about, said before anything is changed."""


ProgressCallback: TypeAlias = Callable[["Progress"], None]
"""Gets a `Progress` now and then; raising in it cancels the operation."""


def check_range(offset_bytes: int, length_bytes: int | None, size_bytes: int) -> tuple[int, int]:
    """Give (start, stop) within a blob of `size_bytes`; `InvalidRange` when negative or past the end."""
    if not isinstance(offset_bytes, int) or not isinstance(length_bytes, int | None):
        raise InvalidInput(
            f"offset_bytes and length_bytes are whole numbers, not {offset_bytes!r:.100} and {length_bytes!r:.100}"
        )
    stop = size_bytes if length_bytes is None else offset_bytes + length_bytes
    if offset_bytes < 0 or stop < offset_bytes or stop > size_bytes:
        raise InvalidRange(
            f"the range of {length_bytes} bytes at {offset_bytes} does not lie within {size_bytes} bytes",
            offset_bytes=offset_bytes,
            length_bytes=length_bytes,
            size_bytes=size_bytes,
        )
    return offset_bytes, stop


MIN_TIME_MS: Final = -62_135_596_800_000
MAX_TIME_MS: Final = 253_402_300_799_999
"""The ends of the years that a `datetime` can have, 1 and 9999."""


def now_ms() -> int:
    """Give the wall clock in milliseconds since the Unix epoch. Nothing that keeps data safe depends on it.

    A clock that says less than 1970 or more than 9999 counts as the nearer of these.
    """
    return min(max(time.time_ns() // 1_000_000, 0), MAX_TIME_MS)


EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(time_ms: int) -> datetime:
    """Give an aware UTC time; of one that no `datetime` can have, the nearest that it can."""
    return datetime.fromtimestamp(min(max(time_ms, MIN_TIME_MS), MAX_TIME_MS) / 1000, UTC)


_last_tick = 0
_ticking = threading.Lock()


def new_ids(count: int, time_ms: int) -> list[bytes]:
    """Make UUIDv7s (RFC 9562, 6.2 method 1), 16 bytes each, that sort as they are made within this process.

    The 12 bits after the version count up within a millisecond, which moves on when they are used up, and does
    not move back when the clock does; 62 bits are random.
    """
    global _last_tick
    noise = os.urandom(8 * count)
    with _ticking:
        first = max(time_ms << 12, _last_tick + 1)
        _last_tick = first + count - 1
    ids = []
    for i in range(count):
        tick_ms, counter = divmod(first + i, 4096)
        head = (tick_ms << 16 | 0x7000 | counter).to_bytes(8)
        tail = noise[8 * i : 8 * i + 8]
        ids.append(head + bytes((0x80 | tail[0] & 0x3F,)) + tail[1:])
    return ids


def id_text(raw: bytes) -> str:
    """Write 16 bytes as a UUID."""
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def parse_id(text: str) -> bytes:
    """Read a UUID in its usual form; `InvalidInput` for anything else."""
    digits = text.lower() if isinstance(text, str) else ""
    if not _ID.fullmatch(digits):
        raise InvalidInput(f"not an artifact id: {text!r:.100}", text=text)
    return bytes.fromhex(digits.replace("-", ""))
