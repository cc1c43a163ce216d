"""The part of the contract about putting: sources, fields, what is refused, and what leaves nothing."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from holdfast import _native
from holdfast.errors import (
    Conflict,
    EmptyData,
    HoldfastError,
    InvalidInput,
    InvalidRange,
    NotFound,
    SourceNotFound,
    TooLarge,
)
from holdfast.store import Store
from holdfast.testing.contract_base import ContractBase, Interrupted, MakeStore, boundary_sizes, sample
from holdfast.types import BlobFormat, Hash, Progress, PutItem


class PuttingContract(ContractBase):
    """Whatever goes in comes back, or nothing of it is there."""

    def test_bytes_of_every_boundary_size_come_back(self, store: Store) -> None:
        sizes = boundary_sizes(self.chunk_bytes, self.segment_bytes)
        stored = [(store.put(sample(size)), sample(size)) for size in sizes]
        for artifact, content in stored:
            assert artifact.size_bytes == len(content)
            assert artifact.hash.digest == _native.blake3(content)
            assert artifact.durability == self.durability
            assert store.read(artifact) == content
            assert store.read(artifact.id) == content
            assert store.read(artifact.hash) == content
            assert b"".join(store.iter_bytes(artifact)) == content
            with store.open(artifact) as file:
                assert file.read() == content

    def test_every_field_is_stored_and_given_back(self, store: Store) -> None:
        first = store.put(b"required")
        artifact = store.put(
            b"content",
            filename="näme with spaces.txt",
            content_type="text/plain",
            tags=["prod", "ünïcode", "with space"],
            links=["run:42", "https://example.org/?a=b&c"],
            requires=[first, first.hash],
            metadata={"text": "x", "number": 3, "float": 0.25, "yes": True, "none": None, "": "empty key"},
            created_by="somebody",
        )
        assert artifact.filename == "näme with spaces.txt"
        assert artifact.content_type == "text/plain"
        assert set(artifact.tags) == {"prod", "ünïcode", "with space"}
        assert set(artifact.links) == {"run:42", "https://example.org/?a=b&c"}
        assert len(artifact.requires) == 2
        assert artifact.metadata["number"] == 3
        assert artifact.metadata["none"] is None
        assert artifact.metadata["yes"] is True
        assert artifact.created_by == "somebody"
        assert artifact.format == BlobFormat.RAW
        assert artifact.revision == 1
        assert artifact.created_at.utcoffset() is not None
        assert artifact.created_at == artifact.modified_at
        assert artifact.deleted_at is None
        assert store.info(artifact.id) == artifact
        assert store.info(artifact) == artifact
        assert artifact in list(store.find())

    def test_every_kind_of_source(self, store: Store, tmp_path: Path) -> None:
        content = sample(40_000)
        path = tmp_path / "source.bin"
        path.write_bytes(content)
        pieces = [content[i : i + 977] for i in range(0, len(content), 977)]
        with path.open("rb") as file, path.open("rb", buffering=0) as raw:
            sources: list[Any] = [
                path,
                str(path),
                content,
                bytearray(content),
                memoryview(content),
                io.BytesIO(content),
                file,
                raw,
                pieces,
                iter(pieces),
                (bytearray(piece) for piece in pieces),
                [b"", *(memoryview(piece) for piece in pieces), b""],
                [content],
            ]
            artifacts = [store.put(source) for source in sources]
        assert {artifact.hash for artifact in artifacts} == {artifacts[0].hash}
        assert len({artifact.id for artifact in artifacts}) == len(artifacts)
        assert artifacts[0].filename == "source.bin"
        assert store.read(artifacts[0]) == content
        assert store.stats().blobs == 1

    def test_a_file_is_read_from_where_it_stands(self, store: Store) -> None:
        file = io.BytesIO(b"headerbody")
        file.seek(6)
        assert store.read(store.put(file)) == b"body"

    def test_a_buffer_may_change_after_put(self, store: Store) -> None:
        buffer = bytearray(b"before")
        artifact = store.put(buffer)
        buffer[:] = b"after!"
        assert store.read(artifact) == b"before"

    def test_buffers_of_other_shapes_are_their_bytes_or_refused(self, store: Store) -> None:
        wide = memoryview(bytes(range(240))).cast("I")
        strided = memoryview(bytes(range(240)))[::2]
        grid = memoryview(bytes(range(240))).cast("B", (4, 60))
        for view in (wide, strided, grid):
            for source in (view, [view]):
                with suppress(InvalidInput):
                    artifact = store.put(source)
                    assert store.read(artifact) == view.tobytes()

    @pytest.mark.parametrize(
        "source", ["", 5, None, ["text"], [b"ok", "text"], [b"ok", 5], [[b"nested"]], io.StringIO("text"), {}]
    )
    def test_what_is_no_source_is_refused_and_leaves_nothing(self, store: Store, source: Any) -> None:
        with pytest.raises((InvalidInput, NotFound, TypeError)):
            store.put(source)
        assert list(store.find()) == []
        assert store.stats().blobs == 0

    def test_text_is_a_path_and_never_content(self, store: Store, tmp_path: Path) -> None:
        for source in (str(tmp_path / "missing"), tmp_path / "missing", "hello"):
            with pytest.raises(SourceNotFound):
                store.put(source)
        with pytest.raises(HoldfastError):
            store.put(tmp_path)  # a directory: `put_tree` is for those
        with pytest.raises(HoldfastError):
            store.put("/dev/null")
        with pytest.raises((HoldfastError, ValueError)):
            store.put("with\0nul")
        assert list(store.find()) == []

    @pytest.mark.parametrize(
        "kind", ["bytes", "path", "file", "iterator", "empty pieces", "writer", "many", "blob"]
    )
    def test_empty_data_is_refused(self, store: Store, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "empty"
        path.touch()
        work: dict[str, Callable[[], Any]] = {
            "bytes": lambda: store.put(b""),
            "path": lambda: store.put(path),
            "file": lambda: store.put(io.BytesIO()),
            "iterator": lambda: store.put(iter(())),
            "empty pieces": lambda: store.put([b"", b""]),
            "writer": lambda: store.writer("empty").commit(),
            "many": lambda: store.put_many([b"full", b""]),
            "blob": lambda: store.blobs.put(b""),
        }
        with pytest.raises(EmptyData):
            work[kind]()
        assert list(store.find()) == []

    def test_empty_data_where_it_is_allowed(self, make_store: MakeStore, tmp_path: Path) -> None:
        with make_store(allow_empty=True) as store:
            artifact = store.put(b"", filename="nothing")
            assert artifact.size_bytes == 0
            assert artifact.hash.digest == _native.blake3(b"")
            assert store.read(artifact) == b""
            assert store.read(artifact, 0, 0) == b""
            assert list(store.iter_bytes(artifact)) in ([], [b""])
            with store.open(artifact) as file:
                assert file.read() == b""
            store.export(artifact, tmp_path / "out")
            assert (tmp_path / "out").read_bytes() == b""
            assert store.verify(artifact).ok
            with pytest.raises(InvalidRange):
                store.read(artifact, 0, 1)

    @pytest.mark.parametrize("after_bytes", [0, 1, 16_384, 3_000_000])
    def test_a_source_that_raises_midway_leaves_nothing(self, store: Store, after_bytes: int) -> None:
        kept = store.put(b"kept")

        def source() -> Iterator[bytes]:
            for start in range(0, after_bytes, 65_536):
                yield sample(min(65_536, after_bytes - start), start)
            raise Interrupted

        class File(io.RawIOBase):
            def __init__(self) -> None:
                self.pieces = source()

            def readable(self) -> bool:
                return True

            def read(self, size: int = -1, /) -> bytes:
                return next(self.pieces)

            def readinto(self, buffer: Any, /) -> int:
                piece = next(self.pieces)[: len(buffer)]
                buffer[: len(piece)] = piece
                return len(piece)

        for work in (
            lambda: store.put(source()),
            lambda: store.put(File()),
            lambda: store.blobs.put(source()),
            lambda: store.put_many([b"first", source(), b"third"]),
            lambda: store.blobs.put_many([b"first", source(), b"third"]),
        ):
            with pytest.raises(Interrupted):
                work()
        assert list(store.find()) == [kept]
        assert not store.exists(Hash(_native.blake3(b"first")))
        assert store.stats().blobs == 1
        assert store.read(store.put(b"goes on")) == b"goes on"

    def test_equal_content_is_stored_once(self, store: Store) -> None:
        content = sample(300_000)
        one, two = store.put(content), store.put(content)
        before = store.stats()
        store.put(content)
        after = store.stats()
        assert (one.hash, one.id != two.id) == (two.hash, True)
        assert (after.blobs, after.unique_bytes) == (before.blobs, before.unique_bytes)
        assert after.logical_bytes == before.logical_bytes + len(content)

    @pytest.mark.parametrize(
        "name",
        ["../../etc/passwd", "/absolute", "a/b", "a\nb", "x" * 255, "\u202e", "🦀", ".", "..", "con", " "],
    )
    def test_odd_names_are_kept_as_they_are_or_refused(self, store: Store, name: str) -> None:
        try:
            artifact = store.put(b"content", filename=name, tags=[name], links=[name], metadata={name: name})
        except InvalidInput:
            assert list(store.find()) == []
        else:
            assert artifact.filename == name
            assert store.info(artifact.id) == artifact
            assert artifact.metadata == {name: name}

    @pytest.mark.parametrize(
        "fields",
        [
            {"filename": "lone \ud800 surrogate"},
            {"filename": 5},
            {"tags": [5]},
            {"tags": "text"},
            {"tags": ["\udfff"]},
            {"links": [None]},
            {"metadata": {"list": [1]}},
            {"metadata": {"bytes": b"x"}},
            {"metadata": {5: "x"}},
            {"metadata": {"nan": float("nan")}},
            {"metadata": {"inf": float("inf")}},
            {"metadata": {"\ud800": 1}},
            {"content_type": b"text/plain"},
            {"created_by": 3.5},
            {"requires": ["no id"]},
            {"requires": [5]},
        ],
    )
    def test_fields_that_cannot_be_stored_are_refused(self, store: Store, fields: dict[str, Any]) -> None:
        with pytest.raises((InvalidInput, TypeError)):
            store.put(b"content", **fields)
        assert list(store.find()) == []

    def test_requiring_what_is_not_there_is_an_error(self, store: Store) -> None:
        missing = Hash(_native.blake3(b"missing"))
        with pytest.raises(NotFound):
            store.put(b"content", requires=[missing])
        assert list(store.find()) == []

    def test_put_many_keeps_the_order(self, store: Store, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"from a file")
        big = sample(self.segment_bytes // 2)
        items: list[Any] = [
            b"one",
            PutItem(b"two", filename="two", tags=["own"]),
            path,
            big,
            b"one",
            PutItem([b"six ", b"pieces"], metadata={"n": 6}),
        ]
        got = store.put_many(iter(items), tags=["default"], created_by="all")
        contents = [b"one", b"two", b"from a file", big, b"one", b"six pieces"]
        assert [store.read(artifact) for artifact in got] == contents
        assert [artifact.tags for artifact in got] == [("default",), ("own",), *[("default",)] * 4]
        assert {artifact.created_by for artifact in got} == {"all"}
        assert got[1].filename == "two"
        assert dict(got[5].metadata) == {"n": 6}
        assert got[0].hash == got[4].hash
        assert len({artifact.id for artifact in got}) == 6
        assert store.put_many([]) == []

    def test_put_many_is_all_or_nothing(self, store: Store, tmp_path: Path) -> None:
        def items() -> Iterator[bytes]:
            yield b"first"
            yield sample(self.segment_bytes + 1)
            raise Interrupted

        with pytest.raises(Interrupted):
            store.put_many(items())
        with pytest.raises(SourceNotFound):
            store.put_many([b"first", tmp_path / "missing"])
        with pytest.raises(TooLarge):
            store.put_many((b"x%d" % i for i in range(11)), max_items=10)
        with pytest.raises((InvalidInput, TypeError)):
            store.put_many([b"first", PutItem(b"second", metadata={"bad": b""})])  # type: ignore[dict-item]  # wrong on purpose
        assert list(store.find()) == []
        assert store.stats().blobs == 0

    def test_a_tree_comes_back(self, store: Store, tmp_path: Path) -> None:
        root = tmp_path / "tree"
        files = {
            "a.txt": b"a",
            "empty": b"",
            "deep/er/est/file": sample(100_000),
            "deep/equal": b"a",
            "names/ünï çode 🦀": b"u",
            "names/ leading": b"l",
        }
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        (root / "a.txt").chmod(0o755)
        (root / "empty dir").mkdir()
        (root / "link").symlink_to("deep/equal")
        artifact = store.put_tree(root)
        assert artifact.format == BlobFormat.HASH_SEQ
        target = tmp_path / "out"
        store.export(artifact, target)
        assert _tree(target) == _tree(root)
        with pytest.raises(Conflict):
            store.export(artifact, target)
        assert store.put_tree(root).hash == artifact.hash

    def test_a_tree_that_is_not_there(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(SourceNotFound):
            store.put_tree(tmp_path / "missing")
        (tmp_path / "file").write_bytes(b"x")
        with pytest.raises(HoldfastError):
            store.put_tree(tmp_path / "file")
        assert list(store.find()) == []

    def test_a_writer_commits_when_it_is_left(self, store: Store) -> None:
        content = sample(100_000)
        with store.writer("streamed", tags=["t"]) as writer:
            for start in range(0, len(content), 7_001):
                writer.write(memoryview(content)[start : start + 7_001])
            assert list(store.find()) == []
        assert writer.artifact.filename == "streamed"
        assert writer.artifact.tags == ("t",)
        assert store.read(writer.artifact) == content
        with pytest.raises(HoldfastError):
            writer.write(b"more")

    def test_a_writer_that_is_left_by_an_exception_leaves_nothing(self, store: Store) -> None:
        def interrupted() -> None:
            with store.writer("aborted") as writer:
                writer.write(sample(300_000))
                raise Interrupted

        with pytest.raises(Interrupted):
            interrupted()
        writer = store.writer("dropped")
        writer.write(b"content")
        writer.abort()
        writer.abort()
        with pytest.raises(HoldfastError):
            writer.commit()
        assert list(store.find()) == []
        assert store.stats().blobs == 0

    def test_several_writers_at_once(self, store: Store) -> None:
        writers = [store.writer(f"{i}") for i in range(12)]
        for turn in range(5):
            for i, writer in enumerate(writers):
                writer.write(sample(20_000, turn * 100 + i))
        artifacts = [writer.commit() for writer in writers]
        for i, artifact in enumerate(artifacts):
            assert store.read(artifact) == b"".join(sample(20_000, turn * 100 + i) for turn in range(5))

    def test_raising_in_progress_cancels(self, store: Store, tmp_path: Path) -> None:
        seen: list[Progress] = []

        def cancel(progress: Progress) -> None:
            seen.append(progress)
            raise Interrupted

        with pytest.raises(Interrupted):
            store.put(sample(2_000_000), progress=cancel)
        assert seen
        assert seen[0].done_bytes <= 2_000_000
        assert list(store.find()) == []
        assert store.stats().blobs == 0


def _tree(root: Path) -> dict[str, tuple[str, bytes | str, int]]:
    found: dict[str, tuple[str, bytes | str, int]] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path), 0)
        elif path.is_dir():
            found[name] = ("directory", "", 0)
        else:
            found[name] = ("file", path.read_bytes(), path.stat().st_mode & stat.S_IXUSR)
    return found
