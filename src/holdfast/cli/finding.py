"""`find`, `count`, `edit`: the commands that look artifacts up by what they bear, and change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from holdfast.cli.base import Size, Time, command, metadata
from holdfast.cli.output import State, display_name, escape, json_line, out, plural
from holdfast.errors import InvalidInput

_FILTERS: tuple[Any, ...] = (
    click.option("--tag", multiple=True, metavar="TAG", help="It has this tag; repeated: all of them."),
    click.option("--any-tag", multiple=True, metavar="TAG", help="It has at least one of these; repeat it."),
    click.option("--link", multiple=True, metavar="NAME", help="It has this link; repeated: all of them."),
    click.option("--any-link", multiple=True, metavar="NAME", help="It has at least one of these; repeat it."),
    click.option("--prefix", metavar="TEXT", help="A tag begins with it."),
    click.option("--type", "content_type", metavar="TYPE", help="The content type, as in image/png or 'image/*'."),
    click.option("--name", "filename", metavar="PATTERN", help="The file name, as in '*.png'."),
    click.option("--by", "created_by", metavar="WHO", help="Who stored it."),
    click.option("--hash", metavar="HASH", help="Its blob has this hash."),
    click.option("--since", "created_after", type=Time(), metavar="TIME", help="Stored from then on: 2026-11-21, 2d."),
    click.option("--until", "created_before", type=Time(), metavar="TIME", help="Stored before that."),
    click.option("--changed-since", "modified_after", type=Time(), metavar="TIME", help="Changed then or later."),
    click.option("--changed-until", "modified_before", type=Time(), metavar="TIME", help="Last changed before that."),
    click.option("--min-size", "min_size_bytes", type=Size(), metavar="SIZE", help="At least as large, as in 10MiB."),
    click.option("--max-size", "max_size_bytes", type=Size(), metavar="SIZE", help="At most as large."),
    click.option("--deleted", is_flag=True, help="Among what can still be restored."),
)  # fmt: skip


def _filtered(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_FILTERS):
        function = option(function)
    return function


def _given(filters: dict[str, Any]) -> dict[str, Any]:
    from holdfast.types import Hash

    if filters["hash"] is not None:
        filters["hash"] = Hash.parse(filters["hash"])
    return {
        name: value
        for name, value in filters.items()
        if value is not None and value != () and value is not False
    }


@command(
    "find",
    example="""holdfast find --tag prod --type 'image/*'
    holdfast find --any-tag train --any-tag test --since 7d
    holdfast find --link run:42 -q | xargs holdfast rm --dry-run""",
)
@_filtered
@click.option("-n", "--limit", type=click.IntRange(0), metavar="COUNT", help="Only the newest COUNT.")
@click.option("--after", metavar="REF", help="Go on behind this artifact.")
def find(state: State, limit: int | None, after: str | None, **filters: Any) -> None:
    """List the artifacts for which all that is given holds, newest first."""
    from holdfast.cli.refs import resolve_artifact

    with state.open(reads=True) as store:
        start = None
        if after is not None:
            start = resolve_artifact(store, after, deleted=filters["deleted"]).id
        state.artifacts(store.find(**_given(filters), limit=limit, after=start))


@command("count", example="holdfast count --tag prod\nholdfast count --each tag --prefix team/")
@_filtered
@click.option("--each", type=click.Choice(["tag", "link"]), help="How many bear each tag, or link, in use.")
def count(state: State, each: str | None, **filters: Any) -> None:
    """Count artifacts; the options are those of `find`."""
    given = _given(filters)
    with state.open(reads=True) as store:
        if each is None:
            number = store.count(**given)
            state.answer({"artifacts": number}, lambda: out(plural(number, "artifact")), quiet=str(number))
            return
        if given.keys() - {"prefix"}:
            raise InvalidInput("--each goes with --prefix alone")
        names = store.tags_in_use if each == "tag" else store.links_in_use
        for one in names(given.get("prefix", "")):
            if state.json:
                json_line(one.to_dict())
            elif state.quiet:
                out(escape(one.name))
            else:
                out(f"{one.artifacts}\t{escape(one.name)}")


CLEARED = {"name": "filename", "type": "content_type", "by": "created_by", "metadata": "metadata"}


@command(
    "edit",
    example="""holdfast edit 0199c8f3 --tag prod --untag test --meta lr=3e-4
    holdfast edit 0199c8f3 --name model.bin --clear type""",
)
@click.argument("ref")
@click.option("--name", "filename", metavar="NAME", help="The file name.")
@click.option("--type", "content_type", metavar="TYPE", help="The content type.")
@click.option("--by", "created_by", metavar="WHO", help="Who stored it.")
@click.option("--tag", "add_tags", multiple=True, metavar="TAG", help="Add a tag.")
@click.option("--untag", "remove_tags", multiple=True, metavar="TAG", help="Remove a tag.")
@click.option("--link", "add_links", multiple=True, metavar="NAME", help="Add a link.")
@click.option("--unlink", "remove_links", multiple=True, metavar="NAME", help="Remove a link.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Set a key of the metadata.")
@click.option("--unset", "remove_metadata", multiple=True, metavar="KEY", help="Drop a key of the metadata.")
@click.option("--require", multiple=True, metavar="REF", help="Keep this artifact or blob alive with it.")
@click.option("--unrequire", multiple=True, metavar="REF", help="Keep it no more.")
@click.option("--clear", multiple=True, type=click.Choice(list(CLEARED)), help="Empty a field.")
@click.option("--if-revision", type=int, metavar="NUMBER", help="Only if it is still at this revision.")
def edit(
    state: State,
    ref: str,
    meta: tuple[str, ...],
    require: tuple[str, ...],
    unrequire: tuple[str, ...],
    clear: tuple[str, ...],
    if_revision: int | None,
    **change: Any,
) -> None:
    """Change what is said about an artifact, in one step. Most options may be repeated."""
    from holdfast.cli.refs import resolve, resolve_artifact

    change = {name: value for name, value in change.items() if value is not None}
    for name in clear:
        if CLEARED[name] in change:
            raise InvalidInput(f"--clear {name} and --{name} contradict each other")
        change[CLEARED[name]] = None
    with state.open() as store:
        before = resolve_artifact(store, ref)
        after = store.update(
            before.id,
            add_metadata=metadata(meta),
            add_requires=[resolve(store, one) for one in require],
            remove_requires=[_required(store, one) for one in unrequire],
            if_revision=if_revision,
            **change,
        )
        verb = "unchanged" if after.revision == before.revision else "changed"
        line = f"{verb} {after.id}  revision {after.revision}  {escape(display_name(after))}"
        state.answer(after.to_dict(), lambda: out(line), quiet=after.id)


def _required(store: Any, text: str) -> Any:
    """Give what is not to be required any more, which need not be here."""
    from holdfast.cli.refs import resolve
    from holdfast.errors import NotFound

    try:
        return resolve(store, text)
    except NotFound:
        return text


COMMANDS: tuple[click.Command, ...] = (find, count, edit)
