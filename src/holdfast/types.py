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


class Problem(Value, frozen=True, kw_only=True):
    """One piece of damage: what, where, and what is affected."""

    kind: str
    message: str
    hash: Hash | None = None
    segment: int | None = None
    offset_bytes: int | None = None
    path: str | None = None


class VerifyReport(Value, frozen=True, kw_only=True):
    """What `verify` or `scrub` read, and the damage that it found (the first 10,000 problems)."""

    ok: bool
    problems: tuple[Problem, ...] = ()
    problem_count: int = 0
    checked_bytes: int = 0
    checked_blobs: int = 0
    checked_records: int = 0
    seconds: float = 0.0


class ScrubReport(VerifyReport, frozen=True, kw_only=True):
    """What `scrub` read in this call. `ok`: the pass, as far as it is, has found no damage.

    `complete`: the pass is through; else `resume` goes on. `pass_bytes` of `total_bytes` and `pass_problems` count its
    earlier calls too. `quarantined`: places that this call put into quarantine. `catalog_rebuilt`: the catalog said
    what segments do not, and was made anew.
    """

    complete: bool = True
    pass_bytes: int = 0
    pass_problems: int = 0
    total_bytes: int = 0
    quarantined: int = 0
    catalog_rebuilt: bool = False


class Mended(Value, frozen=True, kw_only=True):
    """One piece that `repair` brought back: what it is, where its damaged record lies (None: nowhere), and whence.

    `source`: the location or path of a source, "this store" (another copy), "the catalog", or "computed".
    """

    what: str
    hash: Hash | None = None
    segment: int | None = None
    offset_bytes: int | None = None
    source: str


class RepairReport(Value, frozen=True, kw_only=True):
    """What `repair` brought back, and what is still damaged or missing (the first 10,000 of each)."""

    ok: bool
    repaired: tuple[Mended, ...] = ()
    repaired_count: int = 0
    missing: tuple[Problem, ...] = ()
    missing_count: int = 0
    fetched_bytes: int = 0
    seconds: float = 0.0


class Ailment(Value, frozen=True, kw_only=True):
    """One thing that is not well, and what to do about it."""

    what: str
    advice: str


class Health(Value, frozen=True, kw_only=True):
    """How a store is. `ok`: there is nothing to do.

    `quarantined`: damaged records that are not repaired. `missing_blobs`: named and not here. `quarantined_segments`:
    their structure is broken. `lost_segments`: gone, or shorter than they were. `given_up_segments`: this process
    could not make them durable. `dead_sessions`: left by processes that died, harmless. `bad_outboards`: how often an
    outboard was damaged and reading did without it. `scrubbed_at`, `collected_at`: the end of the last whole one;
    None: never, as far as the catalog knows.
    """

    ok: bool
    ailments: tuple[Ailment, ...] = ()
    checked_at: datetime
    scrubbed_at: datetime | None = None
    scrub_problems: int = 0
    scrub_under_way: bool = False
    collected_at: datetime | None = None
    quarantined: int = 0
    missing_blobs: int = 0
    lost_segments: tuple[int, ...] = ()
    quarantined_segments: tuple[int, ...] = ()
    given_up_segments: tuple[int, ...] = ()
    dead_sessions: int = 0
    free_bytes: int = 0
    reserve_bytes: int = 0
    bad_outboards: int = 0
    missing_outboards: int = 0
    """Of a bucket, as the next two: blobs whose outboard is computed when they are read, at the last whole listing."""
    foreign_objects: int = 0
    """Objects among ours that are not of our making; they are left alone."""
    unacknowledged: int = 0
    """Names whose blob was collected before they were acknowledged; they are in no answer."""
    listed_at: datetime | None = None
    """When the bucket was last listed as a whole: by a rebuild, a refresh or a scrub."""


class SharedWith(Value, frozen=True, kw_only=True):
    """An artifact that has pieces in common with another: how many bytes of its blob."""

    id: str
    shared_bytes: int


class ArtifactStats(Value, frozen=True, kw_only=True):
    """One artifact in figures. Bytes are plain ones of its blob; of a tree, of the list alone.

    `shared_bytes`: in chunks that another live artifact's blob has too; `own_bytes`: the rest. `stored_bytes`: its
    distinct chunks as they lie on disk. `shared_with`: the first 100 by id.
    """

    id: str
    hash: Hash
    size_bytes: int
    chunks: int
    stored_bytes: int
    shared_bytes: int
    own_bytes: int
    shared_with: tuple[SharedWith, ...] = ()


class RecoveryStats(Value, frozen=True, kw_only=True):
    """What a rebuild of the catalog found in storage."""

    complete_blobs: int = 0
    partial_blobs: int = 0
    chunks: int = 0
    artifacts: int = 0
    tags: int = 0
    segments: int = 0
    damaged: int = 0
    copied_bytes: int = 0
    problems: tuple[Problem, ...] = ()
    seconds: float = 0.0
    foreign_objects: int = 0
    """Of a bucket: objects among ours that are not of our making; they are left alone."""
    missing_outboards: int = 0
    """Of a bucket: blobs whose outboard is computed when they are read, or by `deep`."""
    unacknowledged: int = 0
    """Of a bucket: names whose blob was collected before they were acknowledged. They are in no answer."""
    requests: Mapping[str, int] = {}
    """Of a bucket: what it was asked, by kind, with the bytes that came and went."""


class RefreshStats(Value, frozen=True, kw_only=True):
    """What a refresh of the catalog brought.

    `names_read`: objects of names that were new or other ones. `is_rebuilt`: some were gone, and all were read anew.
    `blobs_gone` were collected by others. A local store has one catalog, which is never behind: all are 0.
    """

    names_read: int = 0
    blobs_found: int = 0
    blobs_gone: int = 0
    is_rebuilt: bool = False
    damaged: int = 0
    problems: tuple[Problem, ...] = ()
    requests: Mapping[str, int] = {}
    seconds: float = 0.0


