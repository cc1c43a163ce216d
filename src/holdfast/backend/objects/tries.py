"""How long and how often a request is tried again: bounded time, growing pauses, jitter."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Final

from holdfast.backend.objects.answers import Failure
from holdfast.errors import HoldfastError, InvalidConfig

FIRST_PAUSE_SECONDS: Final = 0.1
BUSY_PAUSE_SECONDS: Final = 1.0
"""The first pause after a 429 or 503. obstore does not tell Retry-After, so the pause grows from here."""
LONGEST_PAUSE_SECONDS: Final = 15.0
TOLD_FAILURES: Final = 5
"""After so many failures, some seconds, whoever waits is told."""
FOREIGN_TRIES: Final = 3
"""How often an answer that no object store gives is taken for damage on the way."""

log = logging.getLogger("holdfast")


class Tries:
    """The tries of one call. The clock runs from the first one; `retry_seconds` 0 means one try."""

    def __init__(self, retry_seconds: float, closed: threading.Event) -> None:
        self._closed = closed
        self._seconds = retry_seconds
        self._failures = 0
        self.restart()

    def restart(self) -> None:
        """Begin to count anew: there was progress."""
        self._until = time.monotonic() + self._seconds
        self._failures = 0

    def again(self, failure: Failure) -> None:
        """Wait before the next try, or raise the error: it cannot pass, or the time is over."""
        if not failure.retry:
            raise failure.error from None
        self._failures += 1
        if isinstance(failure.error, InvalidConfig) and self._failures >= FOREIGN_TRIES:
            raise failure.error from None
        first = BUSY_PAUSE_SECONDS if failure.busy else FIRST_PAUSE_SECONDS
        pause = min(LONGEST_PAUSE_SECONDS, first * 2 ** min(self._failures - 1, 10)) * random.uniform(0.5, 1)
        left = self._until - time.monotonic()
        if self._failures == TOLD_FAILURES and left > 0:
            log.warning("%s; trying again for %d seconds more", failure.error.message, left)
        if left <= 0 or self._seconds == 0:
            raise self._tired(failure.error) from None
        if self._closed.wait(min(pause, left)):
            raise failure.error from None

    def _tired(self, error: HoldfastError) -> HoldfastError:
        error.evidence["tries"] = self._failures
        return error
