"""`compact`: giving the room back of what nothing needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from holdfast.cli.base import command
from holdfast.cli.care import DAMAGED, show_problems
from holdfast.cli.output import State, escape, out, plural, requests_line, seconds, size

if TYPE_CHECKING:
    from holdfast.reports import CompactReport

SHOWN_KEPT = 20


@command("compact", example="holdfast compact --dry-run\nholdfast compact --min-dead-share 0.3")
@click.option(
    "--min-dead-share",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="SHARE",
    help="Only rewrite segments of which at least this share (0 to 1) is of no use. Higher: less work, less room.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be rewritten, and how much that frees.")
def compact(state: State, min_dead_share: float, dry_run: bool) -> int:
    """Give room back: rewrite segments without what was deleted and collected. Of a bucket it gathers small objects of
    names into fewer.

    What is live is checked, copied and safe on disk before its old segment goes. On a full disk the room that is kept
    in reserve is used. The exit code is 5 when damage was met: those segments stay as they are.
    """
    from holdfast.cli.progress import Bar

    with state.open(use_reserve=not dry_run) as store, Bar(state.quiet or state.json) as bar:
        report = store.compact(min_dead_share, bar, dry_run=dry_run)
    state.answer(report.to_dict(), lambda: _show(report))
    if state.quiet and not state.json:
        for segment in report.segments:
            out(str(segment))
    return DAMAGED if report.problems else 0


def _show(report: CompactReport) -> None:
    if report.requests:
        _show_gathered(report)
        return
    count = plural(len(report.segments), "segment")
    if not report.segments:
        out(
            "nothing to do: no segment has that much to give back" if not report.kept else "nothing was freed"
        )
    elif report.dry_run:
        out(
            f"would rewrite {count} ({size(report.size_bytes)}): {size(report.copied_bytes)} are live and would be"
            f" copied, about {size(report.freed_bytes)} freed"
        )
    else:
        copied = f"{size(report.copied_bytes)} copied" if report.copied_bytes else "nothing in them was live"
        out(f"{size(report.freed_bytes)} freed: {count} rewritten, {copied}, in {seconds(report.seconds)}")
    if report.tombstones_dropped:
        out(f"{plural(report.tombstones_dropped, 'note')} of deletions that hide nothing any more forgotten")
    if report.reserve_used:
        out("the disk was full: the reserve was used, and made again as far as there is room")
    for shown, kept in enumerate(report.kept):
        if shown == SHOWN_KEPT:
            out(f"  … and {len(report.kept) - shown:,} more segments kept (--json lists them)")
            break
        out(f"  segment {kept.segment} stays: {escape(kept.reason)}")
    show_problems(report.problems, len(report.problems))


def _show_gathered(report: CompactReport) -> None:
    """Say what became of a bucket's objects of names."""
    if report.names_gathered:
        verb = "would gather" if report.dry_run else "gathered"
        less = f", {size(report.freed_bytes)} less" if report.freed_bytes else ""
        out(
            f"{verb} {plural(report.names_gathered, 'object')} of names into fewer{less};"
            " blobs stay where they are"
        )
    else:
        out(
            "nothing to do: the names of this bucket stand in as few objects as they can; blobs stay where they are"
        )
    out(f"the bucket was asked {requests_line(report.requests)}")


COMMANDS: tuple[click.Command, ...] = (compact,)
