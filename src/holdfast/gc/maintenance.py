"""Collection and slow scrubbing in the background: a thread that sleeps, works a little, and ends when it is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, Protocol

from holdfast.core import MENDABLE, Core
from holdfast.errors import HoldfastError, Locked, NeedsReopen, UnreadableRoot

log = logging.getLogger("holdfast")

SCRUB_BYTES: Final = 256 << 20
"""What one turn scrubs."""

ScrubStep = Callable[[int, Callable[[], bool]], None]
"""Scrubs up to so many bytes, going on where the last step ended; the second argument says when to stop."""


class Collects(Protocol):
    """What collects in a store, whatever its backend."""

    def gc_if_changed(self, stop: Callable[[], bool]) -> object:
        """Collect, unless it is known that there is nothing to do. `stop` is asked between two steps."""


class Maintenance:
    """The background work of one open store. `scrub_step` may be set by whoever can scrub in steps.

    A turn that has nothing to do costs a look at the catalog's positions; between turns the thread sleeps.
    """

    def __init__(self, core: Core, collector: Collects) -> None:
        self.scrub_step: ScrubStep | None = None
        self.error: HoldfastError | None = None
        """What kept the last turn from its work."""
        self.turns = 0
        self._core = core
        self._collector = collector
        self._mutex = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it runs or is switched off."""
        self._core.check_writable()
        with self._mutex:
            if self._thread is None and self._core.options.gc_enabled:
                self._end.clear()
                self._thread = threading.Thread(target=self._run, name="holdfast-maintenance", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End, and wait until the step that runs has ended."""
        with self._mutex:
            thread, self._thread = self._thread, None
            self._end.set()
            if thread is not None and not self._core.closed:
                thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._core.options.gc_interval_seconds):
            try:
                self._core.enter()
            except NeedsReopen:
                return
            try:
                self._turn()
                self.error = None
            except Locked as error:
                log.info("maintenance leaves the collection to another process: %s", error)
            except MENDABLE as error:
                self._core.mend(error)
            except HoldfastError as error:
                if str(error) != str(self.error):
                    log.warning("maintenance: %s", error)
                self.error = error
            finally:
                self.turns += 1
                self._core.leave()

    def _turn(self) -> None:
        try:
            self._collector.gc_if_changed(self._end.is_set)
        except UnreadableRoot:
            self._scrub()  # it may find what a repair needs
            raise
        self._scrub()

    def _scrub(self) -> None:
        if self.scrub_step is not None and not self._end.is_set():
            self.scrub_step(SCRUB_BYTES, self._end.is_set)
