"""`verify`, `scrub`, `repair`, `health`, `rebuild`, `stats`: the commands that look after a store."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from holdfast.cli.base import Size, command
from holdfast.cli.output import State, escape, fields, note, out, plural, requests_line, seconds, size
from holdfast.errors import IntegrityError, exit_code

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from holdfast.reports import Problem, VerifyReport

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
            state.answer(document, partial(_show, ref, report))
            if state.quiet and not state.json and not report.ok:
                out(str(name))
    return DAMAGED if damaged else 0


@command("scrub", example="holdfast scrub\nholdfast scrub --resume --rate 50MiB --max 10GiB")
@click.option("--resume", is_flag=True, help="Go on where the last scrub ended.")
@click.option("--rate", type=Size(), metavar="BYTES", help="Read at most so much a second (50MiB).")
@click.option("--max", "max_bytes", type=Size(), metavar="BYTES", help="Read at most so much in all.")
def scrub(state: State, resume: bool, rate: int | None, max_bytes: int | None) -> int:
    """Check everything at rest. Damage is listed; the exit code is then 5.

    What is damaged goes into quarantine: `repair` brings it back. After Ctrl-C, or --max, --resume goes on.
    """
    from holdfast.cli.progress import Bar
    from holdfast.errors import InvalidInput

    if rate == 0:
        raise InvalidInput(
            "--rate 0 would never end: give 1 and more, or no --rate to read as fast as it goes"
        )
    with state.open(reads=True) as store, Bar(state.quiet or state.json) as bar:
        report = store.scrub(progress=bar, resume=resume, bytes_per_second=rate, max_bytes=max_bytes)

    def show() -> None:
        _show("store", report, is_whole=report.complete)
        if not report.complete:
            done = f"{size(report.pass_bytes)} of {size(report.total_bytes)}"
            out(f"  {done} are checked, {plural(report.pass_problems, 'problem')} found; --resume goes on")
        if report.quarantined:
            out(
                f"  {plural(report.quarantined, 'record')} put into quarantine: `holdfast repair` brings them back"
            )
        if report.catalog_rebuilt:
            out("  the catalog said what is not stored, and was made anew")

    state.answer(report.to_dict(), show)
    if state.quiet and not state.json:
        for problem in report.problems:
            out(str(problem.hash or problem.path or problem.segment))
    return 0 if report.ok else DAMAGED


@command("repair", example="holdfast repair /mnt/backup/store\nholdfast repair model.safetensors")
@click.argument("sources", nargs=-1, metavar="[SOURCE]…")
@click.option("--give-up", is_flag=True, help="Let go of what no source has: it is gone for good then.")
@click.option("--yes", is_flag=True, help="Do not ask before --give-up.")
def repair(state: State, sources: tuple[str, ...], give_up: bool, yes: bool) -> int:
    """Bring back what `scrub` found damaged or missing.

    A SOURCE is another store, or a file or directory with the original bytes; only what is damaged is read from it,
    and verified. Without one, what follows from sound bytes is put right. The exit code is 5 while damage is left.
    """
    from holdfast.cli.progress import Bar
    from holdfast.errors import InvalidInput

    if give_up and not yes:
        if not sys.stdin.isatty():
            raise InvalidInput("--give-up lets damaged records go for good: say --yes")
        click.confirm("What no source has is gone for good then. Go on?", abort=True, err=True)
    with state.open() as store, Bar(state.quiet or state.json) as bar:
        report = store.repair(sources, give_up=give_up, progress=bar)

    def show() -> None:
        if report.ok and not report.repaired_count:
            out("nothing is known to be damaged (scrub looks)")
            return
        kinds: dict[tuple[str, str], int] = {}
        for one in report.repaired:
            kinds[one.what, one.source] = kinds.get((one.what, one.source), 0) + 1
        out(
            f"{plural(report.repaired_count, 'piece')} repaired, {size(report.fetched_bytes)} fetched,"
            f" in {seconds(report.seconds)}"
        )
        for (what, source), count in sorted(kinds.items()):
            out(f"  {count:,} × {what} from {escape(source)}")
        if not report.ok:
            out(f"{plural(report.missing_count, 'piece')} STILL DAMAGED OR MISSING: no source has them")
            show_problems(report.missing, report.missing_count)

    state.answer(report.to_dict(), show)
    if state.quiet and not state.json:
        for problem in report.missing:
            out(str(problem.hash or problem.segment))
    return 0 if report.ok else DAMAGED


@command("health", example="holdfast health || mail -s 'look at the store' me")
def health(state: State) -> int:
    """Say how the store is, and what to do about what is not well. The exit code is then 5."""
    with state.open(reads=True) as store:
        h = store.health()

    def show() -> None:
        def when(time: datetime | None) -> str:
            return "never, as far as is known" if time is None else f"{time:%Y-%m-%d %H:%M} UTC"

        under_way = ", one is under way" if h.scrub_under_way else ""
        fields(
            {
                "store": escape(state.location or ""),
                "state": "well" if h.ok else "NOT WELL",
                "scrubbed": when(h.scrubbed_at) + under_way,
                "collected": when(h.collected_at),
                "free": f"{size(h.free_bytes)} ({size(h.reserve_bytes)} should be)"
                if h.listed_at is None
                else None,
                "listed": None if h.listed_at is None else when(h.listed_at),
                "outboards": f"damaged {h.bad_outboards:,} times, done without" if h.bad_outboards else None,
                "missing": f"{plural(h.missing_outboards, 'outboard')} (made when read, or by scrub)"
                if h.missing_outboards
                else None,
                "foreign": f"{plural(h.foreign_objects, 'object')} (left alone)"
                if h.foreign_objects
                else None,
                "left out": f"{plural(h.unacknowledged, 'name')} that were never acknowledged"
                if h.unacknowledged
                else None,
                "catalog": "made from damaged storage: `holdfast rebuild`, once scrub finds nothing"
                if h.doubtful
                else None,
                "sessions": f"{plural(h.dead_sessions, 'dead one')} (harmless)" if h.dead_sessions else None,
            }
        )
        for one in h.ailments:
            out(f"  {escape(one.what)}")
            out(f"    → {escape(one.advice)}")

    state.answer(h.to_dict(), show)
    return 0 if h.ok else DAMAGED


def _show(what: str, report: VerifyReport, *, is_whole: bool = True) -> None:
    checked = f"{size(report.checked_bytes)} in {plural(report.checked_blobs, 'blob')}"
    rate = f", {size(int(report.checked_bytes / report.seconds))}/s" if report.seconds > 0.05 else ""
    took = f"{seconds(report.seconds)}{rate}"
    if report.ok:
        found = "sound" if is_whole else "nothing damaged so far, and NOT ALL OF IT WAS READ"
        out(f"{escape(what)}: {found} ({checked} checked in {took})")
        return
    count = max(report.problem_count, len(report.problems))
    out(f"{escape(what)}: DAMAGED, {plural(count, 'problem')} ({checked} checked in {took})")
    show_problems(report.problems, count)


def show_problems(problems: Iterable[Problem], count: int) -> None:
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


@command("rebuild", example="holdfast rebuild\nholdfast rebuild --deep")
@click.option(
    "--deep", is_flag=True, help="Read and verify every byte, too; make what outboards are missing."
)
@click.option("--resume", is_flag=True, help="With --deep: go on reading where the last one was interrupted.")
def rebuild(state: State, deep: bool, resume: bool) -> int:
    """Make the catalog anew from what is stored. Nothing is lost by it where that is sound: `scrub` and `repair` first.

    Of a bucket, sizes come from its listing, and objects of names are read; --deep reads all blobs, which costs as much
    as to fetch them. After Ctrl-C, --deep --resume goes on.
    """
    from holdfast.cli.progress import Bar
    from holdfast.errors import InvalidInput

    if resume and not deep:
        raise InvalidInput("--resume goes on with --deep; without it a rebuild begins anew")
    with state.open() as store, Bar(state.quiet or state.json) as bar:
        stats = store.rebuild(deep=deep, resume=resume, progress=bar)

    def show() -> None:
        fields(
            {
                "artifacts": f"{stats.artifacts:,}",
                "blobs": f"{stats.complete_blobs:,}",
                "partial blobs": f"{stats.partial_blobs:,}" if stats.partial_blobs else None,
                "chunks": f"{stats.chunks:,}" if stats.chunks else None,
                "tags": f"{stats.tags:,}" if stats.tags else None,
                "segments": f"{stats.segments:,}" if stats.segments else None,
                "copied": size(stats.copied_bytes) if stats.copied_bytes else None,
                "outboards": _made(stats.missing_outboards, deep=deep),
                "unacknowledged": f"{plural(stats.unacknowledged, 'name')} whose blob never came, left out"
                if stats.unacknowledged
                else None,
                "foreign": f"{plural(stats.foreign_objects, 'object')}, left alone"
                if stats.foreign_objects
                else None,
                "damaged": f"{stats.damaged:,}" if stats.damaged else None,
                "requests": requests_line(stats.requests),
                "took": seconds(stats.seconds),
            }
        )
        show_problems(stats.problems, len(stats.problems))

    state.answer(stats.to_dict(), show)
    if stats.damaged and state.quiet and not state.json:
        note(f"{plural(stats.damaged, 'damaged piece')} found; scrub says where")
    return DAMAGED if stats.damaged else 0


def _made(missing: int, *, deep: bool) -> str | None:
    if not missing:
        return None
    return (
        f"{missing:,} were missing, and are made" if deep else f"{missing:,} missing: made when they are read"
    )


@command("refresh", example="holdfast --store s3://bucket/prefix refresh")
def refresh(state: State) -> int:
    """Learn what other machines stored, changed and deleted in a bucket.

    Lists the bucket, a request for 1,000 objects, and reads the names that are new. A local store has nothing to learn.
    """
    from holdfast.cli.progress import Bar

    with state.open() as store, Bar(state.quiet or state.json) as bar:
        stats = store.refresh(progress=bar)

    def show() -> None:
        if stats.is_rebuilt:
            out("names are gone from the bucket: all that are left were read anew")
        fields(
            {
                "names read": f"{stats.names_read:,}",
                "blobs": f"{stats.blobs_found:,} new, {stats.blobs_gone:,} gone",
                "damaged": f"{stats.damaged:,}" if stats.damaged else None,
                "requests": requests_line(stats.requests),
                "took": seconds(stats.seconds),
            }
        )
        show_problems(stats.problems, stats.damaged)

    state.answer(stats.to_dict(), show)
    return DAMAGED if stats.damaged else 0


@command("stats", example="holdfast stats\nholdfast stats 0199c8f3\nholdfast stats --json | jq .disk_bytes")
@click.argument("ref", required=False, metavar="[REF]")
def stats(state: State, ref: str | None) -> None:
    """Show the store in figures; or one artifact: how much of it is shared, and with whom."""
    if ref is not None:
        _artifact_stats(state, ref)
        return
    with state.open(reads=True) as store:
        s = store.stats()

    def show() -> None:
        deleted = f" (and {s.deleted_artifacts:,} deleted)" if s.deleted_artifacts else ""
        far = bool(s.requests)  # a bucket has these, and neither chunks nor segments
        if far:
            saved = (
                f"{s.deduplication_ratio:.2f} × by equal blobs; pieces are not shared, nothing is compressed"
            )
        else:
            saved = (
                f"{s.deduplication_ratio:.2f} × by deduplication, {s.compression_ratio:.2f} × by compression"
            )
        fields(
            {
                "store": escape(state.location or ""),
                "artifacts": f"{s.artifacts:,}{deleted}",
                "blobs": f"{s.blobs:,} in {plural(s.chunks, 'chunk')}" if not far else f"{s.blobs:,}",
                "tags": f"{s.tags:,}" if s.tags else None,
                "content": f"{size(s.logical_bytes)}, of which {size(s.unique_bytes)} distinct",
                "smaller": saved,
                "orphans": f"{plural(s.orphan_blobs, 'blob')} that nothing names, {size(s.orphan_bytes)}"
                if s.orphan_blobs
                else None,
                "damaged": plural(s.quarantined, "record") if s.quarantined else None,
                "on disk": f"{size(s.disk_bytes)} in {plural(s.segments, 'segment')}, "
                f"{size(s.catalog_bytes)} of it the catalog"
                if not far
                else None,
                "in the bucket": f"{size(s.disk_bytes)} of blobs and outboards" if far else None,
                "catalog": size(s.catalog_bytes) if far else None,
                "requests": requests_line(s.requests),
            }
        )

    state.answer(s.to_dict(), show)


def _artifact_stats(state: State, ref: str) -> None:
    from holdfast.cli.refs import resolve
    from holdfast.errors import InvalidInput
    from holdfast.types import Hash

    with state.open(reads=True) as store:
        what = resolve(store, ref)
        if isinstance(what, Hash):
            raise InvalidInput(
                f"stats are of an artifact, and {ref} is a hash: `holdfast blob info` tells of it"
            )
        s = store.stats(what.id)

    def show() -> None:
        fields(
            {
                "artifact": s.id,
                "content": f"{size(s.size_bytes)} in {plural(s.chunks, 'chunk')}, {size(s.stored_bytes)} on disk",
                "shared": f"{size(s.shared_bytes)}; {size(s.own_bytes)} are its own",
            }
        )
        for one in s.shared_with:
            out(f"  {one.id}  {size(one.shared_bytes)}")

    state.answer(s.to_dict(), show)


COMMANDS: tuple[click.Command, ...] = (verify, scrub, repair, health, refresh, rebuild, stats)
