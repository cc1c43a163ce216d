"""Take each line away that safety hangs on, one at a time, and see that a test fails (`make mutants`).

Works in copies of the tree under the temporary directory; the tree itself is only read. The registry names the test
for each line; where that passes, or none is named, wider and wider selections are tried, and what they found is said,
so that it can be written down. A test counts that fails without the line and passes with it. Exit 1 when a line
survives.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final, NamedTuple

from tools.mutants import TOP, Line, Registry, apply, read_registry

RESULTS: Final = TOP / ".stamps" / "mutants.json"
PROOFS: Final = TOP / "docs" / "proofs.md"
MARKS: Final = ("<!-- mutants: begin -->\n", "<!-- mutants: end -->\n")
LEFT_OUT: Final = shutil.ignore_patterns(
    ".git", ".venv", "target", "__pycache__", ".*_cache", ".hypothesis", ".stamps", "dist"
)
LADDER: Final = ("tests/unit tests/contract", "tests/crash tests/interop", "tests/property")
"""What is tried where the tests that the registry names pass: more and more."""
MOST_UNSOUND: Final = 5
"""How many tests that fail for other reasons are passed over in a selection."""
LIMIT_SECONDS: Final = 1200


class Outcome(NamedTuple):
    """What became of a line that was taken away."""

    killed: bool
    by: str
    seconds: float


class Runner:
    """Runs tests on copies of the tree, as many at a time as there are workers."""

    def __init__(self, directory: Path, jobs: int) -> None:
        self._free = [directory / f"tree-{number}" for number in range(jobs)]
        self._mutex = threading.Lock()
        self._sound: dict[str, bool] = {}
        for tree in self._free:
            shutil.copytree(TOP, tree, ignore=LEFT_OUT, symlinks=True)

    def try_line(self, line: Line, selections: Sequence[str]) -> Outcome:
        """Take a line away and run selections until one fails."""
        with self._mutex:
            tree = self._free.pop()
        file = tree / line.path
        whole = file.read_bytes()
        started = time.monotonic()
        try:
            for selection in selections:
                failed = self._missed(line, tree, file, whole, selection)
                if failed:
                    return Outcome(True, failed, time.monotonic() - started)
            return Outcome(False, "", time.monotonic() - started)
        finally:
            with self._mutex:
                self._free.append(tree)

    def _missed(self, line: Line, tree: Path, file: Path, whole: bytes, selection: str) -> str:
        """Give a test of a selection that fails without the line, also by itself, and passes with it."""
        for _ in range(MOST_UNSOUND):
            try:
                apply(line, tree)
                failed, was_alone = run(tree, selection)
                fails_alone = was_alone or "::" not in failed or bool(run(tree, shlex.quote(failed)).test)
            finally:
                file.write_bytes(whole)
            if not failed or (fails_alone and self._passes(tree, failed)):
                return failed
            selection += f" --deselect {shlex.quote(failed)}"
        return ""

    def _passes(self, tree: Path, test: str) -> bool:
        """Whether a test that failed passes with nothing taken away: only then has it missed the line."""
        if test not in self._sound and "::" in test:
            failed = run(tree, shlex.quote(test)).test
            if failed:
                print(f"with nothing taken away, {test} fails as well", flush=True)
            self._sound[test] = not failed
        return self._sound.get(test, True)


class Failed(NamedTuple):
    """The first test of a selection that failed, or "" when all passed."""

    test: str
    was_alone: bool = False
    """Whether it was the first that ran: then no other one can be why it failed."""


def run(tree: Path, selection: str) -> Failed:
    """Run a selection in a tree, up to the first failure."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if selection.startswith("cargo"):
        target = Path(tempfile.gettempdir()) / "holdfast-mutants-target"
        command = [*shlex.split(selection), "--manifest-path", str(tree / "native" / "Cargo.toml")]
        environment["CARGO_TARGET_DIR"] = str(target / tree.name)
    else:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-W", "default"]
        command += ["-m", "not deep", "--timeout", "120", *shlex.split(selection)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=tree,
            env=environment,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Failed(f"{selection} (hangs)")
    if done.returncode == 0:
        return Failed("")
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if found:
        return Failed(found[1], not re.search(r"\d+ passed", done.stdout))
    found = re.search(r"^test (\S+) \.\.\. FAILED", done.stdout, re.MULTILINE)
    if found:
        return Failed(f"cargo test {found[1]}")
    if "Timeout" in done.stdout + done.stderr:
        return Failed(f"{selection} (hangs)")
    raise RuntimeError(
        f"{selection} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    )


def fingerprint(line: Line) -> str:
    """Tell a result of this line from one of an older form of it."""
    return f"{line.old} -> {line.new}"


def table(registry: Registry, results: dict[str, dict[str, object]]) -> str:
    """Write line -> test as it stands in docs/proofs.md."""
    rows = ["| line | kind | without it fails |", "|---|---|---|"]
    for name, line in sorted(registry.lines.items()):
        entry = registry.entries.get(name)
        result = results.get(name, {})
        if entry is not None and entry.reason:
            said = f"*none*: {entry.reason}"
        elif result.get("killed") and result.get("of") == fingerprint(line):
            said = f"`{result['by']}`"
        else:
            said = "**not run**" if not result else "**survives**"
        rows.append(f"| `{name.replace('|', '&#124;')}` | {line.kind} | {said.replace('tests/', '')} |")
    return "\n".join(rows) + "\n"


def write_table(registry: Registry, results: dict[str, dict[str, object]]) -> None:
    """Put the table into docs/proofs.md, between its marks."""
    text = PROOFS.read_text()
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    killed = sum(bool(results.get(name, {}).get("killed")) for name in registry.lines)
    said = sum(bool(entry.reason) for name, entry in registry.entries.items() if name in registry.lines)
    count = f"{len(registry.lines)} lines: {killed} are missed by a test, {said} are not needed or not provable here."
    head = f"\n{count}\n\n"
    PROOFS.write_text(before + MARKS[0] + head + table(registry, results) + MARKS[1] + after)


def chosen(
    registry: Registry, patterns: Iterable[str], results: dict[str, dict[str, object]], again: bool
) -> list[str]:
    """Give the lines to run."""
    names = []
    for name, line in registry.lines.items():
        entry = registry.entries.get(name)
        if entry is not None and entry.reason:
            continue
        if patterns and not any(re.search(pattern, name) for pattern in patterns):
            continue
        known = results.get(name, {})
        if not again and known.get("killed") and known.get("of") == fingerprint(line):
            continue
        names.append(name)
    return sorted(names, key=lambda name: name in results)  # those that were never tried come first


def main() -> int:
    """Parse arguments, run, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="*", help="only lines whose name matches one of these")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="also those that were killed before")
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    parser.add_argument("--near", action="store_true", help="try only the tests that the registry names")
    parser.add_argument("--table", action="store_true", help="only write the table into docs/proofs.md")
    arguments = parser.parse_args()
    registry = read_registry()
    results: dict[str, dict[str, object]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if arguments.table:
        write_table(registry, results)
        return 0
    names = chosen(registry, arguments.patterns, results, arguments.again)
    if arguments.list:
        print("\n".join(names))
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-mutants-") as directory,
        ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        runner = Runner(Path(directory), arguments.jobs)

        def one(name: str) -> tuple[str, Outcome | RuntimeError]:
            line = registry.lines[name]
            entry = registry.entries.get(name)
            rust = line.path.startswith("native/")
            selections = [entry.test] if entry is not None else []
            if not rust and not arguments.near:
                selections += LADDER
            try:
                return name, runner.try_line(line, selections)
            except RuntimeError as error:
                return name, error

        survivors = 0
        for done in as_completed([pool.submit(one, name) for name in names]):
            name, outcome = done.result()
            if isinstance(outcome, RuntimeError):
                print(f"BROKEN    {name}\n{outcome}", flush=True)
                survivors += 1
                continue
            print(
                f"{'killed   ' if outcome.killed else 'SURVIVES '} {outcome.seconds:5.0f} s  {name}  {outcome.by}",
                flush=True,
            )
            survivors += not outcome.killed
            results[name] = {
                "killed": outcome.killed,
                "by": outcome.by,
                "seconds": round(outcome.seconds, 1),
                "of": fingerprint(registry.lines[name]),
            }
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True))
    print(f"{len(names)} lines taken away, {survivors} not missed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
