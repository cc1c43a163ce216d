"""`gc` and `why`: giving back what nothing keeps, and saying what keeps something."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from holdfast.cli.base import command
from holdfast.cli.output import State, escape, note, out, plural, size, when

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.reports import Chain, Forecast, GcReport
    from holdfast.store import Store
    from holdfast.types import Progress

SHOWN = 20
SUMMED = 10_000


@command("gc", example="holdfast gc\nholdfast gc --dry-run\nholdfast gc --min-age 0")
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why.")
@click.option(
    "--min-age",
    "min_age_seconds",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="What was deleted longer ago can no longer be restored.",
)
@click.option(
    "--max-batches", type=click.IntRange(min=1), metavar="N", help="Do a part; the next call goes on."
)
def gc(state: State, dry_run: bool, min_age_seconds: float | None, max_batches: int | None) -> None:
    """Give back what nothing keeps any more.

    Artifacts that were deleted before the undo window ([gc] min_age_seconds, 24 hours) go for good.
    """
    from holdfast.cli.progress import Bar

    with state.open(reads=dry_run, use_reserve=not dry_run) as store, Bar(state.quiet or state.json) as bar:

        def hear(progress: Progress) -> None:
            if progress.phase == "price":
                note(f"the changes take about {_requests(progress.requests)}")
            else:
                bar(progress)

        report = store.gc(
            dry_run=dry_run, min_age_seconds=min_age_seconds, max_batches=max_batches, progress=hear
        )
        restorable = None if state.json or state.quiet or dry_run else _restorable(store)

    def show() -> None:
        _show(report)
        if restorable is not None:
            out(restorable)

    state.answer(report.to_dict(), show)
    if state.quiet and not state.json:
        for hash_ in report.blobs:
            out(str(hash_))


def _restorable(store: Store) -> str | None:
    """Say what was deleted and is still within its undo window."""
    count = store.count(deleted=True)
    if not count:
        return None
    total = ""
    if count <= SUMMED:
        total = f", {size(sum(artifact.size_bytes for artifact in store.find(deleted=True)))},"
    return f"{plural(count, 'deleted artifact')}{total} can still be restored (`holdfast ls --deleted`)"


def _requests(counts: Mapping[str, int]) -> str:
    """Say what a bucket is asked."""
    kinds = ("list", "get", "head", "put", "delete")
    asked = [f"{counts[kind]:,} {kind.upper()}" for kind in kinds if counts.get(kind)]
    return ", ".join(asked) or "nothing"


def _show(report: GcReport) -> None:
    gone = f"{plural(report.dropped_blobs, 'blob')} and {plural(report.dropped_payloads, 'piece')}"
    of_artifacts = plural(report.forgotten_artifacts, "deleted artifact")
    if report.dry_run:
        out(f"would drop {gone} of {of_artifacts}; {size(report.freed_bytes)} would be free")
        for hash_, why_ in list(report.reasons.items())[:SHOWN]:
            out(f"  {hash_}  {escape(why_)}")
        if report.dropped_blobs > SHOWN:
            out(f"  … and {report.dropped_blobs - SHOWN:,} more (--json lists them)")
        if report.requests:
            price = _requests(report.price)
            out(f"the bucket was asked {_requests(report.requests)}; the changes would take about {price}")
        return
    out(f"dropped {gone} of {of_artifacts}; {size(report.freed_bytes)} free of use")
    if report.aborted_uploads:
        out(f"aborted {plural(report.aborted_uploads, 'upload')} in parts that nobody ended")
    if report.requests:
        out(f"the bucket was asked {_requests(report.requests)}")
    if report.compacted is not None and report.compacted.segments:
        out(
            f"gave back {size(report.compacted.freed_bytes)} ({plural(len(report.compacted.segments), 'segment')})"
        )
    for waiting in report.waits_for:
        since = f" since {when(waiting.since)}" if waiting.since else ""
        note(
            f"waits for process {waiting.pid} on {escape(waiting.host)}, which is busy{since}: the next gc goes on"
        )
    if not report.complete and not report.waits_for:
        note("this was a part: the next gc goes on")


@command("why", example="holdfast why 3f9c…\nholdfast why tag:models/latest")
@click.argument("ref", metavar="HASH")
def why(state: State, ref: str) -> None:
    """Show what keeps a blob or a chunk: each chain from an artifact, tag or lease down to it."""
    from holdfast.cli.refs import resolve_hash

    with state.open(reads=True) as store:
        chains = store.why(resolve_hash(store, ref))
    if not chains and not state.json:
        note("nothing keeps it: the next gc takes it, once its undo window is over")
    for chain in chains:
        state.answer(chain.to_dict(), partial(_show_chain, chain), quiet=escape(chain.root))


def _show_chain(chain: Chain) -> None:
    out(escape(chain.root))
    for depth, hash_ in enumerate(chain.path, 1):
        out(f"{'  ' * depth}{hash_}")


def outlook(forecast: Forecast | None) -> str:
    """Say what deleting gives back, for people."""
    if forecast is None:
        return ""
    hours = forecast.min_age_seconds / 3600
    later = f" after {hours:g} h" if hours else " with the next gc"
    shared = f"; {size(forecast.shared_bytes)} are shared and stay" if forecast.shared_bytes else ""
    return f"{size(forecast.freed_bytes)} will be free{later}{shared}"


COMMANDS: tuple[click.Command, ...] = (gc, why)
