"""What an open store asks of whatever keeps its bytes, beyond what the rooms do for every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from typing import IO

    from holdfast.artifacts import Artifacts
    from holdfast.core import Core
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
    from holdfast.resumable import ResumableWriter
    from holdfast.types import Artifact, BytesLike, Hash, ProgressCallback, Ref, Upload
    from holdfast.words import Words


class Engine(Protocol):
    """`Store` says what each of these does; `core` is what the rooms work on."""

    @property
    def core(self) -> Core: ...

    def rebuild(self, progress: ProgressCallback | None) -> RecoveryStats: ...
    def refresh(self, progress: ProgressCallback | None) -> RefreshStats: ...
    def requests(self) -> Mapping[str, int]:
        """Give what a bucket was asked since the store was opened; nothing for a local store."""

    def sync(self) -> None: ...
    def stop_work(self) -> None:
        """End the background work and write down what waits for it, as the first step of `close`."""

    def close(self) -> None:
        """Let go of everything; nobody is within a call any more."""

    # -- blobs that come as streams

    def take_in(
        self,
        digest: bytes,
        ranges: ChunkRanges | None,
        source: IO[bytes] | Iterable[BytesLike],
        watch: Callable[[int, int | None], None],
    ) -> None:
        """Take in the BAO stream of a blob; what verified is kept, whatever becomes of the rest."""

    def retire_partials(self, digests: Collection[bytes]) -> None:
        """Remove what was kept of blobs that are complete by now."""

    # -- uploads

    def begin_upload(self, artifacts: Artifacts, words: Words) -> ResumableWriter: ...
    def resume_upload(self, artifacts: Artifacts, token: str) -> ResumableWriter: ...
    def uploads(self) -> Iterator[Upload]: ...
    def expire_uploads(self, time_ms: int) -> list[str]:
        """End the uploads that were to be gone on with before this time; gives their tokens."""

    # -- care

    def verify(self, ref: Ref, progress: ProgressCallback | None) -> VerifyReport: ...
    def scrub(
        self,
        progress: ProgressCallback | None,
        *,
        drop_cache: bool,
        resume: bool,
        max_bytes: int | None,
        bytes_per_second: float | None,
    ) -> ScrubReport: ...
    def repair(
        self, sources: Sequence[object], progress: ProgressCallback | None, *, give_up: bool
    ) -> RepairReport: ...
    def stats(self) -> Stats: ...
    def artifact_stats(self, ref: Artifact | str) -> ArtifactStats: ...
    def health(self) -> Health: ...

    # -- collection

    def gc(
        self,
        *,
        dry: bool,
        min_age_seconds: float | None,
        max_batches: int | None,
        progress: ProgressCallback | None,
    ) -> GcReport: ...
    def compact(
        self, min_dead_share: float, progress: ProgressCallback | None, *, dry_run: bool
    ) -> CompactReport: ...
    def forecast(self, refs: Iterable[Artifact | str]) -> Forecast: ...
    def why(self, hash: Hash) -> tuple[Chain, ...]: ...
    def start_maintenance(self) -> None: ...
    def stop_maintenance(self) -> None: ...
    def maintenance_turns(self) -> int:
        """How often the background work has looked so far."""
