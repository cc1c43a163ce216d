"""The object backend's own part of an open store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import IO, TYPE_CHECKING, Any, cast

from holdfast.artifacts import Artifacts
from holdfast.care.figures import MAX_SHARED, ORPHANS
from holdfast.catalog.objects import BAD_COUNT
from holdfast.gc.maintenance import Maintenance
from holdfast.object_care import health, scrub, verify
from holdfast.object_collecting import BucketCollector
from holdfast.object_core import ObjectCore
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
    SharedWith,
    Stats,
    VerifyReport,
)
from holdfast.types import Artifact, BytesLike, Hash, ProgressCallback, Ref, Upload, id_text
from holdfast.words import Words

if TYPE_CHECKING:
    from holdfast.resumable import ResumableWriter


class ObjectEngine:
    """See `engine.Engine`."""

    def __init__(self, core: ObjectCore) -> None:
        self.core = core
        self._collector = BucketCollector(core)
        self._maintenance = Maintenance(core, self._collector)

    def rebuild(self, progress: ProgressCallback | None) -> RecoveryStats:
        return self.core.keeper.rebuild(progress)

    def refresh(self, progress: ProgressCallback | None) -> RefreshStats:
        return self.core.keeper.refresh(progress)

    def requests(self) -> Mapping[str, int]:
        return self.core.backend.bucket.requests.snapshot()

    def sync(self) -> None:
        """Nothing waits: what was acknowledged is stored."""

    def stop_work(self) -> None:
        """End the background work, and write down what reading has met."""
        self._maintenance.stop()
        self.core.write_down_damage()

    def close(self) -> None:
        self.core.claims.close()
        try:
            self.core.backend.close()
        finally:
            self.core.keeper.close()

    # -- blobs that come as streams

    def take_in(
        self,
        digest: bytes,
        ranges: ChunkRanges | None,
        source: IO[bytes] | Iterable[BytesLike],
        watch: Callable[[int, int | None], None],
    ) -> None:
        from holdfast.object_partials import ObjectImport

        ObjectImport(self.core, digest, ranges).run(source, watch)

    def retire_partials(self, digests: Collection[bytes]) -> None:
        from holdfast.object_partials import retire_partials

        retire_partials(self.core, set(digests))

    # -- uploads

    def begin_upload(self, artifacts: Artifacts, words: Words) -> ResumableWriter:
        from holdfast.object_resumable import ObjectResumableWriter

        return ObjectResumableWriter.begin(self.core, artifacts, words)

    def resume_upload(self, artifacts: Artifacts, token: str) -> ResumableWriter:
        from holdfast.object_resumable import ObjectResumableWriter

        return ObjectResumableWriter.resume(self.core, artifacts, token)

    def uploads(self) -> Iterator[Upload]:
        from holdfast.object_uploads import iter_uploads

        return iter_uploads(self.core)

    def expire_uploads(self, time_ms: int) -> list[str]:
        from holdfast.object_uploads import expire_uploads

        return expire_uploads(self.core, time_ms)

    # -- care

    def verify(self, ref: Ref, progress: ProgressCallback | None) -> VerifyReport:
        report = verify(self.core, ref, progress)
        self.core.write_down_damage()
        return report

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
            self.core, progress, resume=resume, max_bytes=max_bytes, bytes_per_second=bytes_per_second
        )

    def repair(
        self, sources: Sequence[object], progress: ProgressCallback | None, *, give_up: bool
    ) -> RepairReport:
        from holdfast.care.origins import open_origin
        from holdfast.object_repair import repair

        with ExitStack() as stack:
            origins = [stack.enter_context(closing(open_origin(cast("Any", one)))) for one in sources]
            return repair(self.core, origins, progress, give_up=give_up)

    def stats(self) -> Stats:
        self.core.write_down_damage()
        counts = self.core.catalog.counts()
        ((orphans, orphan_bytes),) = self.core.catalog.ask(ORPHANS)
        stored = self.core.catalog.ask("SELECT ifnull(sum(stored), 0), ifnull(sum(size), 0) FROM blobs")
        ((stored_bytes, unique_bytes),) = stored
        return Stats(
            artifacts=counts.artifacts,
            deleted_artifacts=counts.deleted_artifacts,
            blobs=counts.blobs,
            chunks=counts.blobs,
            tags=counts.tags,
            logical_bytes=counts.logical_bytes,
            unique_bytes=unique_bytes,
            stored_bytes=unique_bytes,
            disk_bytes=stored_bytes,
            catalog_bytes=counts.catalog_bytes,
            segments=0,
            deduplication_ratio=counts.logical_bytes / unique_bytes if unique_bytes else 1.0,
            compression_ratio=1.0,
            tree_bytes=stored_bytes - unique_bytes,
            quarantined=self.core.catalog.ask(BAD_COUNT)[0][0],
            orphan_blobs=orphans,
            orphan_bytes=orphan_bytes,
            requests=self.requests(),
        )

    def artifact_stats(self, ref: Artifact | str) -> ArtifactStats:
        """Blobs share no pieces here: an artifact shares all of its blob, or nothing."""
        entry = self.core.artifact(ref)
        row = self.core.blob(entry.hash)
        same = (
            "SELECT id FROM artifacts WHERE hash = ? AND id <> ? AND deleted_ms IS NULL ORDER BY id LIMIT ?"
        )
        others = [id_ for (id_,) in self.core.catalog.ask(same, (entry.hash, entry.id, MAX_SHARED))]
        return ArtifactStats(
            id=id_text(entry.id),
            hash=Hash(entry.hash),
            size_bytes=row.size,
            chunks=1,
            stored_bytes=row.stored,
            shared_bytes=row.size if others else 0,
            own_bytes=0 if others else row.size,
            shared_with=tuple(SharedWith(id=id_text(id_), shared_bytes=row.size) for id_ in others),
        )

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
        return self._collector.gc(
            dry=dry, min_age_seconds=min_age_seconds, max_batches=max_batches, progress=progress
        )

    def compact(
        self, min_dead_share: float, progress: ProgressCallback | None, *, dry_run: bool
    ) -> CompactReport:
        return self._collector.compact(min_dead_share, progress, dry_run=dry_run)

    def forecast(self, refs: Iterable[Artifact | str]) -> Forecast:
        return self._collector.forecast(refs)

    def why(self, hash: Hash) -> tuple[Chain, ...]:
        return self._collector.why(hash)

    def start_maintenance(self) -> None:
        self._maintenance.start()

    def stop_maintenance(self) -> None:
        self._maintenance.stop()

    def maintenance_turns(self) -> int:
        return self._maintenance.turns
