"""Blobs that streams have completed, and that nobody has named yet."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

MAX_KEPT: Final = 10_000
"""Blobs that streams completed and that wait for a name; the oldest of more are let go."""


class Kept:
    """Blobs that streams have completed, leased until somebody names them, as their partial blobs were kept."""

    def __init__(
        self,
        lease: Callable[[Sequence[bytes], int], list[int]],
        release: Callable[[int], None],
        age_seconds: float,
    ) -> None:
        self._lease = lease
        self._release = release
        self._age_seconds = age_seconds
        self._mutex = threading.Lock()
        self._slots: OrderedDict[bytes, tuple[float, list[int]]] = OrderedDict()

    def keep(self, digest: bytes, kind: int) -> None:
        """Lease a blob; the oldest that are kept so are let go. The caller has pinned, and the blob is here."""
        now = time.monotonic()
        slots = self._lease([digest], kind)
        with self._mutex:
            slots += self._slots.pop(digest, (now, []))[1]
            self._slots[digest] = (now, slots)
            old = [
                name
                for name, (since, _) in islice(self._slots.items(), 2)
                if now - since > self._age_seconds or len(self._slots) > MAX_KEPT
            ]
        for name in old:
            self.let_go(name)

    def let_go(self, digest: bytes) -> None:
        """Keep a blob no longer: it was named. Harmless where none is kept."""
        with self._mutex:
            _, slots = self._slots.pop(digest, (0.0, []))
        for slot in slots:
            self._release(slot)
