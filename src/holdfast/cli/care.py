"""`verify`, `scrub`, `rebuild`, `stats`: the commands that look after a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from holdfast.cli.base import command
from holdfast.cli.output import State, escape, fields, note, out, plural, seconds, size
from holdfast.errors import IntegrityError, exit_code

if TYPE_CHECKING:
    from collections.abc import Iterable

    from holdfast.types import Problem, VerifyReport

SHOWN_PROBLEMS = 20
DAMAGED = exit_code(IntegrityError(""))


@command("verify", example="holdfast verify 0199c8f3")
@click.argument("refs", nargs=-1, required=True, metavar="REF…")
def verify(state: State, refs: tuple[str, ...]) -> int:
    """Read artifacts or blobs and check every byte. Damage is listed; the exit code is then 5."""
    from holdfast.cli.progress import Bar
    from holdfast.cli.refs import resolve
    from holdfast.types import Hash

    damaged = False
    with state.open(reads=True) as store, Bar(state.quiet or state.json) as bar:
        found = [resolve(store, ref) for ref in refs]
        for ref, what in zip(refs, found, strict=True):
            name = what if isinstance(what, Hash) else what.id
            report = store.verify(name, progress=bar)
            damaged = damaged or not report.ok
            document = {"ref": str(name), **report.to_dict()}
            state.answer(document, lambda ref=ref, report=report: _show(ref, report))  # type: ignore[misc]
            if state.quiet and not state.json and not report.ok:
                out(str(name))
    return DAMAGED if damaged else 0


@command("scrub", example="holdfast scrub\nholdfast scrub --json | jq .problems")
def scrub(state: State) -> int:
    """Check everything at rest. Damage is listed; the exit code is then 5."""
    from holdfast.cli.progress import Bar

    with state.open(reads=True) as store, Bar(state.quiet or state.json) as bar:
        report = store.scrub(progress=bar)
    state.answer(report.to_dict(), lambda: _show("store", report))
    if state.quiet and not state.json:
        for problem in report.problems:
            out(str(problem.hash or problem.path or problem.segment))
    return 0 if report.ok else DAMAGED


def _show(what: str, report: VerifyReport) -> None:
    checked = f"{size(report.checked_bytes)} in {plural(report.checked_blobs, 'blob')}"
    rate = f", {size(int(report.checked_bytes / report.seconds))}/s" if report.seconds > 0.05 else ""
    took = f"{seconds(report.seconds)}{rate}"
    if report.ok:
        out(f"{escape(what)}: sound ({checked} checked in {took})")
        return
    count = max(report.problem_count, len(report.problems))
    out(f"{escape(what)}: DAMAGED, {plural(count, 'problem')} ({checked} checked in {took})")
    _problems(report.problems, count)


def _problems(problems: Iterable[Problem], count: int) -> None:
    for shown, problem in enumerate(problems):
        if shown == SHOWN_PROBLEMS:
            out(f"  … and {count - shown:,} more (--json lists them)")
            return
        place = [f"blake3:{problem.hash}"] if problem.hash else []
        if problem.path:
            place.append(escape(problem.path))
        elif problem.segment is not None:
            place.append(f"segment {problem.segment}")
        if problem.offset_bytes is not None:
            place.append(f"at byte {problem.offset_bytes:,}")
        out(f"  {problem.kind}: {escape(problem.message)}")
        if place:
            out(f"    {', '.join(place)}")


@command("rebuild", example="holdfast rebuild")
def rebuild(state: State) -> int:
    """Make the catalog anew from what is stored. Nothing is lost by it."""
    from holdfast.cli.progress import Bar

    with state.open() as store, Bar(state.quiet or state.json) as bar:
        stats = store.rebuild(progress=bar)

    def show() -> None:
        fields(
            {
                "artifacts": f"{stats.artifacts:,}",
                "blobs": f"{stats.complete_blobs:,}",
                "partial blobs": f"{stats.partial_blobs:,}" if stats.partial_blobs else None,
                "chunks": f"{stats.chunks:,}",
                "tags": f"{stats.tags:,}" if stats.tags else None,
                "segments": f"{stats.segments:,}",
                "copied": size(stats.copied_bytes) if stats.copied_bytes else None,
                "damaged": f"{stats.damaged:,}" if stats.damaged else None,
                "took": seconds(stats.seconds),
            }
        )
        _problems(stats.problems, len(stats.problems))

    state.answer(stats.to_dict(), show)
    if stats.damaged and state.quiet and not state.json:
        note(f"{plural(stats.damaged, 'damaged piece')} found; scrub says where")
    return DAMAGED if stats.damaged else 0


@command("stats", example="holdfast stats\nholdfast stats --json | jq .disk_bytes")
def stats(state: State) -> None:
    """Show the store in figures."""
    with state.open(reads=True) as store:
        s = store.stats()

    def show() -> None:
        deleted = f" (and {s.deleted_artifacts:,} deleted)" if s.deleted_artifacts else ""
        saved = f"{s.deduplication_ratio:.2f} × by deduplication, {s.compression_ratio:.2f} × by compression"
        fields(
            {
                "store": escape(state.location or ""),
                "artifacts": f"{s.artifacts:,}{deleted}",
                "blobs": f"{s.blobs:,} in {plural(s.chunks, 'chunk')}",
                "tags": f"{s.tags:,}" if s.tags else None,
                "content": f"{size(s.logical_bytes)}, of which {size(s.unique_bytes)} distinct",
                "smaller": saved,
                "on disk": f"{size(s.disk_bytes)} in {plural(s.segments, 'segment')}, "
                f"{size(s.catalog_bytes)} of it the catalog",
            }
        )

    state.answer(s.to_dict(), show)


COMMANDS: tuple[click.Command, ...] = (verify, scrub, rebuild, stats)
