"""Trees of any names come back identical; exclude patterns against git itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from holdfast import _native
from holdfast.errors import InvalidInput
from holdfast.trees import Excludes, export_tree, put_tree
from holdfast.types import BytesLike
from holdfast.wire.collection import iter_hashes, iter_names, parse_extras

PART = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda part: part not in (".", "..")
)
NAME = st.lists(PART, min_size=1, max_size=4).map("/".join)
ANYTHING = st.sampled_from(
    ["", ".", "..", "/", "a", "b", "\0", "a/b", "/a", "../a", "a/..", "a/../../b", "a//b", "b/"]
)


class Blobs(dict[bytes, bytes]):
    def put_small(self, contents: Sequence[bytes]) -> list[bytes]:
        hashes = [_native.blake3(content) for content in contents]
        self.update(zip(hashes, contents, strict=True))
        return hashes

    def put_large(self, source: IO[bytes] | Iterable[BytesLike], size_hint: int) -> bytes:
        return self.put_small([source.read() if hasattr(source, "read") else b"".join(source)])[0]


def picture(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(directory, name)
            status = path.lstat()
            content: object = os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
            found[str(path.relative_to(root))] = content, bool(status.st_mode & 0o100)
    return found


@given(st.dictionaries(NAME, st.tuples(st.sampled_from("fxld"), st.binary(max_size=300)), max_size=12))
@settings(max_examples=60)
def test_any_tree_comes_back(tree: dict[str, tuple[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        source.mkdir()
        for name, (kind, content) in tree.items():
            path = source / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == "d":
                    path.mkdir()
                elif kind == "l":
                    path.symlink_to(content.hex() or "/")
                else:
                    path.touch(0o755 if kind == "x" else 0o644, exist_ok=False)
                    path.write_bytes(content)
            except OSError:  # a conflict of names, or one that is too long
                assume(False)
        blobs = Blobs()
        stored = put_tree(source, blobs, small_bytes=100)
        hashes = list(iter_hashes([blobs[stored.collection]]))
        entries = list(zip(iter_names([blobs[hashes[0]]], len(hashes) - 1), hashes[1:], strict=True))
        assert [name for name, _ in entries] == sorted((name for name, _ in entries), key=str.encode)
        extras = parse_extras(blobs[stored.extras], stored.collection) if stored.extras else None
        export_tree(Path(scratch, "out"), lambda: entries, extras, lambda hash: [blobs[hash]], durable=False)
        assert picture(Path(scratch, "out")) == picture(source)


@given(st.lists(st.lists(ANYTHING | PART, min_size=1, max_size=4).map("/".join), max_size=5))
def test_no_names_lead_outside(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch, "a", "b", "out")
        target.parent.mkdir(parents=True)
        try:
            export_tree(
                target, lambda: [(name, b"") for name in names], None, lambda hash: [b"x"], durable=False
            )
        except InvalidInput:
            assert not target.exists()
        else:
            assert all((target / name).read_bytes() == b"x" for name in names)
            assert len([path for path in target.rglob("*") if path.is_file()]) == len(names)
        assert {
            str(path.relative_to(scratch)) for path in Path(scratch).rglob("*") if target not in path.parents
        } <= {
            "a",
            "a/b",
            "a/b/out",
        }


PATTERN = st.lists(
    st.sampled_from(["a", "b", ".c", "*", "**", "?", "[ab]", "[!a]", "/", "/", "\\a"]), min_size=1, max_size=7
).map("".join)
PATH = st.lists(st.text("abc.", min_size=1, max_size=3), min_size=1, max_size=4).map("/".join)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("git")
    if shutil.which("git") is None:
        pytest.skip("git is not here to compare with")
    subprocess.run(["git", "init", "-q", str(path)], check=True)
    return path


@given(
    rules=st.lists(st.tuples(st.booleans(), PATTERN), min_size=1, max_size=3),
    paths=st.lists(PATH, min_size=1, max_size=8),
)
def test_excludes_agree_with_git(repository: Path, rules: list[tuple[bool, str]], paths: list[str]) -> None:
    patterns = ["!" * negated + pattern for negated, pattern in rules]
    paths = [path for path in paths if not {".", ".."} & set(path.split("/"))]
    assume(paths and all(pattern.strip("!/") and "//" not in pattern for pattern in patterns))
    excludes = Excludes(patterns)

    def left_out(path: str) -> bool:
        parts = path.split("/")
        above = any(excludes.matches("/".join(parts[:i]), True) for i in range(1, len(parts)))
        return above or excludes.matches(path, False)

    (repository / ".gitignore").write_text("\n".join(patterns) + "\n")
    done = subprocess.run(
        ["git", "-C", str(repository), "check-ignore", "--no-index", "-z", "--stdin"],
        input="\0".join(paths),
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    ignored = set(done.stdout.split("\0"))
    assert {path: left_out(path) for path in paths} == {path: path in ignored for path in paths}, patterns
