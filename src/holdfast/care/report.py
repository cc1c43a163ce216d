"""What a check gathers: how much was looked at, and the damage that was met."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from holdfast.errors import HoldfastError
from holdfast.reports import Problem, VerifyReport
from holdfast.types import Hash, Progress, ProgressCallback

MAX_PROBLEMS: Final = 10_000


class Report:
    """Gathers what was checked and found; threads share it."""

    def __init__(self, phase: str, progress: ProgressCallback | None) -> None:
        self._started = time.monotonic()
        self._mutex = threading.Lock()
        self._phase = phase
        self._progress = progress
        self._problems: list[Problem] = []
        self.count = 0
        self.bytes = 0
        self.bytes_before = 0
        """Checked by earlier calls of the same pass: for progress alone."""
        self.blobs = 0
        self.records = 0
        self.total_bytes: int | None = None

    def add(self, problem: Problem) -> None:
        with self._mutex:
            self.count += 1
            if len(self._problems) < MAX_PROBLEMS:
                self._problems.append(problem)

    def checked(self, more_bytes: int, records: int = 0, blobs: int = 0) -> None:
        with self._mutex:
            self.bytes += more_bytes
            self.records += records
            self.blobs += blobs
            done = self.bytes_before + self.bytes
        if self._progress is not None:
            self._progress(Progress(phase=self._phase, done_bytes=done, total_bytes=self.total_bytes))

    def fields(self) -> dict[str, Any]:
        """Give what every report says."""
        self._problems.sort(key=lambda p: (p.segment or 0, p.offset_bytes or 0))
        return {
            "problems": tuple(self._problems),
            "problem_count": self.count,
            "checked_bytes": self.bytes,
            "checked_blobs": self.blobs,
            "checked_records": self.records,
            "seconds": time.monotonic() - self._started,
        }

    def finish(self) -> VerifyReport:
        return VerifyReport(ok=not self.count, **self.fields())


def problem_of(error: HoldfastError, **more: object) -> Problem:
    """Turn an error into a line of a report."""
    evidence = {**error.evidence, **{key: value for key, value in more.items() if value is not None}}
    hash_ = evidence.get("hash")
    return Problem(
        kind=error.kind,
        message=str(error),
        hash=hash_ if isinstance(hash_, Hash) else None,
        segment=evidence.get("segment"),
        offset_bytes=evidence.get("offset_bytes"),
        path=evidence.get("path"),
    )
