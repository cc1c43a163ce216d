"""How things are measured: in processes of their own, in turns, each beside the others of its row.

A round runs every contestant once; the next round begins with the next one, so that each stands in each
place. Ratios are medians of the ratios round by round: a machine that changes its speed changes both sides.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from benches.corpora import place
from benches.peak import peak_bytes

Run = Callable[[], "Sample"]


class Sample(NamedTuple):
    """One run of one contestant. `peak_bytes` is resident memory above a bare interpreter (of a command: all)."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    counts: dict[str, Any]


class Series(NamedTuple):
    """All runs of one contestant."""

    samples: list[Sample]

    @property
    def seconds(self) -> float:
        return statistics.median(sample.seconds for sample in self.samples)

    @property
    def cpu_seconds(self) -> float:
        return statistics.median(sample.cpu_seconds for sample in self.samples)

    @property
    def peak_bytes(self) -> int:
        return max(sample.peak_bytes for sample in self.samples)

    @property
    def counts(self) -> dict[str, Any]:
        return self.samples[-1].counts

    def faster_than(self, other: Series) -> float:
        """How many times as fast, as the median over the rounds."""
        return statistics.median(
            b.seconds / a.seconds for a, b in zip(self.samples, other.samples, strict=True)
        )


class Line(msgspec.Struct, frozen=True):
    """What one contestant did."""

    who: str
    figure: str
    spread: str = ""
    beside: str = ""
    cpu: str = ""
    memory: str = ""
    proof: str = ""


class Goal(msgspec.Struct, frozen=True):
    """A figure beside what was aimed at."""

    text: str
    got: str
    reached: bool


class Report(msgspec.Struct, frozen=True):
    """One row of the table."""

    title: str
    lines: list[Line]
    goals: list[Goal]
    corpus: str
    note: str = ""
    runs: int = 1


class Bench:
    """What a row is given: how often to run, where to work, how large the large things are."""

    def __init__(self, runs: int, stream_bytes: int, chunks: int) -> None:
        self.runs = runs
        self.stream_bytes = stream_bytes
        self.chunks = chunks
        self.scratch = place() / "scratch"
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()

    def path(self, name: str) -> Path:
        """Give a path to work at; what was there is removed."""
        path = self.scratch / name
        remove(path)
        return path

    def race(self, contestants: Mapping[str, Run], runs: int | None = None) -> dict[str, Series]:
        """Run all in turns."""
        names = list(contestants)
        found: dict[str, list[Sample]] = {name: [] for name in names}
        for number in range(runs or self.runs):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(contestants[name]())
        return {name: Series(samples) for name, samples in found.items()}

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a directory, and wait until the disk has forgotten it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    flush(path.parent)


def flush(directory: Path) -> None:
    """Wait for what is still on its way to the disk, so that nobody pays for what came before."""
    subprocess.run(["sync", "-f", str(directory)], check=True)


def command(
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
) -> Sample:
    """Time a command from outside."""
    start = time.perf_counter()
    with subprocess.Popen(
        [os.fspath(word) for word in argv],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{argv} failed: {said.decode(errors='replace')[-2000:]}")
    peak = used.ru_maxrss * 1024  # never below what this process had when it forked: then it says nothing
    return Sample(seconds, used.ru_utime + used.ru_stime, peak if peak > 1.1 * peak_bytes() else 0, {})


def job(name: str, **arguments: Any) -> Sample:
    """Run a function of `benches.jobs` in a process of its own; it says what is timed."""
    argv = [sys.executable, "-m", "benches.jobs", name, json.dumps(arguments, default=os.fspath)]
    done = subprocess.run(argv, capture_output=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr.decode(errors='replace')[-4000:]}")
    sample = Sample(**json.loads(done.stdout.splitlines()[-1]))
    return sample._replace(peak_bytes=sample.peak_bytes - bare_interpreter_bytes())


@cache
def bare_interpreter_bytes() -> int:
    """Give what an interpreter takes that does nothing."""
    script = "import benches.peak as p; print(p.peak_bytes())"
    root = Path(__file__).parents[1]
    return int(
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, cwd=root).stdout
    )


# -- how figures are written


def line(
    who: str,
    series: Series,
    figure: Callable[[float], str],
    *,
    beside: Mapping[str, Series] | None = None,
    proof: str = "",
) -> Line:
    """Write one contestant's series; `figure` writes a number of seconds as a rate."""
    slowest, fastest = (pick(sample.seconds for sample in series.samples) for pick in (max, min))
    ratios = [f"{series.faster_than(other):.2f} × {name}" for name, other in (beside or {}).items()]
    return Line(
        who,
        figure(series.seconds),
        f"{figure(slowest)} to {figure(fastest)}" if len(series.samples) > 1 else "one run",
        ", ".join(ratios),
        f"{series.cpu_seconds:.2f} s" if series.cpu_seconds >= 0.1 else f"{series.cpu_seconds * 1000:.0f} ms",
        mib(series.peak_bytes) if series.peak_bytes else "",
        proof,
    )


def at_least(text: str, value: float, wanted: float, unit: str = "") -> Goal:
    return Goal(text, f"{value:,.2f}{unit}" if value < 1000 else f"{value:,.0f}{unit}", value >= wanted)


def at_most(text: str, value: float, wanted: float, unit: str = "") -> Goal:
    return Goal(text, f"{value:,.2f}{unit}" if value < 100 else f"{value:,.0f}{unit}", value <= wanted)


def memory_goal(*series: Series) -> Goal:
    """The goal that every job has."""
    return at_most(
        "≤ 256 MiB above the interpreter", max(one.peak_bytes for one in series) / 2**20, 256, " MiB"
    )


def rate(size_bytes: int) -> Callable[[float], str]:
    return lambda seconds: f"{size_bytes / seconds / 1e9:.2f} GB/s"


def per_second(count: int, what: str) -> Callable[[float], str]:
    return lambda seconds: f"{count / seconds:,.0f} {what}/s"


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"


def stored(counts: Mapping[str, Any]) -> str:
    """Write what the catalog says was done."""
    text = f"{counts['artifacts']:,} artifacts, {counts['blobs']:,} blobs, {counts['chunks']:,} chunks"
    return f"{text}, {counts['unique_bytes']:,} bytes in {counts['stored_bytes']:,}"
