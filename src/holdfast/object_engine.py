"""The object backend's own part of an open store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, NoReturn

from holdfast import _native
from holdfast.artifacts import Artifacts
from holdfast.care.report import Report, problem_of
from holdfast.core import MENDABLE
from holdfast.errors import BackendError, CorruptBlob, HoldfastError, InvalidInput
from holdfast.object_core import ObjectCore
from holdfast.ranges import ChunkRanges
from holdfast.reading import Reading
from holdfast.types import (
    Ailment,
    Artifact,
    ArtifactStats,
    BytesLike,
    Chain,
    CompactReport,
    Forecast,
    GcReport,
    Hash,
    Health,
    ProgressCallback,
    RecoveryStats,
    Ref,
    RefreshStats,
    RepairReport,
    ScrubReport,
    Stats,
    Upload,
    VerifyReport,
    id_text,
    now_ms,
    to_datetime,
)
from holdfast.words import Words

if TYPE_CHECKING:
    from holdfast.resumable import ResumableWriter

MISSING = """
SELECT count(*) FROM artifacts WHERE deleted_ms IS NULL AND NOT EXISTS(
  SELECT 1 FROM blobs WHERE blobs.hash = artifacts.hash)"""


class ObjectEngine:
    """See `engine.Engine`."""

    def __init__(self, core: ObjectCore) -> None:
        self.core = core

    def rebuild(self, progress: ProgressCallback | None) -> RecoveryStats:
        return self.core.keeper.rebuild(progress)

    def refresh(self, progress: ProgressCallback | None) -> RefreshStats:
        return self.core.keeper.refresh(progress)

    def sync(self) -> None:
        """Nothing waits: what was acknowledged is stored."""

    def stop_work(self) -> None:
        """There is none."""

    def close(self) -> None:
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
        _later("a resumable writer")

    def resume_upload(self, artifacts: Artifacts, token: str) -> ResumableWriter:
        _later("a resumable writer")

    def uploads(self) -> Iterator[Upload]:
        return iter(())

    def expire_uploads(self, time_ms: int) -> list[str]:
        return []

    # -- care

    def verify(self, ref: Ref, progress: ProgressCallback | None) -> VerifyReport:
        core = self.core
        report = Report("verify", progress)
        hashes = [core.resolve(ref).hash]
        if not isinstance(ref, Hash):
            entry = core.artifact(ref)
            if entry.format:
                try:
                    files = dict.fromkeys(hash_ for _, hash_ in Reading(core).iter_collection(entry.hash))
                    hashes += [one for one in files if one != entry.hash]
                except MENDABLE:
                    raise
                except HoldfastError as error:
                    report.add(problem_of(error))
        for hash_ in hashes:
            self._verify_blob(hash_, report)
        return report.finish()

    def _verify_blob(self, hash_: bytes, report: Report) -> None:
        """Read a blob, and say in the report what is wrong with it."""
        try:
            reader = self.core.open_row(self.core.blob(hash_))
            hasher = _native.BlobHasher()
            for piece in reader.iter_bytes(0, reader.size_bytes):
                hasher.update(piece)
                hasher.take_groups()
                report.checked(len(piece))
            if hasher.finish()[0] != hash_:
                raise CorruptBlob(f"the object of blob {hash_.hex()} holds other bytes", hash=Hash(hash_))
        except (BackendError, *MENDABLE):
            raise
        except HoldfastError as error:
            report.add(problem_of(error, hash=Hash(hash_)))
        report.blobs += 1

    def scrub(
        self,
        progress: ProgressCallback | None,
        *,
        drop_cache: bool,
        resume: bool,
        max_bytes: int | None,
        bytes_per_second: float | None,
    ) -> ScrubReport:
        if resume or max_bytes is not None or bytes_per_second is not None:
            _later("a scrub in parts")
        report = Report("scrub", progress)
        for row in self.core.catalog.iter_blobs():
            self._verify_blob(row.hash, report)
        fields = report.fields()
        return ScrubReport(
            ok=not report.count,
            pass_bytes=report.bytes,
            pass_problems=report.count,
            total_bytes=report.bytes,
            **fields,
        )

    def repair(
        self, sources: Sequence[object], progress: ProgressCallback | None, *, give_up: bool
    ) -> RepairReport:
        _later("repair")

    def stats(self) -> Stats:
        counts = self.core.catalog.counts()
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
            requests=self.core.backend.bucket.requests.snapshot(),
        )

    def artifact_stats(self, ref: Artifact | str) -> ArtifactStats:
        entry = self.core.artifact(ref)
        row = self.core.blob(entry.hash)
        return ArtifactStats(
            id=id_text(entry.id),
            hash=Hash(entry.hash),
            size_bytes=entry.size,
            chunks=1,
            stored_bytes=row.stored,
            shared_bytes=0,
            own_bytes=entry.size,
        )

    def health(self) -> Health:
        ((missing,),) = self.core.catalog.ask(MISSING)
        ailments = []
        if missing:
            ailments.append(
                Ailment(
                    what=f"{missing} artifacts name blobs that are not in the bucket",
                    advice="put their bytes again, from wherever they are: the names find them",
                )
            )
        return Health(
            ok=not ailments,
            ailments=tuple(ailments),
            checked_at=to_datetime(now_ms()),
            missing_blobs=missing,
            bad_outboards=self.core.backend.remade_outboards,
        )

    # -- collection

    def gc(
        self,
        *,
        dry: bool,
        min_age_seconds: float | None,
        max_batches: int | None,
        progress: ProgressCallback | None,
    ) -> GcReport:
        _later("collection")

    def compact(
        self, min_dead_share: float, progress: ProgressCallback | None, *, dry_run: bool
    ) -> CompactReport:
        _later("compaction")

    def forecast(self, refs: Iterable[Artifact | str]) -> Forecast:
        _later("a forecast")

    def why(self, hash: Hash) -> tuple[Chain, ...]:
        _later("`why`")

    def start_maintenance(self) -> None:
        _later("maintenance")

    def stop_maintenance(self) -> None:
        """There is none."""

    def maintenance_turns(self) -> int:
        return 0


def _later(what: str) -> NoReturn:
    raise InvalidInput(f"{what} is not in this version yet for stores in a bucket")
