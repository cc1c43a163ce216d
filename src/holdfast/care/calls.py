"""The calls of an open store that look after it."""

from __future__ import annotations

from holdfast.care.figures import stats
from holdfast.care.scrub import scrub
from holdfast.care.verify import verify
from holdfast.core import Core, entered
from holdfast.types import ProgressCallback, Ref, ScrubReport, Stats, VerifyReport


class Care:
    """A part of `Store`."""

    _core: Core

    @entered
    def verify(self, ref: Ref, *, progress: ProgressCallback | None = None) -> VerifyReport:
        """Read all of an artifact or blob (of a tree, all files) against its hash. Damage is reported, not raised."""
        return verify(self._core, ref, progress)

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
        begins anew. `bytes_per_second` bounds how fast it reads. `drop_cache` asks the kernel to read from the disk
        and not from its memory.
        """
        return scrub(
            self._core,
            progress,
            drop_cache=drop_cache,
            resume=resume,
            max_bytes=max_bytes,
            bytes_per_second=bytes_per_second,
        )

    @entered
    def stats(self) -> Stats:
        """Give the store in figures, from the catalog."""
        return stats(self._core)
