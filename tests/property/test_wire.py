"""Collections, tree extras and cuts: what goes in comes out, and any bytes give a value or a typed error."""

from __future__ import annotations

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from holdfast.chunking import Chunking
from holdfast.errors import FormatError
from holdfast.wire import collection
from holdfast.wire.collection import META_HEADER, TreeExtras, iter_hashes, iter_names, parse_extras

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    pieces = []
    for length in cuts:
        pieces.append(data[:length])
        data = data[length:]
    return [*pieces, data]


@given(st.lists(TEXT, max_size=200), st.lists(st.integers(0, 50), max_size=20))
def test_names_come_back(names: list[str], cuts: list[int]) -> None:
    data = collection.encode_meta(names)
    assert list(iter_names(split(data, cuts), len(names))) == names


@given(st.binary(max_size=80), st.integers(0, 5), st.lists(st.integers(0, 9), max_size=9), st.booleans())
def test_any_bytes_as_names(data: bytes, count: int, cuts: list[int], header: bool) -> None:
    data = META_HEADER * header + data
    try:
        names = list(iter_names(split(data, cuts), count))
    except FormatError:
        return
    assert len(names) == count
    assert len(data) >= len(META_HEADER) + 1 + sum(1 + len(name.encode()) for name in names)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=50), st.lists(st.integers(0, 99), max_size=9))
def test_hash_seqs_come_back(hashes: list[bytes], cuts: list[int]) -> None:
    assert list(iter_hashes(split(b"".join(hashes), cuts))) == hashes


@given(st.sets(st.integers(0, 100)), st.dictionaries(TEXT, TEXT, max_size=5), st.lists(TEXT, max_size=5))
def test_extras_come_back(executable: set[int], symlinks: dict[str, str], directories: list[str]) -> None:
    edges = [i for i in range(102) if (i in executable) != (i - 1 in executable)]
    extras = TreeExtras(
        version=1, collection="07" * 32, executable=edges, symlinks=symlinks, directories=directories
    )
    again = parse_extras(extras.encode(), b"\7" * 32)
    assert again == extras
    assert {i for i, flag in enumerate(again.is_executable(101)) if flag} == executable


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
)


@given(
    st.fixed_dictionaries(
        {"holdfast_tree": st.just(1) | JSON, "collection": st.just("07" * 32) | JSON},
        optional={"executable": JSON, "symlinks": JSON, "directories": JSON},
    )
    | JSON,
    st.integers(0, 9),
)
def test_any_document_as_extras(document: object, count: int) -> None:
    try:
        extras = parse_extras(json.dumps(document).encode(), b"\7" * 32)
        assert len(extras.is_executable(count)) == count
    except FormatError:
        return
    assert all(
        isinstance(text, str) for text in (*extras.symlinks, *extras.symlinks.values(), *extras.directories)
    )


@given(
    st.sampled_from(["fastcdc", "fixed"]),
    st.integers(0, 200_000),
    st.lists(st.integers(0, 30_000), max_size=20),
)
def test_cuts_do_not_depend_on_the_split(kind: str, size: int, cuts: list[int]) -> None:
    chunking = Chunking.choose(kind, 4_096)
    data = random.Random(size).randbytes(size)
    cutter = chunking.make_cutter()
    whole = [*cutter.feed(data), cutter.finish()]
    parts = [length for piece in split(data, cuts) for length in cutter.feed(piece)]
    assert [*parts, cutter.finish()] == whole
    assert sum(whole) == size
    assert all(chunking.min_bytes <= length <= chunking.max_bytes for length in whole[:-1])
