"""Segments that are not what the catalog knows: nothing new relies on what it has there."""

from __future__ import annotations

from collections.abc import Set

from holdfast.backend.log.backend import LogBackend
from holdfast.catalog import Catalog, compacting
from holdfast.facts import SEGMENT_SUPERSEDED


class Lost:
    """Segments that are gone, cut short or replaced, and those of whose groups the commits may stand in such a one.

    Made with a `stat` of each. Whether one was replaced by another of its length is looked at when it is asked for.
    """

    def __init__(self, backend: LogBackend, catalog: Catalog) -> None:
        self._backend = backend
        self._catalog = catalog
        self._sound: set[int] = set()
        self._lost: set[int] = set()
        unsound = {segment for segment, _, _ in backend.unsound_segments(catalog.segments())}
        self._add(unsound & _here(catalog))  # asked again: some may have been compacted away meanwhile

    def __bool__(self) -> bool:
        return bool(self._lost)

    def __contains__(self, segment: object) -> bool:
        if segment not in self._lost and segment not in self._sound and isinstance(segment, int):
            if self._backend.is_ours(segment):
                self._sound.add(segment)
            else:
                self._add({segment})
        return segment in self._lost

    @property
    def is_over(self) -> bool:
        """Whether some are no longer lost, as nothing lies there any more: repaired, or compacted away."""
        return bool(self._lost) and not self._lost <= _here(self._catalog)

    def _add(self, lost: Set[int]) -> None:
        if lost:
            self._lost |= lost | compacting.spilled_below(self._catalog, max(lost))


def _here(catalog: Catalog) -> Set[int]:
    """Give the segments in which the catalog has anything."""
    return {segment for segment, (_, state) in catalog.segments().items() if state != SEGMENT_SUPERSEDED}
