"""How values are written for people."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.cli.base import parse_size
from holdfast.cli.output import escape, plural, size, unique_prefix_digits


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1023 * 1024, "1.0 MiB"),  # not 1023.0 KiB: at most four digits
        (64 << 20, "64.0 MiB"),
        (100 << 30, "100.0 GiB"),
        (1 << 62, "4,096.0 PiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("65536", 65536), ("64KiB", 65536), ("64k", 65536), ("1 MiB", 1 << 20), ("2g", 2 << 30)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "-1", "1.5M", "KiB", "1PiB", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_size(text)


def test_plurals() -> None:
    assert [plural(0, "blob"), plural(1, "blob"), plural(1234, "blob")] == [
        "0 blobs",
        "1 blob",
        "1,234 blobs",
    ]


@given(st.text() | st.just("\udcff\x1b[2J\n"))
def test_escaped_text_is_printable_and_unchanged_where_it_was(text: str) -> None:
    assert escape(text).isprintable()
    escape(text).encode()
    if text.isprintable():
        assert escape(text) == text


@given(st.sets(st.text("0123456789abcdef", min_size=32, max_size=32), min_size=1, max_size=30))
def test_short_ids_tell_apart(ids: set[str]) -> None:
    digits = unique_prefix_digits(list(ids))
    assert len({id_[:digits] for id_ in ids}) == len(ids)
