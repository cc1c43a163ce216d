"""A row of the catalog matches the record that it comes from, and no other."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast import _native
from holdfast.backend.log.segment import SegmentIndex
from holdfast.care.rows import Row
from holdfast.errors import CorruptSegment
from holdfast.facts import KIND_SHIFT
from holdfast.reports import Problem
from holdfast.wire.record import FLAG_ZSTD, SEGMENT_HEADER_BYTES, Entry, Kind

ENTRY = Entry(Kind.DATA, FLAG_ZSTD, 64, 100, 200, b"h" * 32)
FLAGS = (Kind.DATA & 0x7F) << KIND_SHIFT | FLAG_ZSTD
OTHERS: dict[str, Any] = {
    "kind": Kind.MANIFEST_PAGE,
    "flags": 0,
    "stored_bytes": 101,
    "plain_bytes": 201,
    "hash": b"i" * 32,
}


@pytest.mark.parametrize("table", ["data", "copies"])
def test_a_row_says_what_its_record_says(table: str) -> None:
    row = Row(table, 64, (ENTRY.hash, 100, 200, FLAGS))
    assert row.matches(ENTRY)
    assert row.matches(ENTRY._replace(flags=ENTRY.flags ^ 1))  # a row has the roles of all of its copies
    for name, other in OTHERS.items():
        assert not row.matches(ENTRY._replace(**{name: other})), name


def test_only_a_sound_end_says_that_a_segment_holds_nothing() -> None:
    index = SegmentIndex(1, 144, True, False, b"", SEGMENT_HEADER_BYTES, ())
    assert index.holds_nothing
    problem = Problem(kind=CorruptSegment.kind, message="a gap")
    for other in ({"sealed": False}, {"problems": (problem,)}, {"records_stop": 200}):
        assert not index._replace(**other).holds_nothing


def test_a_row_of_a_document_says_what_its_record_says() -> None:
    row = Row("tombstones", 64, (bytes(16), 2, 1_000))
    document = row.document
    assert document is not None
    entry = Entry(Kind.TOMBSTONE, 0, 64, len(document), len(document), _native.blake3(document))
    assert row.matches(entry)
    assert not row.matches(entry._replace(hash=b"i" * 32))
    assert not row.matches(entry._replace(kind=Kind.ARTIFACT))
