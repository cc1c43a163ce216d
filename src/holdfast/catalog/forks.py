"""What happens to open catalogs at a fork: `connection.py` says why all connections are closed before it."""

from __future__ import annotations

import os
import time
import weakref
from typing import Final, Protocol

WAIT_SECONDS: Final = 10.0
"""For calls that other threads have in progress. Ours are short, but for a large replay, a count, a dump."""

tainted: Final[set[tuple[int, int]]] = set()
"""Files of which this process inherited a connection in use: it must not open them (the wait was too short)."""


class Forkable(Protocol):
    """Something with connections."""

    def before_fork(self, deadline: float) -> None:
        """Close all connections and let nobody open one."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Refuse all use from now on, touching no connection."""


_open: Final[weakref.WeakSet[Forkable]] = weakref.WeakSet()
_held: Final[list[Forkable]] = []


def register(catalog: Forkable) -> None:
    """Take part in forks from now on."""
    _open.add(catalog)


def _before() -> None:
    _held[:] = list(_open)
    deadline = time.monotonic() + WAIT_SECONDS
    for catalog in _held:
        catalog.before_fork(deadline)


def _parent() -> None:
    while _held:
        _held.pop().after_fork_in_parent()


def _child() -> None:
    while _held:
        _held.pop().after_fork_in_child()


os.register_at_fork(before=_before, after_in_parent=_parent, after_in_child=_child)
