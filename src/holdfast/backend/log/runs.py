"""A set of segment ids in runs: few in memory, however many there are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class Runs:
    """Ids in half-open runs that do not touch each other."""

    def __init__(self, runs: Iterable[range] = ()) -> None:
        self._runs: list[range] = []
        self.add(runs)

    def add(self, runs: Iterable[range]) -> None:
        """Take more ids in."""
        merged: list[range] = []
        for run in sorted((*self._runs, *runs), key=lambda run: run.start):
            if merged and run.start <= merged[-1].stop:
                merged[-1] = range(merged[-1].start, max(merged[-1].stop, run.stop))
            elif run:
                merged.append(run)
        self._runs = merged

    def __contains__(self, segment: int) -> bool:
        at = bisect_right(self._runs, segment, key=lambda run: run.start)
        return at > 0 and segment in self._runs[at - 1]

    def __iter__(self) -> Iterator[range]:
        return iter(self._runs)
