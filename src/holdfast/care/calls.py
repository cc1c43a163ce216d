"""The calls of an open store that look after it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast, overload

from holdfast.arguments import items_of, number, whole_number
from holdfast.core import Core, entered
from holdfast.engine import Engine
from holdfast.reports import ArtifactStats, Health, RepairReport, ScrubReport, Stats, VerifyReport
from holdfast.types import Artifact, ProgressCallback, Ref

if TYPE_CHECKING:
    from holdfast.store import Store


class Care:
    """A part of `Store`."""

    _core: Core
    _engine: Engine

    @entered
    def verify(self, ref: Ref, *, progress: ProgressCallback | None = None) -> VerifyReport:
        """Read all of an artifact or blob (of a tree, all files) against its hash. Damage is reported, not raised."""
        return self._engine.verify(ref, progress)

    @entered
    def scrub(
        self,
        *,
        progress: ProgressCallback | None = None,
        drop_cache: bool = False,
        resume: bool = False,
        max_bytes: int | None = None,
        bytes_per_second: float | None = None,
    ) -> ScrubReport:
        """Check every record at rest, and that what the catalog names is there. Damage is reported, not raised.

        What is damaged goes into quarantine, unless the store was opened to read. With `max_bytes`, or when it is
        interrupted (`progress` may raise), a later call with `resume` goes on where this one ended; without, a pass
        begins anew. `bytes_per_second` (1 and more) bounds how fast it reads. `drop_cache` asks the kernel to read
        from the disk and not from its memory.
        """
        if max_bytes is not None:
            whole_number("max_bytes", max_bytes)
        if bytes_per_second is not None:
            number("bytes_per_second", bytes_per_second, 1)
        return self._engine.scrub(
            progress,
            drop_cache=drop_cache,
            resume=resume,
            max_bytes=max_bytes,
            bytes_per_second=bytes_per_second,
        )

    @entered
    def repair(
        self,
        sources: Iterable[Store | str | os.PathLike[str]] | Store | str | os.PathLike[str] = (),
        *,
        give_up: bool = False,
        progress: ProgressCallback | None = None,
    ) -> RepairReport:
        """Bring back what is known to be damaged or missing: `scrub` first, to know all of it.

        `sources`: other stores (open ones or locations, of any backend), and files or directories with original
        bytes. Only what is damaged is read there, and verified. It is stored anew, the old places are nobody's then;
        headers, indexes and other things that follow from sound bytes are put back in place. Documents (artifacts,
        tags) come back from the catalog, or from a store that has the very same ones: same id, revision and words.
        What no source has stays in quarantine and is `missing` in the report; with `give_up` it is let go for good.
        """
        one = isinstance(sources, (str, os.PathLike)) or hasattr(sources, "iter_bytes")
        wanted = (sources,) if one else tuple(items_of("sources", cast("Iterable[Any]", sources)))
        return self._engine.repair(wanted, progress, give_up=give_up)

    @overload
    def stats(self, ref: None = None) -> Stats: ...
    @overload
    def stats(self, ref: Artifact | str) -> ArtifactStats: ...
    def stats(self, ref: Artifact | str | None = None) -> Stats | ArtifactStats:
        """Give the store in figures, from the catalog; or one artifact: how much of it is shared, and with whom."""
        return self._stats() if ref is None else self._artifact_stats(ref)

    @entered
    def _stats(self) -> Stats:
        return self._engine.stats()

    @entered
    def _artifact_stats(self, ref: Artifact | str) -> ArtifactStats:
        return self._engine.artifact_stats(ref)

    @entered
    def health(self) -> Health:
        """Say how the store is, and what is to be done about what is not well. Reads no data: `scrub` does that."""
        return self._engine.health()
