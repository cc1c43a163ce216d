"""Hypothesis strategies for what goes into a store. Needs Hypothesis, which the package itself does not."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

from holdfast.testing.ledger import Piece
from holdfast.types import Scalar

EDGES: Final = (1, 1023, 1024, 1025, 16_383, 16_384, 16_385, 32_768, 65_535, 65_536, 65_537)


def sizes(limit_bytes: int = 200_000) -> st.SearchStrategy[int]:
    """Sizes of content, most of them where something changes."""
    edges = st.sampled_from([size for size in EDGES if size <= limit_bytes])
    return st.one_of(edges, st.integers(1, limit_bytes))


def pieces(name: st.SearchStrategy[str], limit_bytes: int = 200_000) -> st.SearchStrategy[Piece]:
    """Contents that may share a beginning with others. The names must be made unique by the caller."""
    return st.builds(
        Piece,
        name=name,
        seed=st.integers(0, 1 << 32),
        size_bytes=sizes(limit_bytes),
        family=st.integers(0, 2),
        shared_bytes=st.sampled_from((0, 0, 20_000, 100_000)),
    )


def texts(max_size: int = 40) -> st.SearchStrategy[str]:
    """Any text that has a UTF-8 form."""
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=max_size)


def scalars() -> st.SearchStrategy[Scalar]:
    """What may stand as a value in metadata."""
    whole = st.integers(-(1 << 53), 1 << 53)
    return st.one_of(
        st.none(), st.booleans(), whole, st.floats(allow_nan=False, allow_infinity=False), texts()
    )


def fields() -> st.SearchStrategy[dict[str, Any]]:
    """Keywords of `put` that every backend takes and gives back."""
    words = st.lists(texts(20).filter(bool), max_size=4, unique=True)
    return st.fixed_dictionaries(
        {},
        optional={
            "filename": texts().filter(bool),
            "content_type": st.sampled_from(("text/plain", "application/octet-stream", "x/y; charset=utf-8")),
            "tags": words,
            "links": words,
            "metadata": st.dictionaries(texts(20), scalars(), max_size=4),
            "created_by": texts(20).filter(bool),
        },
    )


def splits(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """Ways to cut bytes into pieces, empty ones included."""
    return st.lists(st.integers(0, len(data)), max_size=8).map(
        lambda cuts: [data[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True)]
    )
