"""The registry of lines that safety hangs on is complete: `make mutants` takes each of them away."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools.mutants import TOP, apply, find_lines, read_registry


def test_each_line_has_a_test_named_for_it() -> None:
    """A new fsync, lock, pin or comparison in a new file: say in tools/mutants.toml which tests miss it."""
    assert read_registry().unregistered == []


def test_what_is_registered_is_there() -> None:
    """A line that was changed or removed: change or remove it in tools/mutants.toml as well."""
    assert read_registry().stale == []


def test_named_tests_are_there() -> None:
    for name, entry in read_registry().entries.items():
        for word in entry.test.split():
            if word.startswith("tests/"):
                assert (TOP / word.split("::")[0]).exists(), f"{name}: {word} is not there"


@pytest.mark.parametrize(
    ("source", "kinds"),
    [
        ("def f():\n    disk.fsync(handle)\n", ["fsync"]),
        ("def f():\n    with self._lock.held():\n        pass\n", ["lock"]),
        ("def f():\n    with backend.operation():\n        pass\n", ["pin"]),
        ("def f():\n    if not disk.lock(handle):\n        pass\n", ["lock"]),
        ("lock = threading.Lock()\n", ["mutex"]),
        ("def f():\n    return _native.blake3(data) == hash_\n", ["comparison"]),
        ("def f():\n    self.give_up()\n", ["step"]),
        ("def f():\n    return len(digests) == 3\n", []),
    ],
)
def test_lines_are_found_and_taken_away(source: str, kinds: list[str], tmp_path: Path) -> None:
    file = tmp_path / "src" / "holdfast" / "one.py"
    file.parent.mkdir(parents=True)
    file.write_text(source)
    lines = find_lines(tmp_path)
    assert [line.kind for line in lines.values()] == kinds
    for line in lines.values():
        apply(line, tmp_path)
        ast.parse(file.read_text())
        assert line.old not in file.read_text()
