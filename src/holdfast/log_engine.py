"""The log backend's own part of an open store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import IO, TYPE_CHECKING, Any, cast

from holdfast.artifacts import Artifacts
from holdfast.care.figures import artifact_stats, stats
from holdfast.care.health import health
from holdfast.care.repair import repair
from holdfast.care.scrub import scrub, scrub_step
from holdfast.care.verify import verify
from holdfast.compaction import compact
from holdfast.gc.collector import Collector
from holdfast.gc.maintenance import Maintenance
from holdfast.importing import Import, retire_leftover
from holdfast.log_core import LogCore
from holdfast.ranges import ChunkRanges
from holdfast.reports import (
    ArtifactStats,
    Chain,
    CompactReport,
    Forecast,
    GcReport,
    Health,
    RecoveryStats,
    RefreshStats,
    RepairReport,
    ScrubReport,
    Stats,
    VerifyReport,
)
from holdfast.types import Artifact, BytesLike, Hash, ProgressCallback, Ref, Upload
from holdfast.words import Words

if TYPE_CHECKING:
    from holdfast.resumable import ResumableWriter


class LogEngine:
    """See `engine.Engine`."""

    def __init__(self, core: LogCore) -> None:
        self.core = core
        self.collector = Collector(core)
        self.maintenance = Maintenance(core, self.collector)
        self.maintenance.scrub_step = partial(scrub_step, core)

    def rebuild(self, progress: ProgressCallback | None) -> RecoveryStats:
        return self.core.keeper.rebuild(progress)

    def refresh(self, progress: ProgressCallback | None) -> RefreshStats:
        """There is one catalog for all, and it is never behind."""
        return RefreshStats()

    def requests(self) -> Mapping[str, int]:
        return {}

    def sync(self) -> None:
        self.core.backend.sync()

    def stop_work(self) -> None:
        self.stop_maintenance()
        self.core.write_down_damage()

    def close(self) -> None:
        self.collector.close()
        try:
            self.core.backend.close()
        finally:
            self.core.keeper.close()

    def take_in(
        self,
        digest: bytes,
        ranges: ChunkRanges | None,
        source: IO[bytes] | Iterable[BytesLike],
        watch: Callable[[int, int | None], None],
    ) -> None:
        Import(self.core, digest, ranges).run(source, watch)

    def retire_partials(self, digests: Collection[bytes]) -> None:
        for digest in digests:
            retire_leftover(self.core, digest)

    # -- uploads; those who do not write that way do not load it

    def begin_upload(self, artifacts: Artifacts, words: Words) -> ResumableWriter:
        from holdfast.log_resumable import LogResumableWriter

        return LogResumableWriter.begin(self.core, artifacts, words)

    def resume_upload(self, artifacts: Artifacts, token: str) -> ResumableWriter:
        from holdfast.log_resumable import LogResumableWriter

        return LogResumableWriter.resume(self.core, artifacts, token)

    def uploads(self) -> Iterator[Upload]:
        from holdfast.uploads import iter_uploads

        return iter_uploads(self.core)

    def expire_uploads(self, time_ms: int) -> list[str]:
        from holdfast.uploads import expire_uploads

        return expire_uploads(self.core, time_ms)

    # -- care

    def verify(self, ref: Ref, progress: ProgressCallback | None) -> VerifyReport:
        return verify(self.core, ref, progress)

    def scrub(
        self,
        progress: ProgressCallback | None,
        *,
        drop_cache: bool,
        resume: bool,
        max_bytes: int | None,
        bytes_per_second: float | None,
    ) -> ScrubReport:
        return scrub(
            self.core,
            progress,
            drop_cache=drop_cache,
            resume=resume,
            max_bytes=max_bytes,
            bytes_per_second=bytes_per_second,
        )

    def repair(
        self, sources: Sequence[object], progress: ProgressCallback | None, *, give_up: bool
    ) -> RepairReport:
        from holdfast.care.origins import open_origin

        with ExitStack() as stack:
            origins = []
            for source in sources:
                origins.append(open_origin(cast(Any, source)))
                stack.callback(origins[-1].close)
            return repair(self.core, origins, progress, give_up=give_up)

    def stats(self) -> Stats:
        return stats(self.core)

    def artifact_stats(self, ref: Artifact | str) -> ArtifactStats:
        return artifact_stats(self.core, ref)

    def health(self) -> Health:
        return health(self.core)

    # -- collection

    def gc(
        self,
        *,
        dry: bool,
        min_age_seconds: float | None,
        max_batches: int | None,
        progress: ProgressCallback | None,
    ) -> GcReport:
        return self.collector.gc(
            dry=dry, min_age_seconds=min_age_seconds, max_batches=max_batches, progress=progress
        )

    def compact(
        self, min_dead_share: float, progress: ProgressCallback | None, *, dry_run: bool
    ) -> CompactReport:
        return compact(self.core, min_dead_share, progress, dry_run=dry_run)

    def forecast(self, refs: Iterable[Artifact | str]) -> Forecast:
        return self.collector.forecast(refs)

    def why(self, hash: Hash) -> tuple[Chain, ...]:
        return self.collector.why(hash)

    def start_maintenance(self) -> None:
        self.maintenance.start()

    def stop_maintenance(self) -> None:
        self.maintenance.stop()

    def maintenance_turns(self) -> int:
        return self.maintenance.turns
