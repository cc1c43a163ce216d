"""The lines that safety hangs on, and how each is taken away: what `mutate.py` runs, and a test keeps complete.

Lines are found in the source itself: each fsync, each store lock and pin, each lock of a file, each lock between
threads, and each comparison with a hash, a checksum or an identity. `mutants.toml` names for every one of them the
test that fails without it. Orders of steps, and looks that are no such call, cannot be found this way: they stand
there as a piece of the source and what is put in its place, which must still fit (`[[order]]`).
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

TOP: Final = Path(__file__).parents[1]
SOURCE: Final = "src/holdfast"
REGISTRY: Final = "tools/mutants.toml"

ELSEWHERE: Final = ("cli/", "config/", "testing/", "reference.py", "reference_bao.py")
"""What holds no data: the doors, the harness, and the slow definitions that tests compare with."""

STEPS: Final = frozenset(
    {"fsync", "fsync_dir", "_fsync", "_fsync_data", "_sync", "sync", "give_up", "touch", "lease"}
)
GUARDS: Final = frozenset(
    {"remove_companions", "catch_up", "go_back", "_confirm", "check_same_store", "check_segment_header"}
    | {"_check_same", "_check_length", "_check_some", "_refuse_to_forget"}
)
HELD: Final = frozenset({"held", "lock", "operation", "exclusive"})
COMPARED: Final = re.compile(
    r"blake3|crc|digest\b|sha256\(|checksum\(|verify_many|\.check\(|store_id|identity|read_id|catalog_id"
    r"|\.hash [!=]= |[!=]= \w+\.hash\b|matches\(|\broot [!=]= |[!=]= root\b|finish\(\)\[0\]"
    r"|\.ino\b|HEADER_HASH|e_tag(\(\w+\))? [!=]= |[!=]= e_tag\b"
)
NO_COMPARISON: Final = re.compile(r"^len\(|'sha256'|'blake3|startswith|commonpath|\.hex\(\)$")
UNLOCKED: Final = "__import__('contextlib').nullcontext()"
LAWLESS: Final = "__import__('tools.lawless', fromlist=['Lawless']).Lawless()"
"""Instead of a lock between threads: it can all that a condition can, and keeps nobody out."""


class Line(NamedTuple):
    """Something that can be taken away: where, what stands there, and what stands there then."""

    name: str
    """`file: function: source`, with `#2` and so on where it comes again."""
    kind: str
    path: str
    number: int
    old: str
    new: str
    start: int
    """Where `old` begins in the file, in bytes of UTF-8."""


class Entry(NamedTuple):
    """What the registry says of a line: the test that fails without it, or why there is none."""

    test: str
    reason: str


class Registry(NamedTuple):
    """The lines that were found with what is known of them, and what does not fit together."""

    lines: dict[str, Line]
    entries: dict[str, Entry]
    unregistered: list[str]
    stale: list[str]


def find_lines(top: Path = TOP) -> dict[str, Line]:
    """Give each line that the source itself tells of, by name."""
    found: dict[str, Line] = {}
    root = top / SOURCE
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        if path.startswith(ELSEWHERE):
            continue
        seen: Counter[str] = Counter()
        source = file.read_bytes()
        starts = [0]
        for text in source.splitlines(keepends=True):
            starts.append(starts[-1] + len(text))
        for owner, kind, node, new in _walk(ast.parse(source), ()):
            old = source[_at(starts, node, True) : _at(starts, node, False)].decode()
            name = f"{path}: {'.'.join(owner)}: {' '.join(ast.unparse(node).split())}"
            seen[name] += 1
            if seen[name] > 1:
                name += f" #{seen[name]}"
            found[name] = Line(name, kind, f"{SOURCE}/{path}", node.lineno, old, new, _at(starts, node, True))
    return found


def _at(starts: list[int], node: Any, begin: bool) -> int:
    line, column = (node.lineno, node.col_offset) if begin else (node.end_lineno, node.end_col_offset)
    return int(starts[line - 1] + column)


def _walk(node: ast.AST, owner: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, Any, str]]:
    for child in ast.iter_child_nodes(node):
        inner = owner
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            inner = (*owner, child.name)
        found = _judge(child)
        if found is not None:
            yield (inner, *found)
        yield from _walk(child, inner)


def _judge(node: ast.AST) -> tuple[str, Any, str] | None:
    """Say whether a node is such a line, of what kind, and what is to stand in its place."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        name = _called(node.value)
        if name in STEPS:
            return ("fsync" if "sync" in name else "step"), node.value, "None"
        if name in GUARDS:
            return "guard", node.value, "None"
    elif isinstance(node, ast.withitem) and isinstance(node.context_expr, ast.Call):
        name = _called(node.context_expr)
        if name in HELD:
            return ("pin" if name == "operation" else "lock"), node.context_expr, UNLOCKED
    elif isinstance(node, ast.Call):
        if (
            isinstance(node.func, ast.Attribute)
            and node.func.attr == "lock"
            and "disk" in ast.unparse(node.func)
        ):
            return "lock", node, "True"
        if ast.unparse(node.func) in ("threading.Lock", "threading.RLock", "threading.Condition"):
            return "mutex", node, LAWLESS
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        text = ast.unparse(node)
        if COMPARED.search(text) and not NO_COMPARISON.search(text):
            fine = isinstance(node.ops[0], (ast.Eq, ast.Lt))
            if isinstance(node.ops[0], (ast.Eq, ast.NotEq, ast.Lt, ast.GtE)):
                return "comparison", node, repr(fine)
    return None


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def read_registry(top: Path = TOP) -> Registry:
    """Hold the registry against the source."""
    document = tomllib.loads((top / REGISTRY).read_text())
    lines = find_lines(top)
    entries: dict[str, Entry] = {}
    stale = []
    for path, known in document.get("lines", {}).items():
        for rest, said in known.items():
            if rest == "*":
                here = [name for name in lines if name.startswith(f"{path}: ")]
                for name in here:
                    entries.setdefault(name, _entry(said))
                stale += [] if here else [f"{path}: *"]
            else:
                entries[f"{path}: {rest}"] = _entry(said)
                if f"{path}: {rest}" not in lines:
                    stale.append(f"{path}: {rest}")
    unregistered = [name for name in lines if name not in entries]
    for one in document.get("order", []):
        name = f"{one['file']}: {one['name']}"
        entries[name] = _entry(one["test"])
        source = (top / one["file"]).read_text()
        if source.count(one["old"]) != 1:
            stale.append(name)
            continue
        start = len(source[: source.index(one["old"])].encode())
        number = source[: source.index(one["old"])].count("\n") + 1
        lines[name] = Line(name, one.get("kind", "order"), one["file"], number, one["old"], one["new"], start)
    return Registry(lines, entries, unregistered, stale)


def _entry(said: str) -> Entry:
    """A test to run (arguments of pytest, or `cargo …`), or `none: ` and why there is none."""
    return Entry("", said.removeprefix("none:").strip()) if said.startswith("none:") else Entry(said, "")


def apply(line: Line, top: Path) -> None:
    """Take the line away in a tree; the file must be as it was when the line was found."""
    file = top / line.path
    source = file.read_bytes()
    old = line.old.encode()
    if source[line.start : line.start + len(old)] != old:
        raise ValueError(f"{file} is not as it was when {line.name!r} was found")
    file.write_bytes(source[: line.start] + line.new.encode() + source[line.start + len(old) :])
