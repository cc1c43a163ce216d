"""What a store uses of the collection: `gc`, its dry run, `why`, `forecast`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from holdfast.backend.log.collector import collecting
from holdfast.catalog.collecting import iter_expired
from holdfast.compaction import compact_segments
from holdfast.errors import InvalidInput
from holdfast.gc.cycle import Collection
from holdfast.gc.explain import dry_run, forecast, why
from holdfast.gc.found import expiry_ms
from holdfast.gc.marks import Marks
from holdfast.gc.roots import refusal
from holdfast.importing import expire_partials
from holdfast.log_core import LogCore
from holdfast.reports import Chain, CompactReport, Forecast, GcReport
from holdfast.room import making_room
from holdfast.sequences import Unreadable
from holdfast.types import Artifact, Hash, ProgressCallback, now_ms
from holdfast.uploads import expire_uploads


def _never() -> bool:
    return False


@contextmanager
def _naming_roots(core: LogCore) -> Iterator[None]:
    try:
        yield
    except Unreadable as error:
        raise refusal(core, error) from error.cause


class Collector:
    """The room of collection."""

    def __init__(self, core: LogCore) -> None:
        self._core = core
        self._marks: Marks | None = None
        self._seen: tuple[object, ...] | None = None

    def gc(
        self,
        *,
        dry: bool,
        min_age_seconds: float | None,
        max_batches: int | None,
        progress: ProgressCallback | None,
        stop: Callable[[], bool] = _never,
    ) -> GcReport:
        """Collect, or (`dry`) say what would go. `stop` is asked between two steps."""
        core = self._core
        age = core.options.min_age_seconds if min_age_seconds is None else min_age_seconds
        if not 0 <= age <= 1 << 40:
            raise InvalidInput(f"min_age_seconds is {age}; 0 and more are allowed")
        if max_batches is not None and max_batches < 1:
            raise InvalidInput(f"max_batches is {max_batches}; 1 and more are allowed")
        if dry:
            with _naming_roots(core):
                return dry_run(core, age, progress)
        core.backend.require_writing()
        return making_room(core, lambda: self._gc(age, max_batches, progress, stop))

    def _gc(
        self,
        age: float,
        max_batches: int | None,
        progress: ProgressCallback | None,
        stop: Callable[[], bool],
    ) -> GcReport:
        core = self._core
        started = time.monotonic()
        backend = core.backend
        expire_partials(core, now_ms())
        expire_uploads(core, now_ms())
        with collecting(backend.disk, backend.root, "gc"):
            collection = Collection(
                core,
                min_age_seconds=age,
                max_batches=max_batches,
                progress=progress,
                stop=lambda: stop() or core.was_closed,
                old=self._marks,
            )
            self._marks = None
            collection.run()
            self._marks = collection.marks
            found = collection.found
            # What went in earlier cycles can be given back, also while somebody is waited for.
            ends = found.complete or bool(found.waits_for)
            compacted = self._compact(progress, collection.stop) if ends else None
        return found.report(time.monotonic() - started, compacted)

    def _compact(self, progress: ProgressCallback | None, stop: Callable[[], bool]) -> CompactReport | None:
        """Compact where that pays, unless it is to stop."""
        return None if stop() else compact_segments(self._core, progress=progress, stop=stop)

    def gc_if_changed(self, stop: Callable[[], bool]) -> GcReport | None:
        """Collect, unless nothing has happened since the last cycle that this process saw to its end."""
        if expire_partials(self._core, now_ms()) or expire_uploads(self._core, now_ms()):
            self._seen = None
        state = self._state()
        if state == self._seen:
            return None
        self._seen = None
        report = self.gc(dry=False, min_age_seconds=None, max_batches=None, progress=None, stop=stop)
        if report.complete:
            self._seen = state
        return report

    def _state(self) -> tuple[object, ...]:
        """Give what changes whenever something may have become garbage: a commit, a lease, the end of a window."""
        core = self._core
        catalog = core.catalog
        leases = tuple((one.name, one.leases) for one in core.backend.sessions(leases=True))
        expired = next(iter_expired(catalog, expiry_ms(core.options.min_age_seconds)), None)
        return (
            catalog.id,
            hash(tuple(sorted(catalog.segments().items()))),
            hash(leases),
            expired,
        )

    def forecast(self, refs: Iterable[Artifact | str]) -> Forecast:
        """Say what deleting artifacts would give back."""
        with _naming_roots(self._core):
            return forecast(self._core, refs)

    def why(self, hash: Hash) -> tuple[Chain, ...]:
        """Say what keeps a blob or a chunk."""
        with _naming_roots(self._core):
            return why(self._core, hash)

    def close(self) -> None:
        """Give back what an unfinished collection keeps in memory."""
        marks, self._marks = self._marks, None
        if marks is not None:
            marks.close()
