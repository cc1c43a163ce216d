"""`init`, `put`, `rm`, `restore`: the commands that change a store."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.cli.base import Size, command, metadata
from holdfast.cli.collecting import outlook
from holdfast.cli.output import State, confirm, display_name, escape, note, out, plural, size
from holdfast.errors import InvalidInput, PermissionDenied, SourceNotFound

if TYPE_CHECKING:
    from holdfast.reports import Forecast, TreeReport
    from holdfast.store import Store
    from holdfast.types import Artifact


@command(
    "init",
    example="holdfast init ./store\nholdfast init ./models --chunking fixed --chunk-size 1MiB\nholdfast init s3://bucket/prefix",
)
@click.argument("location", required=False)
@click.option(
    "--chunking", type=click.Choice(["fastcdc", "fixed", "whole"]), help="How blobs are cut into pieces."
)
@click.option(
    "--chunk-size", "chunk_size_bytes", type=Size(), metavar="SIZE", help="The average piece, as in 64KiB."
)
@click.option("--compression", type=click.Choice(["none", "zstd"]), help="Whether pieces are compressed.")
def init(state: State, location: str | None, **options: Any) -> None:
    """Make a store. Chunking and compression are fixed from then on."""
    import holdfast
    from holdfast.backend.objects.place import is_object_location

    config = state.config()
    if location is None:
        place = state.locate(config)
    else:
        place = location
        if not place:
            raise InvalidInput("LOCATION is empty (a variable that is not set?)")
        if state.store is not None and os.path.abspath(state.store) != os.path.abspath(place):
            raise InvalidInput(f"--store {state.store} and LOCATION {place} are two places: give one of them")
    state.location = place
    if "://" not in place:
        os.makedirs(os.path.dirname(os.path.abspath(place)), exist_ok=True)
    if not is_object_location(place):  # an object store has nothing of what [log] says
        for name in options:
            if options[name] is None:
                options[name] = getattr(config.log, name)
    given = {name: value for name, value in options.items() if value is not None}
    with holdfast.create(place, config=config, **given):
        pass
    shown = os.path.abspath(place) if "://" not in place else place
    state.answer(
        {"location": shown, **given}, lambda: out(f"made a store at {escape(shown)}"), quiet=escape(shown)
    )


@command(
    "put",
    example="""holdfast put model.safetensors --tag prod --meta lr=3e-4
    holdfast put -r photos/ --exclude '*.tmp'
    pg_dump app | holdfast put - --name app.sql""",
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("-r", "--recursive", is_flag=True, help="Store directories as trees.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A label; may be repeated.")
@click.option(
    "--link", "links", multiple=True, metavar="NAME", help="A name of something elsewhere; may be repeated."
)
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Metadata; may be repeated.")
@click.option("--type", "content_type", metavar="TYPE", help="The content type, as in image/png.")
@click.option("--name", "filename", metavar="NAME", help="The file name to keep (one PATH only).")
@click.option("--by", "created_by", metavar="WHO", help="Who stores it.")
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="With -r: leave out what matches; may be repeated."
)
@click.option("--strict", is_flag=True, help="With -r: what cannot be read is an error, not left out.")
def put(
    state: State,
    paths: tuple[str, ...],
    recursive: bool,
    tags: tuple[str, ...],
    links: tuple[str, ...],
    meta: tuple[str, ...],
    content_type: str | None,
    filename: str | None,
    created_by: str | None,
    exclude: tuple[str, ...],
    strict: bool,
) -> None:
    """Store files, directories or standard input.

    What was stored is durable when the command ends. Several files are one acknowledgement: all are stored,
    or none.
    """
    if filename is not None and len(paths) > 1:
        raise InvalidInput("--name goes with one PATH")
    if paths.count("-") > 1:
        raise InvalidInput("standard input (-) can be stored once")
    trees = {path for path in paths if path != "-" and _is_tree(path, recursive)}
    common: dict[str, Any] = {
        "tags": tags, "links": links, "metadata": metadata(meta), "created_by": created_by
    }  # fmt: skip
    stored: dict[int, Artifact] = {}
    left_out = 0

    def on_report(report: TreeReport) -> None:
        nonlocal left_out
        left_out += len(report.skipped)

    from holdfast.cli.progress import Bar

    with state.open(create_default=True) as store, Bar(state.quiet or state.json) as bar:
        files = [i for i, path in enumerate(paths) if path not in trees]
        sources = [source_of(paths[i], filename) for i in files]
        if len(files) == 1:
            source, name = sources[0]
            artifact = store.put(source, filename=name, content_type=content_type, progress=bar, **common)
            stored[files[0]] = artifact
        elif files:
            from holdfast.types import PutItem

            items = [PutItem(source, filename=name) for source, name in sources]
            artifacts = store.put_many(items, content_type=content_type, progress=bar, **common)
            stored.update(zip(files, artifacts, strict=True))
        for i, path in enumerate(paths):
            if path in trees:
                name = filename or os.path.basename(os.path.abspath(path)) or None
                stored[i] = store.put_tree(
                    path,
                    filename=name,
                    exclude=exclude,
                    strict=strict,
                    on_report=on_report,
                    progress=bar,
                    **common,
                )
    state.artifacts(stored[i] for i in range(len(paths)))
    if left_out:
        note(f"warning: {plural(left_out, 'file')} left out (--strict makes that an error)")


def _is_tree(path: str, recursive: bool) -> bool:
    """Whether a path is a directory; what is not there is refused before anything is stored."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceNotFound(f"{path}: there is no such file or directory", path=path) from error
    except PermissionError as error:
        raise PermissionDenied(f"{path}: no permission to read it", path=path, errno=error.errno) from error
    except ValueError as error:  # a null byte
        raise InvalidInput(f"{path!r}: not a path", path=path) from error
    if not stat.S_ISDIR(mode):
        return False
    if not recursive:
        raise InvalidInput(f"{path} is a directory: -r stores it as a tree", path=path)
    return True


