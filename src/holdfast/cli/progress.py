"""A progress bar: on a terminal only, and only for what takes longer than a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from holdfast.types import Progress

PATIENCE_SECONDS = 1.0
INTERVAL_SECONDS = 0.1


class Bar:
    """A context manager and a progress callback. It brings in `rich` when it has something to show."""

    def __init__(self, quiet: bool = False) -> None:
        self._enabled = not quiet and sys.stderr.isatty()
        self._begun = self._drawn = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._phase = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, progress: Progress) -> None:
        if not self._enabled:
            return
        now = time.monotonic()
        if now - self._begun < PATIENCE_SECONDS or now - self._drawn < INTERVAL_SECONDS:
            return
        self._drawn = now
        if self._bar is None:
            self._bar = _make()
            self._bar.start()
        if progress.phase != self._phase:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._phase = progress.phase
            self._task = self._bar.add_task(progress.phase, total=None, count="")
        by_bytes = progress.total_bytes is not None or progress.total_items is None
        done = progress.done_bytes if by_bytes else progress.done_items
        total = progress.total_bytes if by_bytes else progress.total_items
        self._bar.update(self._task, completed=done, total=total, count=_count(progress))


def _count(progress: Progress) -> str:
    from holdfast.cli.output import plural, size

    parts = []
    if progress.done_bytes:
        parts.append(size(progress.done_bytes))
    if progress.done_items:
        of = f" of {progress.total_items:,}" if progress.total_items else ""
        parts.append(f"{progress.done_items:,}{of} items" if of else plural(progress.done_items, "item"))
    return ", ".join(parts)


def _make() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
