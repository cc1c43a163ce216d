"""Rebuilding a catalog with every byte read: a rebuild, then a scrub of all there is. Any backend."""

from __future__ import annotations

import msgspec

from holdfast.engine import Engine
from holdfast.reports import RecoveryStats
from holdfast.types import ProgressCallback


def rebuild_deep(engine: Engine, progress: ProgressCallback | None, *, resume: bool) -> RecoveryStats:
    """Rebuild, and read everything; `resume`: go on reading where an earlier call, or a scrub, was interrupted."""
    before = engine.stats().requests
    if resume := resume and engine.health().scrub_under_way:
        counts = engine.stats()
        stats = RecoveryStats(
            complete_blobs=counts.blobs, chunks=counts.chunks, artifacts=counts.artifacts, tags=counts.tags
        )
    else:
        stats = engine.rebuild(progress)
    report = engine.scrub(progress, drop_cache=False, resume=resume, max_bytes=None, bytes_per_second=None)
    after = engine.stats().requests
    return msgspec.structs.replace(
        stats,
        damaged=max(stats.damaged, report.pass_problems),
        problems=report.problems or stats.problems,
        seconds=stats.seconds + report.seconds,
        requests={name: count - before.get(name, 0) for name, count in after.items()},
    )