class SegmentShare(Value, frozen=True, kw_only=True):
    """How much of a segment counts: `live_bytes` are its records to which the catalog points, with their entries."""

    segment: int
    size_bytes: int
    live_bytes: int


class Stats(Value, frozen=True, kw_only=True):
    """The store in figures, all from the catalog.

    `logical_bytes`: the sizes of all live artifacts. `unique_bytes`: distinct payloads before compression.
    `stored_bytes`: the same as they lie in the log. `disk_bytes`: segments and catalog as files. `tree_bytes`:
    outboards and manifests; `copy_bytes`: further copies of payloads that are there already; `quarantined`: places
    that were found damaged. `orphan_blobs`: blobs, and `orphan_bytes` their sizes, that no artifact (deleted ones that
    can be restored included), tag or requirement names by their hash: children of trees and what only a lease or a
    partial blob keeps are counted among them. `live_bytes`: what compaction would keep of the segments;
    `segment_shares`: of each.
    """

    artifacts: int
    deleted_artifacts: int
    blobs: int
    chunks: int
    tags: int
    logical_bytes: int
    unique_bytes: int
    stored_bytes: int
    disk_bytes: int
    catalog_bytes: int
    segments: int
    deduplication_ratio: float
    compression_ratio: float
    tree_bytes: int = 0
    copy_bytes: int = 0
    quarantined: int = 0
    orphan_blobs: int = 0
    orphan_bytes: int = 0
    live_bytes: int = 0
    segment_shares: tuple[SegmentShare, ...] = ()
    requests: Mapping[str, int] = {}
    """Of a bucket: what it was asked since the store was opened, by kind, with the bytes that came and went."""


class KeptSegment(Value, frozen=True, kw_only=True):
    """A segment that could not be given back, and why."""

    segment: int
    reason: str


class CompactReport(Value, frozen=True, kw_only=True):
    """What `compact` did, or (`dry_run`) would do as far as the catalog can tell.

    `segments` were rewritten and are gone; of their `size_bytes` `copied_bytes` were live and lie elsewhere now;
    `freed_bytes` is what the store takes less. `kept`: what had dead bytes and stays, and why. `problems`: damage that
    was met; a damaged record is never copied, and its segment never removed. Of a bucket: `names_gathered` objects of
    names were put into fewer; blobs stay where they are.
    """

    dry_run: bool = False
    segments: tuple[int, ...] = ()
    size_bytes: int = 0
    copied_bytes: int = 0
    freed_bytes: int = 0
    tombstones_dropped: int = 0
    kept: tuple[KeptSegment, ...] = ()
    problems: tuple[Problem, ...] = ()
    reserve_used: bool = False
    names_gathered: int = 0
    seconds: float = 0.0


class Waiting(Value, frozen=True, kw_only=True):
    """A process that a collection waits for: an operation of its, that began before, still runs."""

    session: str
    pid: int
    host: str
    since: datetime | None = None
    """When that operation began; None where the session cannot be read."""


class GcReport(Value, frozen=True, kw_only=True):
    """What a collection did, or (`dry_run`) would do if nobody else did anything meanwhile.

    `complete`: a whole cycle has ended; else the next call goes on, and `waits_for` says whom this one waited for.
    `forgotten_artifacts`: deleted ones whose undo window is over. `dropped_blobs` and `dropped_payloads` are gone;
    `freed_bytes`: what their records take, which compaction gives back. `condemned`, `pardoned`: rows that were
    found unreachable at first, and those of them that were reached at the second look. `blobs`: the first 10,000 that
    went; of a dry run `reasons` says why, by hash. `compacted`: what was given back at the end of the cycle.
    Of a bucket, `price` says what requests the changes were to take, about, before any was made (all that a dry run
    asked, a real one asks as well), and `requests` what the call asked in all.
    """

    complete: bool
    dry_run: bool = False
    forgotten_artifacts: int = 0
    dropped_blobs: int = 0
    dropped_payloads: int = 0
    freed_bytes: int = 0
    condemned: int = 0
    pardoned: int = 0
    blobs: tuple[Hash, ...] = ()
    reasons: Mapping[str, str] = {}
    waits_for: tuple[Waiting, ...] = ()
    compacted: CompactReport | None = None
    price: Mapping[str, int] = {}
    requests: Mapping[str, int] = {}
    seconds: float = 0.0


class Forecast(Value, frozen=True, kw_only=True):
    """What deleting some artifacts would give back, once their undo window is over and the space is compacted.

    `freed_bytes`: in storage, of what nothing else uses. `shared_bytes`: in storage, of what stays for others.
    """

    artifacts: int
    freed_bytes: int
    shared_bytes: int
    min_age_seconds: float


class Chain(Value, frozen=True, kw_only=True):
    """Why something is kept: a root, and the blobs from what it names down to what was asked about."""

    root: str
    """`artifact ID`, `tag NAME`, `lease …`, and the like."""
    path: tuple[Hash, ...]


class TreeReport(Value, frozen=True, kw_only=True):
    """What a put_tree left out: (path, why) for each file that vanished, may not be read, or is no file."""

    skipped: tuple[tuple[str, str], ...] = ()


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


def now_ms() -> int:
    """Give the wall clock in milliseconds since the Unix epoch. Nothing that keeps data safe depends on it."""
    return time.time_ns() // 1_000_000


EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(time_ms: int) -> datetime:
    """Give an aware UTC time."""
    return datetime.fromtimestamp(time_ms / 1000, UTC)


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
