"""The calls of an open store that collect what nothing keeps, and explain what keeps what."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.arguments import items_of, number, whole_number
from holdfast.core import Core, entered
from holdfast.engine import Engine
from holdfast.errors import InvalidHash
from holdfast.reports import Chain, CompactReport, Forecast, GcReport
from holdfast.types import Artifact, Hash, ProgressCallback


class Collecting:
    """A part of `Store`."""

    _core: Core
    _engine: Engine

    @entered
    def gc(
        self,
        *,
        dry_run: bool = False,
        min_age_seconds: float | None = None,
        max_batches: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> GcReport:
        """Drop what nothing keeps: a whole cycle, or a bounded part of one, which the next call continues.

        `min_age_seconds` is the undo window of what was deleted ([gc] says the usual one); 0 is safe. Waits some
        seconds for operations that began before; `waits_for` then says whose, `complete` is False, and the next
        call goes on. `dry_run` gives what would go, and why. `max_batches` bounds what is changed, not what is read.

        `Locked` names who collects already; `UnreadableRoot` what is kept and cannot be read: then nothing goes.
        """
        if min_age_seconds is not None:
            number("min_age_seconds", min_age_seconds, 0)
        if max_batches is not None:
            whole_number("max_batches", max_batches)
        return self._engine.gc(
            dry=dry_run, min_age_seconds=min_age_seconds, max_batches=max_batches, progress=progress
        )

    @entered
    def compact(
        self,
        min_dead_share: float = 0.0,
        progress: ProgressCallback | None = None,
        *,
        dry_run: bool = False,
    ) -> CompactReport:
        """Give back the room of what `gc` dropped: segments of which at least this share is dead are rewritten.

        What counts is verified, copied and durable before its old segment goes; who reads meanwhile, here or in
        another process, is not disturbed. Damage is reported, and its segment kept; so is one that somebody writes to.
        On a full disk it uses the reserve; `NoSpace` says how much is missing when that is too little. `dry_run` says
        what would be done. `Locked` names who collects or compacts already. Interrupted (`progress` may raise), it
        has lost nothing; what was rewritten by then is done.
        """
        number("min_dead_share", min_dead_share, 0, 1)
        return self._engine.compact(min_dead_share, progress, dry_run=dry_run)

    def forecast(self, refs: Artifact | str | Iterable[Artifact | str]) -> Forecast:
        """Say what deleting an artifact, or several, would give back, and what of them stays because it is shared."""
        return self._forecast([refs] if isinstance(refs, Artifact | str) else list(items_of("refs", refs)))

    @entered
    def _forecast(self, refs: list[Artifact | str]) -> Forecast:
        return self._engine.forecast(refs)

    @entered
    def why(self, hash: Hash) -> tuple[Chain, ...]:
        """Give the chains from roots to a blob or chunk, up to 100: all that keeps it. None: the next `gc` takes it."""
        if not isinstance(hash, Hash):
            raise InvalidHash(f"a Hash is needed, not {type(hash).__name__}: Hash.parse reads text")
        return self._engine.why(hash)

    @entered
    def start_maintenance(self) -> None:
        """Collect in the background from now on, at [gc] interval_seconds, and scrub a little each time.

        Does nothing where [gc] enabled is false, or when it runs already. `stop_maintenance` and `close` end it.
        """
        self._engine.start_maintenance()

    def stop_maintenance(self) -> None:
        """End the background work promptly; what it has done is durable. Harmless when there is none."""
        self._engine.stop_maintenance()
