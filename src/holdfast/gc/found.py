"""What a collection found and decided, apart from how it goes: its report, and who is doomed, expired, waited for."""

from __future__ import annotations

from typing import Final

from holdfast.backend.log.session import SessionState
from holdfast.catalog.collecting import FOREVER_MS
from holdfast.facts import FLAG_BLOB, FLAG_CONDEMNED, FLAG_UNNAMED
from holdfast.reports import CompactReport, GcReport, Waiting
from holdfast.types import Hash, now_ms, to_datetime

MAX_LISTED: Final = 10_000


class Found:
    """What one call did, as it goes."""

    def __init__(self) -> None:
        self.artifacts = self.blobs = self.payloads = 0
        self.freed_bytes = self.condemned = self.pardoned = 0
        self.hashes: list[Hash] = []
        self.waits_for: tuple[Waiting, ...] = ()
        self.complete = False

    def report(self, seconds: float, compacted: CompactReport | None) -> GcReport:
        """Give it as a value."""
        return GcReport(
            complete=self.complete,
            forgotten_artifacts=self.artifacts,
            dropped_blobs=self.blobs,
            dropped_payloads=self.payloads,
            freed_bytes=self.freed_bytes,
            condemned=self.condemned,
            pardoned=self.pardoned,
            blobs=tuple(self.hashes),
            waits_for=self.waits_for,
            compacted=compacted,
            seconds=seconds,
        )


def expiry_ms(min_age_seconds: float) -> int:
    """Give the time up to which deletions are forgotten. Without a window all are, whatever the clock says."""
    return now_ms() - int(min_age_seconds * 1000) if min_age_seconds > 0 else FOREVER_MS


def unmarked_bits(hash_: bytes, flags: int, blobs: set[bytes], payloads: set[bytes]) -> int:
    """Give what a payload is to be marked with: its blob role, its bytes, both or neither."""
    named = hash_ in blobs
    bits = FLAG_UNNAMED if flags & FLAG_BLOB and not named else 0
    return bits if named or hash_ in payloads else bits | FLAG_CONDEMNED


def is_behind(session: SessionState, catalog_id: bytes, epoch: int) -> bool:
    """Whether an operation runs there that may have looked up what is condemned now."""
    return session.pinned and (session.catalog_id != catalog_id or session.epoch < epoch)


def waiting_for(session: SessionState) -> Waiting:
    """Describe a session that is waited for."""
    since = to_datetime(session.pinned_ms) if session.pinned_ms else None
    return Waiting(session=session.name, pid=session.pid, host=session.host, since=since)
