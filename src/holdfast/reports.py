"""What reports say: frozen values, each with `to_dict`. No I/O, no logic.

Units are in the names: `_bytes`, `_ms` (milliseconds since the Unix epoch, UTC).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from holdfast.types import Hash, Value


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
    their structure is broken. `lost_segments`: gone, shorter than they were, or replaced. `given_up_segments`: this
    process could not make them durable. `doubtful`: the catalog was made from damaged storage and may know older
    states of names; a rebuild, once scrub finds nothing, makes one that is not. `dead_sessions`: left by processes
    that died, harmless. `bad_outboards`: how often an outboard was damaged and reading did without it. `scrubbed_at`,
    `collected_at`: the end of the last whole one; None: never, as far as the catalog knows.
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
    doubtful: bool = False
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

    `names_read`: objects of names that were new or other ones. `is_rebuilt`: some were gone, and all were read anew;
    `damaged` and `problems` have the artifacts that nothing names any more, and that nobody has deleted.
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
    names were put into fewer; blobs stay where they are, and `requests` is what the call asked.
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
    requests: Mapping[str, int] = {}


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
    asked, a real one asks as well), and `requests` what the call asked in all; `aborted_uploads`: uploads in parts that
    were broken off long ago.
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
    aborted_uploads: int = 0
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
