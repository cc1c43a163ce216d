"""Measures everything that docs/performance.md says, and writes it there: `make bench`.

    make bench ARGS="--only put,read"        some rows; the others keep what was measured before
    make bench ARGS="--runs 9 --list"

It needs about 30 GB of disk, 20 of them for a moment (see --stream-gib), and half an hour.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from benches import compacting, large, objects, opening, organising, partials, small, trees
from benches.corpora import place
from benches.encoding import encode, kernels
from benches.encoding import ranges as streams
from benches.measure import Bench, Report
from holdfast.chunking import Chunking
from holdfast.compress import LEVEL
from holdfast.making import DEFAULT_COMPRESSION, DEFAULT_SEGMENT_BYTES

ROWS: Final[dict[str, Callable[[Bench], Report]]] = {
    "put": large.put,
    "again": large.put_again,
    "read": large.read,
    "scrub": large.scrub,
    "many": small.many,
    "durable": small.durable,
    "tree": trees.tree,
    "random": small.read,
    "ranges": large.ranges,
    "versions": trees.package,
    "stream": large.stream,
    "open": opening.opening,
    "space": large.space,
    "start": opening.start,
    "decode": partials.decode,
    "resume": partials.resume,
    "bitfield": partials.bitfield,
    "encode": encode,
    "streams": streams,
    "kernels": kernels,
    "find": organising.find,
    "update": organising.update,
    "collect": organising.collect,
    "idle": organising.idle,
    "compact": compacting.compact,
    "pause": compacting.pause,
    "bucket_put": objects.bucket_put,
    "bucket_get": objects.bucket_get,
    "bucket_small": objects.bucket_small,
    "bucket_ranges": objects.bucket_ranges,
    "bucket_rebuild": objects.bucket_rebuild,
}
COLUMNS: Final = ("who", "median", "slowest to fastest", "beside", "CPU", "memory", "proof")
DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "performance.md"


class Measured(msgspec.Struct):
    """A row as it is kept between runs."""

    when: str
    runs: int
    machine: str
    report: Report


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure Holdfast beside physical limits and peers.")
    parser.add_argument("--only", metavar="ROWS", help="names of rows, with commas between")
    parser.add_argument("--runs", type=int, default=5, help="rounds of each row (5)")
    parser.add_argument("--stream-gib", type=int, default=20, help="length of the endless stream (20)")
    parser.add_argument(
        "--chunks", type=int, default=1_000_000, help="chunks of the store that is opened (1,000,000)"
    )
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"{name:10} {row.__doc__}" for name, row in ROWS.items()))
        return 0
    chosen = given.only.split(",") if given.only else list(ROWS)
    if unknown := set(chosen) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))} (there are {', '.join(ROWS)})")
    console = Console(width=None if sys.stdout.isatty() else 200)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody who starts a command compiles it each time
    kept = _kept()
    bench = Bench(given.runs, given.stream_gib << 30, given.chunks)
    failed = []
    try:
        for name in chosen:
            try:
                report = ROWS[name](bench)
            except (RuntimeError, AssertionError, OSError) as error:
                failed.append(name)
                console.print(f"{name} failed: {error}", style="red", markup=False, highlight=False)
                continue
            kept[name] = Measured(datetime.now(UTC).strftime("%Y-%m-%d %H:%M"), given.runs, machine(), report)
            (place() / "results.json").write_bytes(msgspec.json.encode(kept))
            console.print(table(report))
    finally:
        bench.close()
    DOCUMENT.write_text(document({name: kept[name] for name in ROWS if name in kept}))
    return 1 if failed else 0


def _kept() -> dict[str, Measured]:
    try:
        return msgspec.json.decode((place() / "results.json").read_bytes(), type=dict[str, Measured])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def table(report: Report) -> Table:
    """Write a row for the terminal."""
    goals = [f"[{'green' if g.reached else 'red'}]{g.text}: {g.got}[/]" for g in report.goals]
    shown = Table(
        title=report.title,
        caption="\n".join([*goals, report.note]),
        title_justify="left",
        caption_justify="left",
    )
    for column in COLUMNS:
        shown.add_column(column, overflow="fold")
    for one in report.lines:
        shown.add_row(one.who, one.figure, one.spread, one.beside, one.cpu, one.memory, one.proof)
    return shown


def document(rows: dict[str, Measured]) -> str:
    """Write docs/performance.md."""
    parts = [HEAD.format(configuration=configuration(), peers=_peers())]
    parts.append("| job | goal | measured | |\n|---|---|---|---|\n")
    for measured in rows.values():
        title = measured.report.title
        for goal in measured.report.goals:
            parts.append(
                f"| {title} | {goal.text} | {goal.got} | {'reached' if goal.reached else '**not reached**'} |\n"
            )
            title = ""
    parts.append(
        "\nMemory: the resident peak of the job's process above a bare interpreter; of a command, all.\n"
    )
    for name, measured in rows.items():
        report = measured.report
        parts.append(f"\n## {report.title}\n\n{report.corpus}.\n")
        parts.append(
            f'`make bench ARGS="--only {name} --runs {measured.runs}"`, {measured.when} UTC, {measured.machine}.'
        )
        parts.append(f" {report.note}\n\n" if report.note else "\n\n")
        parts.append(
            "| who | median | slowest to fastest | beside | CPU | memory | proof |\n|---|---|---|---|---|---|---|\n"
        )
        for one in report.lines:
            cells = (one.who, one.figure, one.spread, one.beside, one.cpu, one.memory, one.proof)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


HEAD: Final = """# Performance

Measured by `make bench`, which anyone can run; this file is what it wrote. Each job stands beside its physical
limit and beside real peers in the same run: every contestant once a round, the order turning with each round,
outputs deleted and the disk at rest before each; medians, and ratios round by round. Everything is durable at the
acknowledgement, the data in the page cache unless a row says otherwise. Each job runs in a process of its own,
and the time is that of the call; of a command it is that of the process. The counts under *proof* come from
the catalog after the job, and what was read was compared with what was written.

One configuration for all rows, the default: {configuration}.

Peers: {peers}.

"""


def configuration() -> str:
    chunking = Chunking.choose()
    return (
        f"{chunking.kind} with chunks of {chunking.average_bytes >> 10} KiB on average,"
        f" {DEFAULT_COMPRESSION} level {LEVEL} where it pays, segments of {DEFAULT_SEGMENT_BYTES >> 20} MiB, fsync on"
    )


def _peers() -> str:
    found = [f"Python {platform.python_version()}", f"BLAKE3 {version('blake3')} (PyPI)"]
    try:
        found.append(f"lmdb {version('lmdb')} (PyPI)")
    except PackageNotFoundError:
        print("lmdb is not installed (pip install lmdb): rows go on without it")
    for name in ("borg", "restic"):
        if shutil.which(name):
            argv = [name, "--version"] if name == "borg" else [name, "version"]
            said = subprocess.run(argv, capture_output=True, check=False, text=True).stdout.split()
            found.append(" ".join(said[:2]))
    return ", ".join(found)


def machine() -> str:
    """Say on what this runs."""
    cpu = platform.machine()
    with open("/proc/cpuinfo") as info:
        cpu = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    argv = ["findmnt", "-no", "FSTYPE", "-T", os.fspath(place())]
    filesystem = subprocess.run(argv, capture_output=True, check=False, text=True).stdout.strip()
    return f"{os.cpu_count()} cores ({cpu}), {memory / 1e9:.0f} GB of memory, {filesystem}, Linux {platform.release()}"


if __name__ == "__main__":
    sys.exit(main())
