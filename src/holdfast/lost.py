"""Segments that are not what the catalog knows: nothing new relies on what it has there."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.backend.log.backend import LogBackend
from holdfast.catalog import Catalog, compacting
from holdfast.facts import SEGMENT_SUPERSEDED


class Lost:
    """Segments that are gone, cut short or replaced, and those of whose groups the commits may stand in such a one.

    Made with a `stat` of each. Whether one was replaced by another of its length is looked at when it is asked for.
    """

    def __init__(self, backend: LogBackend, catalog: Catalog, met: Iterable[int]) -> None:
        """`met`: those that are known to be lost, whatever they look like now."""
        self._backend = backend
        self._catalog = catalog
        self._sound: set[int] = set()
        self._lost: set[int] = set()
        unsound = {segment for segment, _, _ in backend.unsound_segments(catalog.segments())}
        # What others have compacted away meanwhile is gone, and nothing is lost by that.
        self._add(
            segment
            for segment, (_, state) in catalog.segments().items()
            if segment in unsound and state != SEGMENT_SUPERSEDED
        )
        self._add(met)

    def __bool__(self) -> bool:
        return bool(self._lost)

    def __contains__(self, segment: object) -> bool:
        if segment not in self._lost and segment not in self._sound and isinstance(segment, int):
            if self._backend.is_replaced(segment):
                self._add((segment,))
            else:
                self._sound.add(segment)
        return segment in self._lost

    def _add(self, segments: Iterable[int]) -> None:
        if lost := set(segments):
            self._lost |= lost | compacting.spilled_below(self._catalog, max(lost))
