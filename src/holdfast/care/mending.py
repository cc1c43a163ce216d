"""What a repair writes, and what it tells: records stored anew with the word that their old places are nobody's."""

from __future__ import annotations

from typing import Final

from holdfast.backend.log.commit import Group
from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.payloads import OFFSET_MASK
from holdfast.care.wanted import Wanted
from holdfast.compress import compress
from holdfast.log_core import LogCore
from holdfast.reports import Mended, Problem
from holdfast.types import Hash
from holdfast.wire.document import QuarantineDocument, encode_quarantine
from holdfast.wire.record import HEADER_BYTES, Kind

GROUP_BYTES: Final = 2 << 20


class Mending:
    """Appends in groups, one for each time that blobs are to keep; `commit` in the end."""

    def __init__(self, core: LogCore) -> None:
        self.mended: list[Mended] = []
        self.missing: list[Problem] = []
        self._backend = core.backend
        self._groups: dict[int, Group] = {}
        self._pending = 0

    def append_payload(self, one: Wanted, data: bytes, source: str) -> None:
        """Store a payload anew, compressed as the store wants it."""
        group = self.group(one.time_ms)
        if one.place is not None:
            self.release(group, one, f"from {source}")
        stored, packed = [data], bytes((0,))
        if self._backend.compression == "zstd" and one.kind == Kind.DATA:
            out, marks = compress([data])
            stored, packed = [bytes(out[0])], bytes(marks)
        group.add(bytes((one.kind,)), bytes((packed[0] | one.flags,)), one.hash, [len(data)], stored)
        self._took(len(data))
        self.note(name_of(one.kind), one.hash, one.place, source)

    def append_document(self, one: Wanted, document: bytes, source: str) -> None:
        """Store a document anew."""
        group = self.group(one.time_ms)
        if one.place is not None:
            self.release(group, one, f"from {source}")
        group.add_one(Kind(one.kind), document)
        self._took(len(document))
        self.note(name_of(one.kind), one.hash, one.place, source)

    def release(self, group: Group, one: Wanted, reason: str) -> None:
        """Say that what stood at a place is stored anew (or given up): the place is nobody's."""
        assert one.place is not None
        document = QuarantineDocument(one.place >> 32, one.place & OFFSET_MASK, one.hash or bytes(32), reason)
        group.add_one(Kind.REPAIR, encode_quarantine(document))

    def let_go(self, one: Wanted, reason: str) -> None:
        """Say that a place is nobody's, whatever stood there."""
        self.release(self.group(0), one, reason)

    def group(self, time_ms: int) -> Group:
        """Give the group of what was stored at this time (0: now)."""
        group = self._groups.get(time_ms)
        if group is None:
            group = self._groups[time_ms] = self._backend.group(time_ms=time_ms)
        return group

    def _took(self, more_bytes: int) -> None:
        self._pending += more_bytes + 3 * HEADER_BYTES
        if self._pending > GROUP_BYTES:
            self.commit()

    def commit(self) -> None:
        """Make what waits durable and visible."""
        groups = [group for group in self._groups.values() if not group.is_empty]
        self._groups, self._pending = {}, 0
        if groups:
            self._backend.commit_all(groups)

    # -- telling

    def note(self, what: str, hash_: bytes | None, place: int | None, source: str) -> None:
        """Tell of something that was mended, at a place (None: nobody knew of one)."""
        self.mended.append(
            Mended(
                what=what,
                hash=Hash(hash_) if hash_ else None,
                segment=None if place is None else place >> 32,
                offset_bytes=None if place is None else place & OFFSET_MASK,
                source=source,
            )
        )

    def say_missing(self, one: Wanted) -> None:
        """Tell of something that is nowhere."""
        place = one.place
        self.missing.append(
            Problem(
                kind="missing_chunk",
                message=f"no source has this {name_of(one.kind)} ({one.reason})",
                hash=Hash(one.hash) if one.hash else None,
                segment=None if place is None else place >> 32,
                offset_bytes=None if place is None else place & OFFSET_MASK,
                path=None if place is None else segment_path(self._backend.root, place >> 32),
            )
        )


def name_of(kind: int) -> str:
    """Give the word for records of a kind."""
    if kind == Kind.DATA:
        return "chunk"
    try:
        return Kind(kind).name.lower().replace("_", " ")
    except ValueError:
        return "record"
