"""How a store is: one answer, from the catalog, the directory and the sessions; nothing is read through."""

from __future__ import annotations

from holdfast.backend.log.disk import Disk
from holdfast.backend.log.layout import SESSIONS
from holdfast.care.scrub import DONE, POSITION, Done, Position, read_hint
from holdfast.catalog.collecting import COLLECTED
from holdfast.errors import BackendError
from holdfast.facts import SEGMENT_QUARANTINED
from holdfast.log_core import LogCore
from holdfast.reports import Ailment, Health
from holdfast.types import now_ms, to_datetime

OUTBOARDS = "bad_outboards"
"""In `meta`: how often an outboard did not verify and was not needed."""
MAX_LISTED = 1_000
FULL_BYTES = 64 << 10
"""With fewer bytes free, next to nothing can be stored."""
FROM_A_COPY = "`holdfast repair SOURCE`, with a copy of the store or of the files"


def note_outboards(core: LogCore) -> int:
    """Add what this process met to the count that the catalog keeps; give it."""
    payloads = core.backend.payloads
    more, payloads.bad_outboards = payloads.bad_outboards, 0
    known = int(core.catalog.get_meta(OUTBOARDS) or 0)
    if more and not core.backend.read_only:
        core.catalog.set_meta(OUTBOARDS, known + more)
    return known + more


def health(core: LogCore) -> Health:
    """Say how the store is, and what is to be done about what is not well."""
    core.write_down_damage()
    backend, catalog = core.backend, core.catalog
    known = catalog.segments()
    quarantined = catalog.quarantined()
    lost = backend.unsound_segments(known)
    broken = [segment for segment, (_, state) in sorted(known.items()) if state == SEGMENT_QUARANTINED]
    given_up = backend.failed_segments()
    with backend.lock():  # a session is made under it: none is half made now
        dead = 0 if backend.read_only else dead_sessions(backend.disk, backend.root)
    done = read_hint(core, DONE, Done)
    position = read_hint(core, POSITION, Position)
    collected = catalog.get_meta(COLLECTED)
    free = backend.disk.free_bytes(backend.root)
    held, reserve = backend.reserve.held_bytes(), backend.reserve.want_bytes()
    missing = catalog.ask(MISSING)[0][0]
    kept = core.keeper.kept_names()
    ailments: list[Ailment] = []

    def ail(what: str, advice: str) -> None:
        ailments.append(Ailment(what=what, advice=advice))

    if quarantined:
        ail(
            f"{len(quarantined)} records are damaged",
            FROM_A_COPY,
        )
    if missing:
        ail(
            f"{missing} blobs are named and not here",
            FROM_A_COPY,
        )
    for segment, path, why in lost[:10]:
        ail(f"segment {segment} {why}", f"bring {path} back, or `holdfast repair SOURCE`")
    if broken:
        ail(
            f"the structure of {len(broken)} segments is broken",
            "`holdfast repair`: it is made again from what is sound",
        )
    if kept:
        ail(
            f"{kept} names are known to the catalog alone: their records are damaged, or replaced by others",
            FROM_A_COPY,
        )
    if core.keeper.problems:
        ail(
            f"the last look at storage met {len(core.keeper.problems)} problems",
            "`holdfast scrub`, then `holdfast repair`",
        )
    if given_up:
        ail(
            f"the disk refused to make {len(given_up)} segments durable",
            "nothing acknowledged is lost; look at the disk before you go on",
        )
    if free + held < reserve:
        ail(
            f"{free} bytes are free, fewer than the {reserve} that compaction may need",
            "`holdfast gc` while it can work, or make room",
        )
    elif held and free < FULL_BYTES:
        ail(
            f"the disk is full: {free} bytes are free, and {held} are kept in reserve",
            "delete what you can do without, then `holdfast gc`, which uses the reserve; or make room",
        )
    return Health(
        ok=not ailments,
        ailments=tuple(ailments),
        scrubbed_at=to_datetime(done.finished_ms) if done is not None else None,
        scrub_problems=done.problems if done is not None else 0,
        scrub_under_way=position is not None,
        collected_at=to_datetime(int(collected)) if collected else None,
        quarantined=len(quarantined),
        missing_blobs=missing,
        lost_segments=tuple(segment for segment, _, _ in lost[:MAX_LISTED]),
        quarantined_segments=tuple(broken[:MAX_LISTED]),
        given_up_segments=tuple(given_up[:MAX_LISTED]),
        doubtful=catalog.is_doubtful,
        dead_sessions=dead,
        free_bytes=free,
        reserve_bytes=reserve,
        bad_outboards=note_outboards(core),
        checked_at=to_datetime(now_ms()),
    )


def dead_sessions(disk: Disk, root: str) -> int:
    """Count the session files of processes that died: harmless, and removed by the next opener."""
    count = 0
    try:
        names = disk.listdir(f"{root}/{SESSIONS}")
    except (FileNotFoundError, BackendError):
        return 0
    for name in names:
        try:
            handle = disk.open(f"{root}/{SESSIONS}/{name}", "r")
        except (FileNotFoundError, BackendError):
            continue
        try:
            count += disk.lock(handle)
        finally:
            disk.close(handle)
    return count


MISSING = """
SELECT count(*) FROM (
  SELECT hash FROM artifacts WHERE deleted_ms IS NULL
  UNION SELECT hash FROM tags WHERE NOT deleted
) AS named
WHERE NOT EXISTS(SELECT 1 FROM data WHERE data.hash = named.hash AND data.flags & 1)
  AND NOT EXISTS(SELECT 1 FROM blobs WHERE blobs.hash = named.hash)"""
