"""Directories in and out: what is kept, what is reported, and that nothing is written outside the target."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from holdfast import _native
from holdfast.errors import (
    Conflict,
    FormatError,
    InvalidInput,
    NoSpace,
    PermissionDenied,
    SourceNotFound,
    Unavailable,
)
from holdfast.trees import Excludes, StoredTree, export_tree, put_tree, split_name
from holdfast.trees.walk import TreeWalk
from holdfast.types import BytesLike, Progress
from holdfast.wire.collection import TreeExtras, iter_hashes, iter_names, parse_extras

ROOT = os.getuid() == 0


class Blobs(dict[bytes, bytes]):
    """The plainest sink there is."""

    def put_small(self, contents: Sequence[bytes]) -> list[bytes]:
        hashes = [_native.blake3(content) for content in contents]
        self.update(zip(hashes, contents, strict=True))
        return hashes

    def put_large(self, source: IO[bytes] | Iterable[BytesLike], size_hint: int) -> bytes:
        data = b"".join(
            bytes(piece)
            for piece in (iter(lambda: source.read(65_536), b"") if hasattr(source, "read") else source)
        )
        return self.put_small([data])[0]

    def entries(self, collection: bytes) -> Iterator[tuple[str, bytes]]:
        hashes = list(iter_hashes([self[collection]]))
        return zip(iter_names([self[hashes[0]]], len(hashes) - 1), hashes[1:], strict=True)

    def extras(self, tree: StoredTree) -> TreeExtras | None:
        return parse_extras(self[tree.extras], tree.collection) if tree.extras else None

    def export(self, tree: StoredTree, target: Path, **options: Any) -> int:
        return export_tree(
            target,
            lambda: self.entries(tree.collection),
            self.extras(tree),
            lambda hash: [self[hash]],
            **options,
        )


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


def fill(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def picture(root: Path) -> dict[str, object]:
    """All that a tree is, for comparison."""
    found: dict[str, object] = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(directory, name)
            key = str(path.relative_to(root))
            if path.is_symlink():
                found[key] = ("link", os.readlink(path))
            elif path.is_dir():
                found[key] = "directory"
            else:
                found[key] = (path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR))
    return found


def one_of_everything(root: Path) -> None:
    fill(
        root,
        {
            "a": b"A",
            "a.b/x": b"before a/",
            "b/c/d": b"deep",
            "b.txt": b"sorts before b/",
            "empty": b"",
            "equal": b"A",
            "large": bytes(300_000),
            "run/me": b"#!/bin/sh\n",
            "run/me too": b"#!/bin/sh\n",
            "ö/\n\\..\\C:": b"odd",
            "name" * 60: b"long",
        },
    )
    for name in ("run/me", "run/me too", "a"):
        (root / name).chmod(0o755)
    (root / "nothing/here").mkdir(parents=True)
    (root / "to-file").symlink_to("b/c/d")
    (root / "to-directory").symlink_to("b")
    (root / "b/up").symlink_to("../../outside")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "dangling").symlink_to("no such")
    (root / "links").mkdir()
    (root / "links/only").symlink_to(".")


def test_a_tree_comes_back_identical(blobs: Blobs, source: Path, tmp_path: Path) -> None:
    one_of_everything(source)
    tree = put_tree(source, blobs)
    assert (tree.file_count, tree.report.skipped) == (11, ())
    names = [name for name, _ in blobs.entries(tree.collection)]
    assert names == sorted(names, key=str.encode)
    assert tree.collection_bytes == len(blobs[tree.collection]) == 32 * 12
    assert tree.file_bytes == sum(len(blobs[hash]) for _, hash in blobs.entries(tree.collection))
    extras = blobs.extras(tree)
    assert extras is not None
    assert extras.directories == ["nothing/here"]
    assert blobs.export(tree, tmp_path / "out") == 11
    assert picture(tmp_path / "out") == picture(source)
    again = put_tree(tmp_path / "out", Blobs())
    assert (again.collection, again.extras) == (tree.collection, tree.extras)


def test_a_plain_tree_needs_no_extras(blobs: Blobs, source: Path, tmp_path: Path) -> None:
    fill(source, {"x/y": b"1", "z": b"2"})
    tree = put_tree(source, blobs)
    assert tree.extras is None
    blobs.export(tree, tmp_path / "out", durable=False)
    assert picture(tmp_path / "out") == picture(source)


def test_an_empty_directory(blobs: Blobs, source: Path, tmp_path: Path) -> None:
    tree = put_tree(source, blobs)
    assert (tree.file_count, tree.extras) == (0, None)
    blobs.export(tree, tmp_path / "out")
    assert picture(tmp_path / "out") == {}


def test_very_deep_trees(blobs: Blobs, source: Path, tmp_path: Path) -> None:
    deep = source
    for level in range(150):
        deep = deep / "d"
        deep.mkdir()
        (deep / f"a{level}").write_bytes(b"%d" % level)
        (deep / "z").write_bytes(b"z%d" % level)  # read after coming back from below
    tree = put_tree(source, blobs)
    assert tree.file_count == 300
    blobs.export(tree, tmp_path / "out")
    assert picture(tmp_path / "out") == picture(source)
    blobs.export(tree, tmp_path / "out", overwrite=True)
    assert picture(tmp_path / "out") == picture(source)


def test_batches_are_bounded(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(source, {f"{i:03}": bytes(i) for i in range(100)})
    monkeypatch.setattr("holdfast.trees.walk.BATCH_FILES", 30)
    walk = TreeWalk(str(source), Excludes([]), small_bytes=80)
    seen: list[str] = []
    for batch in walk.batches():
        seen += batch.names
        assert len(batch.names) <= 30
        assert len(batch.contents) + (batch.large is not None) == len(batch.names) == len(batch.executable)
        if batch.large is not None:
            assert batch.large.read() == bytes(int(batch.names[-1]))
            batch.large.close()
    assert seen == [f"{i:03}" for i in range(100)]


def test_progress_can_cancel(blobs: Blobs, source: Path, tmp_path: Path) -> None:
    one_of_everything(source)
    steps: list[Progress] = []
    tree = put_tree(source, blobs, progress=steps.append)
    assert steps[-1].done_items == 11
    steps.clear()
    blobs.export(tree, tmp_path / "out", progress=steps.append)
    assert steps[-1].done_items == steps[-1].total_items == 11

    def cancel(step: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put_tree(source, blobs, progress=cancel)
    with pytest.raises(KeyboardInterrupt):
        blobs.export(tree, tmp_path / "cancelled", progress=cancel)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


class TestWhatIsReported:
    def test_pipes_and_sockets(self, blobs: Blobs, source: Path) -> None:
        fill(source, {"x": b"x"})
        os.mkfifo(source / "pipe")
        here = os.getcwd()
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(source)
            try:
                server.bind("sock")
            finally:
                os.chdir(here)
            tree = put_tree(source, blobs)
            assert tree.report.skipped == (("pipe", "a named pipe"), ("sock", "a socket"))
            with pytest.raises(InvalidInput, match="pipe"):
                put_tree(source, blobs, strict=True)

    def test_a_file_that_vanishes(self, blobs: Blobs, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(source, {"a": b"a", "b": b"b", "d/x": b"x", "e/x": b"y"})
        real = os.open

        def open_and_lose(path: Any, flags: int, *args: Any, **more: Any) -> int:
            if path in ("b", "d"):
                raise FileNotFoundError(2, "gone")
            return real(path, flags, *args, **more)

        monkeypatch.setattr(os, "open", open_and_lose)
        tree = put_tree(source, blobs)
        assert [name for name, _ in blobs.entries(tree.collection)] == ["a", "e/x"]
        assert [path for path, _ in tree.report.skipped] == ["b", "d"]
        with pytest.raises(SourceNotFound, match="source/b"):
            put_tree(source, blobs, strict=True)

    def test_a_directory_that_becomes_a_link(self, blobs: Blobs, source: Path, tmp_path: Path) -> None:
        fill(source, {"a": b"a", "d/x": b"x"})
        fill(tmp_path / "secret", {"x": b"secret"})

        class Swapper(TreeWalk):
            def _list(self, here: int, frame: Any) -> None:
                super()._list(here, frame)
                if not frame.prefix:
                    (source / "d").rename(tmp_path / "was-d")
                    (source / "d").symlink_to(tmp_path / "secret")

        walk = Swapper(str(source), Excludes([]))
        assert [name for batch in walk.batches() for name in batch.names] == ["a"]
        assert [path for path, _ in walk.skipped] == ["d"]

    def test_a_file_that_is_closed_to_us(
        self, blobs: Blobs, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(source, {"a": b"a", "b": b"b", "c": b"c"})
        real = os.open

        def refuse(path: Any, flags: int, *args: Any, **more: Any) -> int:
            if path in errors:
                raise OSError(errors[path], "no")
            return real(path, flags, *args, **more)

        monkeypatch.setattr(os, "open", refuse)
        errors = {"b": errno.EACCES, "c": errno.ELOOP}
        why = dict(put_tree(source, blobs).report.skipped)
        assert why["b"] == "not allowed to be read"
        assert why["c"].startswith("changed while the tree was read")
        with pytest.raises(PermissionDenied, match="source/b"):
            put_tree(source, blobs, strict=True)
        errors = {"b": errno.EIO}
        with pytest.raises(Unavailable):  # a disk that fails is no reason to leave a file out
            put_tree(source, blobs)

    @pytest.mark.skipif(ROOT, reason="root may read everything")
    def test_what_may_not_be_read(self, blobs: Blobs, source: Path) -> None:
        fill(source, {"a": b"a", "no": b"b", "closed/x": b"x"})
        (source / "no").chmod(0)
        (source / "closed").chmod(0)
        try:
            tree = put_tree(source, blobs)
        finally:
            (source / "closed").chmod(0o755)
        assert tree.report.skipped == (("closed", "not allowed to be read"), ("no", "not allowed to be read"))

    def test_a_name_that_is_not_utf8(self, blobs: Blobs, source: Path) -> None:
        (Path(os.fsdecode(os.fsencode(source) + b"/bad\xff"))).touch()
        with pytest.raises(InvalidInput, match=r"bad\\xff") as caught:
            put_tree(source, blobs)
        assert caught.value.name == b"bad\xff"

    def test_a_link_to_what_is_not_utf8(self, blobs: Blobs, source: Path) -> None:
        os.symlink(b"\xff", os.fsencode(source) + b"/link")
        with pytest.raises(InvalidInput, match="link"):
            put_tree(source, blobs)

    def test_roots_that_are_none(self, blobs: Blobs, source: Path) -> None:
        fill(source, {"file": b""})
        with pytest.raises(SourceNotFound):
            put_tree(source / "nowhere", blobs)
        with pytest.raises(InvalidInput):
            put_tree(source / "file", blobs)

    def test_the_store_is_left_out_of_itself(self, blobs: Blobs, source: Path) -> None:
        fill(source, {"a": b"a", "store/segment": b"s"})
        status = (source / "store").stat()
        tree = put_tree(source, blobs, skip_directories=[(status.st_dev, status.st_ino)])
        assert tree.file_count == 1
        assert tree.report.skipped == (("store", "the store itself"),)


def test_a_file_that_changes_is_what_was_read(
    blobs: Blobs, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source, {"grows": b"12345", "shrinks": b"12345", "explodes": b"12345"})
    real = os.fstat

    def change(handle: int) -> os.stat_result:
        status = real(handle)
        if stat.S_ISREG(status.st_mode):
            name = os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))
            content = {"grows": b"123456789", "shrinks": b"12", "explodes": bytes(1_000_000)}.get(name)
            if content is not None:
                (source / name).write_bytes(content)
        return status

    monkeypatch.setattr(os, "fstat", change)
    tree = put_tree(source, blobs)
    contents = {name: blobs[hash] for name, hash in blobs.entries(tree.collection)}
    assert contents == {"grows": b"123456789", "shrinks": b"12", "explodes": bytes(1_000_000)}


def test_files_of_unknown_size(blobs: Blobs) -> None:
    walk = TreeWalk("/proc/self/net", Excludes(["*", "!dev", "!unix"]))
    found = {
        name: content
        for batch in walk.batches()
        for name, content in zip(batch.names, batch.contents, strict=True)
    }
    assert found["dev"].startswith(b"Inter-")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "/a",
        "a/",
        "a//b",
        "./a",
        "a/.",
        "../a",
        "a/..",
        "a/../b",
        "a\0b",
        "\0",
        "a/../../b",
    ],
)
def test_names_that_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        split_name(name)
    extras = [
        TreeExtras(version=1, collection="", symlinks={name: "x"}),
        TreeExtras(version=1, collection="", directories=[name]),
    ]
    for given, more in [
        ([("ok", b""), (name, b"")], None),
        ([("ok", b"")], extras[0]),
        ([("ok", b"")], extras[1]),
    ]:
        with pytest.raises(InvalidInput):
            export_tree(tmp_path / "out", lambda given=given: given, more, lambda hash: [b"x"])  # type: ignore[misc]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a"],
        ["a", "a/b"],
        ["a/b", "a"],
        ["a/b/c", "x", "a/b"],
        ["x" * 256],
    ],
)
def test_names_that_collide(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        export_tree(tmp_path / "out", lambda: [(name, b"") for name in names], None, lambda hash: [b"x"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "links", "directories"),
    [
        (["a"], {"a": "/tmp"}, []),
        (["a/b"], {"a": "/tmp"}, []),
        ([], {"a": "/tmp", "a/b": "x"}, []),  # a link below a link
        ([], {"a": "/tmp"}, ["a"]),
        (["a"], {}, ["a"]),
        (["a"], {}, ["a/b"]),
        ([], {"a": ""}, []),
        ([], {"a": "x\0y"}, []),
    ],
)
def test_links_never_lead_a_write(
    files: list[str], links: dict[str, str], directories: list[str], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    links = {name: target.replace("/tmp", str(outside)) for name, target in links.items()}
    extras = TreeExtras(version=1, collection="", symlinks=links, directories=directories)
    with pytest.raises(InvalidInput):
        export_tree(tmp_path / "out", lambda: [(name, b"") for name in files], extras, lambda hash: [b"x"])
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert list(outside.iterdir()) == []


def test_a_race_does_not_lead_a_write_elsewhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    def read(hash: bytes) -> Iterator[bytes]:
        yield b"x"
        tree = next(tmp_path.glob(".out.*")) / "tree"
        if (tree / "d").is_dir() and not (tree / "d").is_symlink():
            (tree / "d").rename(tree / "was")
            (tree / "d").symlink_to(outside)

    with pytest.raises(InvalidInput):
        export_tree(tmp_path / "out", lambda: [(n, b"") for n in ("d/a", "d/b", "e/x", "d/c")], None, read)
    assert list(outside.iterdir()) == []


def link_tree(symlinks: dict[str, str], target: Path, **options: Any) -> None:
    extras = TreeExtras(version=1, collection="", symlinks=symlinks)
    export_tree(target, lambda: [("d/f", b"")], extras, lambda hash: [b"x"], **options)


def test_links_of_strangers(tmp_path: Path) -> None:
    for number, target in enumerate([".", "d", "../d/f", "./..//d", "x/y"]):
        link_tree({"d/l": target}, tmp_path / str(number), links="inside")
    for target in ("/", "/etc", "..", "../..", "d/..", "x/../y", "../../x"):
        name = "l" if target == ".." else "d/l"
        with pytest.raises(InvalidInput, match="leads out"):
            link_tree({name: target}, tmp_path / "out", links="inside")
    link_tree({"l": "/etc"}, tmp_path / "out")
    assert os.readlink(tmp_path / "out/l") == "/etc"


class TestTheTarget:
    ENTRIES = (("d/f", b""), ("g", b""))

    def export(self, target: Path, **options: Any) -> None:
        export_tree(target, lambda: self.ENTRIES, None, lambda hash: [b"new"], **options)

    def check(self, target: Path) -> None:
        assert picture(target) == {"d": "directory", "d/f": (b"new", False), "g": (b"new", False)}
        assert [p.name for p in target.parent.iterdir() if p.name.startswith(".")] == []

    def test_conflict(self, tmp_path: Path) -> None:
        for make in (Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")):
            target = tmp_path / "t"
            make(target)
            with pytest.raises(Conflict):
                self.export(target)
            self.export(target, overwrite=True)
            self.check(target)
            self.export(target, overwrite=True)
            self.check(target)
            target.rename(tmp_path / os.urandom(4).hex())

    def test_somebody_else_was_faster(self, tmp_path: Path) -> None:
        target = tmp_path / "t"

        def read(hash: bytes) -> list[bytes]:
            target.write_bytes(b"precious")
            return [b"x"]

        with pytest.raises(Conflict):
            export_tree(target, lambda: self.ENTRIES, None, read)
        assert target.read_bytes() == b"precious"
        assert [p.name for p in tmp_path.iterdir()] == ["t"]

    def test_modes_follow_the_umask(self, tmp_path: Path) -> None:
        extras = TreeExtras(version=1, collection="", executable=[1, 2])
        old = os.umask(0o027)
        try:
            export_tree(tmp_path / "t", lambda: self.ENTRIES, extras, lambda hash: [b"x"])
        finally:
            os.umask(old)
        modes = [stat.S_IMODE((tmp_path / "t" / name).stat().st_mode) for name in ("", "d", "d/f", "g")]
        assert modes == [0o750, 0o750, 0o640, 0o750]

    def test_a_failing_read_leaves_nothing(self, tmp_path: Path) -> None:
        def read(hash: bytes) -> Iterator[bytes]:
            yield b"half"
            raise NoSpace("full")

        (tmp_path / "t").mkdir()
        (tmp_path / "t/old").touch()
        with pytest.raises(NoSpace):
            export_tree(tmp_path / "t", lambda: self.ENTRIES, None, read, overwrite=True)
        assert picture(tmp_path) == {"t": "directory", "t/old": (b"", False)}

    def test_nowhere_to_put_it(self, tmp_path: Path) -> None:
        with pytest.raises(SourceNotFound):
            self.export(tmp_path / "no" / "t")
        with pytest.raises(Conflict):
            self.export(Path("/"), overwrite=True)

    def test_extras_that_do_not_fit(self, tmp_path: Path) -> None:
        extras = TreeExtras(version=1, collection="", executable=[1, 3])
        with pytest.raises(FormatError):
            export_tree(tmp_path / "t", lambda: self.ENTRIES, extras, lambda hash: [b"x"])
        assert list(tmp_path.iterdir()) == []

    def test_relative_targets(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        self.export(Path("t"))
        self.check(tmp_path / "t")

    def test_two_at_once(self, tmp_path: Path) -> None:
        outcomes: list[str] = []

        def run() -> None:
            try:
                self.export(tmp_path / "t")
                outcomes.append("done")
            except Conflict:
                outcomes.append("conflict")

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["conflict"] * 3 + ["done"]
        self.check(tmp_path / "t")


@pytest.mark.parametrize(
    ("patterns", "out", "kept"),
    [
        (["*.o"], ["a.o", "d/a.o", ".o"], ["a.oo", "a.o.c"]),
        (["/*.o"], ["a.o"], ["d/a.o"]),
        (["d/*.o"], ["d/a.o"], ["a.o", "x/d/a.o", "d/e/a.o"]),
        (["build/"], ["build/", "x/build/"], ["build", "x/build"]),
        (["/build/"], ["build/"], ["x/build/", "build"]),
        (["**/x"], ["x", "a/x", "a/b/x"], ["ax", "x/a"]),
        (["a/**"], ["a/b", "a/b/c"], ["a", "b/a/c"]),
        (["a/**/b"], ["a/b", "a/x/b", "a/x/y/b"], ["a/xb", "b", "x/a/b"]),
        (["a**b"], ["ab", "axxb", "d/ab"], ["a/b"]),
        (["?"], ["a", "d/ö"], ["ab"]),
        (["[a-c]x", "[!a-c]y"], ["ax", "dy", "q/ax"], ["dx", "ay"]),
        (["[]]", "[!]]q", "[a\\]]z"], ["]", "xq", "]z", "az"], ["]q"]),
        (["a[!x]b"], ["ayb"], ["a/b", "axb"]),
        (["\\*", "\\!x", "\\[a]"], ["*", "!x", "[a]"], ["y", "x", "a"]),
        (["*", "!*.py", "!d/"], ["x", "d/y"], ["x.py", "d/", "d/z.py"]),
        (["x", "!x", "/x"], ["x"], ["d/x"]),
        (["a.b"], ["a.b"], ["axb"]),
        (["a b\nc"], ["a b\nc"], ["a"]),
        (["*"], ["\n", "d/\n"], []),
        ([], [], ["x"]),
    ],
)
def test_exclude_patterns(patterns: list[str], out: list[str], kept: list[str]) -> None:
    excludes = Excludes(patterns)
    for path in out + kept:
        assert excludes.matches(path.rstrip("/"), path.endswith("/")) == (path in out), path


@pytest.mark.parametrize(
    "pattern", ["", "/", "!", "!/", "a\\", "[", "[a", "[!", "[z-a]", "[[:alpha:]]", "a\0"]
)
def test_patterns_that_make_no_sense(pattern: str) -> None:
    with pytest.raises(InvalidInput):
        Excludes([pattern])
    with pytest.raises(InvalidInput):
        Excludes("*.o")


def test_what_is_excluded_is_not_in_the_tree(blobs: Blobs, source: Path) -> None:
    fill(source, {"a.o": b"", "a.c": b"", "build/x.c": b"", "d/e/b.o": b"", "f/g.o": b"", "f/g.c": b""})
    (source / "l.o").symlink_to("a.c")
    tree = put_tree(source, blobs, exclude=["*.o", "build/"])
    assert [name for name, _ in blobs.entries(tree.collection)] == ["a.c", "f/g.c"]
    extras = blobs.extras(tree)
    assert extras is not None
    assert (extras.directories, extras.symlinks) == (["d/e"], {})
