"""What callers may hand over by mistake, to each call of the API: a typed error that says what is expected."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.errors import Conflict, FormatError, HoldfastError, InvalidInput, NotFound
from holdfast.store import Store
from holdfast.types import Artifact, Hash, PutItem

Call = Callable[["Bench", Any], object]
NAN = float("nan")
NO_REFS = (None, 1.5, -1, True, object(), [1], "", "\0", "nope", b"\xff")
NO_PATHS = (None, 1, 1.5, "", "\0", "\ud800", object(), True)
NO_TEXTS = (1, 1.5, b"x", ["x"], object())
NO_LISTS = (1, 1.5, True, "x", b"x", object(), [1], [None])
NO_NUMBERS = (1.5, "1", object())
NO_CALLS = (1, "x")


class Bench:
    """An open store with an artifact, a tree and a tag."""

    def __init__(self, place: Path, store: Store) -> None:
        self.place = place
        self.store = store
        self.artifact: Artifact = store.put(b"x" * 50_000, filename="f")
        self.hash: Hash = self.artifact.hash
        (place / "tree").mkdir()
        (place / "tree" / "x").write_text("content")
        store.put_tree(place / "tree")
        store.tags.set("name", self.hash)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    place = tmp_path_factory.mktemp("misuse")
    with holdfast.create(place / "s") as store:
        yield Bench(place, store)


def keyword(
    method: str, name: str, *values: Any, first: str | None = "artifact"
) -> tuple[str, Call, tuple[Any, ...]]:
    """A call with one bad keyword; `first` is what the bench has for the first argument, or None for none."""

    def call(bench: Bench, value: Any) -> object:
        given = () if first is None else (getattr(bench, first, first.encode()),)
        found = getattr(bench.store, method)(*given, **{name: value})
        return list(found) if isinstance(found, Iterator) else found

    return f"{method}({name}=…)", call, values


def put_words(name: str, values: tuple[Any, ...]) -> tuple[str, Call, tuple[Any, ...]]:
    return f"put({name}=…)", lambda b, v: b.store.put(b"content", **{name: v}), values


TABLE: list[tuple[str, Call, tuple[Any, ...]]] = [
    ("read", lambda b, v: b.store.read(v), NO_REFS),
    ("read(offset)", lambda b, v: b.store.read(b.artifact, v), (None, -1, 10**30, *NO_NUMBERS)),
    ("read(length)", lambda b, v: b.store.read(b.artifact, 0, v), (-1, 10**30, *NO_NUMBERS)),
    ("iter_bytes", lambda b, v: b.store.iter_bytes(v), NO_REFS),
    ("iter_bytes(offset)", lambda b, v: b.store.iter_bytes(b.artifact, v), (None, -1, *NO_NUMBERS)),
    ("iter_bytes(length)", lambda b, v: b.store.iter_bytes(b.artifact, 0, v), (-1, *NO_NUMBERS)),
    ("open", lambda b, v: b.store.open(v), NO_REFS),
    ("info", lambda b, v: b.store.info(v), NO_REFS),
    ("exists", lambda b, v: b.store.exists(v), NO_REFS),
    ("put", lambda b, v: b.store.put(v), (*NO_PATHS, -1, [1], ["x"], {1: 2}, io.StringIO("x"))),
    *(put_words(name, NO_TEXTS) for name in ("filename", "content_type", "created_by")),
    *(put_words(name, NO_LISTS) for name in ("tags", "links", "requires")),
    *(put_words(name, ([""], ["\ud800"])) for name in ("tags", "links")),
    put_words("metadata", (1.5, "x", [1], [("a", 1)], {1: 2}, {None: 1}, {"a": [1]}, {"a": NAN}, {"\ud800": 1})),
    put_words("progress", NO_CALLS),
    ("put_many", lambda b, v: b.store.put_many(v), (None, 1, "x", b"xyz", [None], [1], [PutItem(None)])),  # type: ignore[arg-type]  # misuse is what is tested
    ("put_many(item)", lambda b, v: b.store.put_many([v]), (PutItem(b"x", tags="x"), PutItem(b"x", metadata=[1]))),  # type: ignore[arg-type]  # as above
    ("put_many(max_items)", lambda b, v: b.store.put_many([b"x"], max_items=v), (None, "x", 1.5, -1)),
    ("put_tree", lambda b, v: b.store.put_tree(v), (*NO_PATHS, b"\xff")),
    ("put_tree(exclude)", lambda b, v: b.store.put_tree(b.place / "tree", exclude=v), (None, 1, "x", [1], ["\0"])),
    ("put_tree(on_report)", lambda b, v: b.store.put_tree(b.place / "tree", on_report=v), NO_CALLS),
    ("writer", lambda b, v: b.store.writer(v), (1, b"x")),
    ("export", lambda b, v: b.store.export(v, b.place / "out"), NO_REFS),
    ("export(path)", lambda b, v: b.store.export(b.artifact, v), (*NO_PATHS, b"\0")),
    ("export(format)", lambda b, v: b.store.export(b.artifact, b.place / "out", format=v), ("bad", 1, object())),
    *(keyword("find", name, 1, 1.5, object(), [1], first=None) for name in ("tag", "any_tag", "link", "any_link")),
    *(keyword("find", name, *NO_TEXTS, first=None) for name in ("prefix", "content_type", "created_by", "filename")),
    *(keyword("find", name, 1.5, "x", object(), first=None) for name in ("hash", "created_after", "min_size_bytes")),
    keyword("find", "limit", "x", 1.5, -1, object(), first=None),
    keyword("find", "after", 1, "x", b"x", object(), first=None),
    keyword("count", "tag", 1, object(), first=None),
    ("tags_in_use", lambda b, v: list(b.store.tags_in_use(v)), (None, 1, b"x", "\ud800")),
    ("links_in_use", lambda b, v: list(b.store.links_in_use(v)), (None, 1, b"x", "\ud800")),
    ("update", lambda b, v: b.store.update(v, filename="x"), NO_REFS),
    *(keyword("update", name, *NO_TEXTS) for name in ("filename", "content_type", "created_by")),
    *(
        keyword("update", f"{way}_{name}", *NO_LISTS)
        for way in ("add", "remove")
        for name in ("tags", "links", "requires")
    ),
    keyword("update", "remove_metadata", *NO_LISTS),
    keyword("update", "metadata", 1, "x", [1], {1: 1}),
    keyword("update", "add_metadata", 1, "x", [1], {1: 1}),
    keyword("update", "if_revision", "x", 1.5, object()),
    ("tag", lambda b, v: b.store.tag(b.artifact, v), (None, 1, b"x", "")),
    ("untag", lambda b, v: b.store.untag(b.artifact, v), (None, 1, b"x")),
    ("link", lambda b, v: b.store.link(b.artifact, v), (None, 1, b"x", "")),
    ("set_metadata", lambda b, v: b.store.set_metadata(b.artifact, v, 1), (None, 1, b"x")),
    ("get_metadata", lambda b, v: b.store.get_metadata(b.artifact, v), (None, 1, [1])),
    ("remove_metadata", lambda b, v: b.store.remove_metadata(b.artifact, v), (None, 1, [1])),
    ("delete", lambda b, v: b.store.delete(v), NO_REFS),
    ("restore", lambda b, v: b.store.restore(v), NO_REFS),
    ("verify", lambda b, v: b.store.verify(v), NO_REFS),
    keyword("verify", "progress", *NO_CALLS),
    keyword("scrub", "progress", *NO_CALLS, first=None),
    keyword("rebuild", "progress", *NO_CALLS, first=None),
    keyword("gc", "min_age_seconds", "x", -1, NAN, True, object(), first=None),
    keyword("gc", "max_batches", "x", -1, 0, 1.5, True, object(), first=None),
    keyword("scrub", "max_bytes", "x", -1, 1.5, True, NAN, object(), first=None),
    keyword("scrub", "bytes_per_second", "x", -1, 0, True, NAN, object(), first=None),
    ("compact", lambda b, v: b.store.compact(v), ("x", -1, 2, None, True, NAN, object())),
    ("forecast", lambda b, v: b.store.forecast(v), NO_REFS),
    ("why", lambda b, v: b.store.why(v), (None, 1, "x", "0" * 64, b"h" * 32)),
    ("why(artifact)", lambda b, v: b.store.why(getattr(b, v)), ("artifact",)),
    ("repair", lambda b, v: b.store.repair(v), (None, 1, 5, True, [None], [1])),
    ("blobs.put", lambda b, v: b.store.blobs.put(v), (*NO_PATHS, [1])),
    ("blobs.put_many", lambda b, v: b.store.blobs.put_many(v), (None, 1, "x", b"xyz", [None], [1])),
    ("blobs.hash_seq", lambda b, v: b.store.blobs.hash_seq(v), (None, 1, "x", [1], ["x"])),
    *(
        (f"blobs.{name}", lambda b, v, name=name: getattr(b.store.blobs, name)(v), (None, 1, "x", b"\xff" * 32))
        for name in ("info", "status", "read", "iter_bytes", "open", "bitfield", "missing_ranges", "encode")
    ),
    ("blobs.read(offset)", lambda b, v: b.store.blobs.read(b.hash, v), (None, -1, *NO_NUMBERS)),
    ("blobs.list", lambda b, v: list(b.store.blobs.list(v)), (None, 1, b"x", "zz", "\ud800")),
    ("blobs.encode(ranges)", lambda b, v: list(b.store.blobs.encode(b.hash, v)), (1, "x", [1])),
    ("blobs.decode", lambda b, v: b.store.blobs.decode(v, b""), (None, 1, "x")),
    ("blobs.decode(stream)", lambda b, v: b.store.blobs.decode(b.hash, v), (None, 1, [1], "\0")),
    ("blobs.decode(ranges)", lambda b, v: b.store.blobs.decode(b.hash, b"", v), (1, "x")),
    ("tags.set(name)", lambda b, v: b.store.tags.set(v, b.hash), (None, 1, "", b"x", "\ud800")),
    ("tags.set(hash)", lambda b, v: b.store.tags.set("n", v), (None, 1, "x")),
    ("tags.set(format)", lambda b, v: b.store.tags.set("n", b.hash, v), (None, 1, "x", object(), [1])),
    ("tags.get", lambda b, v: b.store.tags.get(v), (None, 1, b"x", "")),
    ("tags.delete", lambda b, v: b.store.tags.delete(v), (None, 1, b"x", "")),
    ("tags.rename", lambda b, v: b.store.tags.rename("name", v), (None, 1, b"x", "")),
    ("tags.list", lambda b, v: list(b.store.tags.list(v)), (None, 1, b"x")),
    ("create", lambda b, v: holdfast.create(v), NO_PATHS),
    ("create(chunking)", lambda b, v: holdfast.create(b.place / "n", chunking=v), ("x", 1, object())),
    ("create(size)", lambda b, v: holdfast.create(b.place / "n", chunk_size_bytes=v), ("x", 1.5, -1, 0, 10**30)),
    ("create(compression)", lambda b, v: holdfast.create(b.place / "n", compression=v), ("x", 1, object())),
    ("create(config)", lambda b, v: holdfast.create(b.place / "n", config=v), (1, "x", "path.toml", {})),
    ("open", lambda b, v: holdfast.open(v), NO_PATHS[1:]),
    ("open(catalog)", lambda b, v: holdfast.open(b.place / "s", catalog=v), (1, "x")),
    ("open(config)", lambda b, v: holdfast.open(b.place / "s", config=v), (1, "x", "path.toml", {})),
    ("Hash.parse", lambda b, v: Hash.parse(v), (None, 1, b"x", "x", "\ud800")),
]  # fmt: skip

CASES = [
    pytest.param(call, value, id=f"{name}-{i}")
    for name, call, values in TABLE
    for i, value in enumerate(values)
]


@pytest.mark.parametrize(("call", "value"), CASES)
def test_misuse_is_a_typed_error(bench: Bench, call: Call, value: Any) -> None:
    with pytest.raises(HoldfastError) as caught:
        call(bench, value)
    assert isinstance(caught.value, (InvalidInput, NotFound, Conflict, FormatError))
    assert str(caught.value)


def test_nothing_came_of_it(bench: Bench) -> None:
    assert bench.store.read(bench.artifact) == b"x" * 50_000
    assert {one.filename for one in bench.store.find()} == {"f", "tree"}
    assert not list((bench.place / "s" / "sessions").glob("*"))[1:]


def test_a_keyword_that_there_is_not_is_named_with_the_nearest(bench: Bench) -> None:
    with pytest.raises(TypeError, match="'tag'; is 'tags' meant"):
        bench.store.put(b"x", tag="x")  # type: ignore[call-arg]  # misuse is what is tested
    with pytest.raises(TypeError, match="'filname'; is 'filename' meant"):
        bench.store.update(bench.artifact, filname="x")  # type: ignore[call-arg]  # as above