def source_of(path: str, filename: str | None) -> tuple[Any, str | None]:
    """Give (what to put, its name) for a PATH."""
    if path != "-":
        return path, filename or os.path.basename(path)
    if sys.stdin is None:
        raise InvalidInput("there is no standard input")
    if sys.stdin.isatty():
        note("reading standard input; Ctrl-D ends it", plain=True)
    return sys.stdin.buffer, filename


@command("rm", example="holdfast rm 0199c8f3\nholdfast ls -q | head -n 3 | xargs holdfast rm --dry-run")
@click.argument("refs", nargs=-1, required=True, metavar="REF…")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Delete even what other artifacts require.")
def rm(state: State, refs: tuple[str, ...], dry_run: bool, yes: bool, force: bool) -> int:
    """Delete artifacts, all or none. `restore` brings them back, until they are collected."""
    from holdfast.cli.refs import resolve_artifact

    with state.open(use_reserve=not dry_run) as store:
        doomed = list({a.id: a for a in (resolve_artifact(store, ref) for ref in refs)}.values())
        decided = yes and not dry_run
        skipped = state.quiet or (decided and store.stats().chunks > MANY_CHUNKS)
        forecast = None if skipped else _forecast(store, doomed)
        question = f"delete {_named(doomed)}? {outlook(forecast)}".rstrip()
        if not dry_run and not confirm(question, yes):
            note("nothing was deleted")
            return 1
        if not dry_run:
            store.delete(*(artifact.id for artifact in doomed), force=force)
        outcome = f"; {outlook(forecast)}" if forecast is not None else ""
        summary = f"{plural(len(doomed), 'artifact')} {'would be deleted' if dry_run else 'deleted'}{outcome}"
        # What is foreseen is of all of them together: what they share among themselves goes with them.
        common = {
            "deleted": not dry_run,
            "dry_run": dry_run,
            "summary": summary,
            "forecast": None if forecast is None else forecast.to_dict(),
        }
        for artifact in doomed:
            verb = "would delete" if dry_run else "deleted"
            _done(state, artifact, verb, {"id": artifact.id, **common})
        if not state.json and not state.quiet:
            note(summary, plain=True)
    return 0


MANY_CHUNKS: Final = 200_000
"""In a store of more a forecast takes seconds: it is made where somebody waits for it to decide."""


def _forecast(store: Store, doomed: list[Artifact]) -> Forecast | None:
    """Ask what deleting would give back; where something is damaged nobody can tell, and that stops nothing."""
    from holdfast.errors import HoldfastError

    try:
        return store.forecast(doomed)
    except HoldfastError as error:
        note(f"warning: no forecast: {escape(str(error))}")
        return None


@command("restore", example="holdfast ls --deleted\nholdfast restore 0199c8f3")
@click.argument("refs", nargs=-1, required=True, metavar="REF…")
@click.option("--force", is_flag=True, help="Bring back even without what they require.")
def restore(state: State, refs: tuple[str, ...], force: bool) -> None:
    """Bring deleted artifacts back."""
    from holdfast.cli.refs import resolve_artifact

    with state.open() as store:
        found = {a.id: a for a in (resolve_artifact(store, ref, deleted=True) for ref in refs)}
        for artifact in found.values():
            back = store.restore(artifact.id, force=force)
            _done(state, back, "restored", back.to_dict())


def _done(state: State, artifact: Artifact, verb: str, document: dict[str, Any]) -> None:
    name = escape(display_name(artifact))
    state.answer(
        document, lambda: out(f"{verb} {artifact.id}  {size(artifact.size_bytes)}  {name}"), quiet=artifact.id
    )


def _named(artifacts: list[Artifact]) -> str:
    if len(artifacts) == 1:
        return f"{artifacts[0].id} ({escape(display_name(artifacts[0]))})"
    total = sum(artifact.size_bytes for artifact in artifacts)
    return f"{plural(len(artifacts), 'artifact')}, {size(total)}"


COMMANDS: tuple[click.Command, ...] = (init, put, rm, restore)
