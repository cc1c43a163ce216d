"""Ctrl-C that Python passes over is said again; one that became another error is known for what it is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer, main_thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

AGAIN_SECONDS = 0.001


@contextmanager
def heard() -> Iterator[None]:
    """See to it that an interrupt ends the body, also one that comes where Python ignores exceptions.

    In `__del__` and in callbacks of weak references, as in each import, it would be lost, and half a stream be stored.
    """
    usual = sys.unraisablehook

    def hook(ignored: UnraisableHookArgs) -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            usual(ignored)
            return
        # To the main thread, as it may be about to wait for input.
        again = Timer(AGAIN_SECONDS, signal.pthread_kill, [main_thread().ident, signal.SIGINT])
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = usual


def is_of_interrupt(error: BaseException) -> bool:
    """Whether an error came of an interrupt: met while a module was imported, it may become any other."""
    met: BaseException | None = error
    seen: list[BaseException] = []  # they may go round in a circle
    while met is not None and met not in seen:
        seen.append(met)
        met = met.__cause__ or met.__context__
    return any(isinstance(one, KeyboardInterrupt) for one in seen)
