"""`ls`, `info`, `cat`, `get`: the commands that only read."""

from __future__ import annotations

import os

import click

from holdfast.cli.base import ByteRange, command
from holdfast.cli.output import State, display_name, escape, fields, out, out_bytes, plural, size, when
from holdfast.errors import InvalidInput


@command("ls", example="holdfast ls\nholdfast ls --limit 20 --json\nholdfast ls -q | wc -l")
@click.option("-n", "--limit", type=click.IntRange(0), metavar="COUNT", help="Only the newest COUNT.")
@click.option("--deleted", is_flag=True, help="What can still be restored.")
def ls(state: State, limit: int | None, deleted: bool) -> None:
    """List artifacts, newest first. Into a pipe: tab-separated id, bytes, time, name and tags."""
    with state.open(reads=True) as store:
        state.artifacts(store.find(deleted=deleted, limit=limit))


@command("info", example="holdfast info 0199c8f3\nholdfast --json info blake3:af1349b9")
@click.argument("ref")
def info(state: State, ref: str) -> None:
    """Show what is known of an artifact, or of a blob."""
    from holdfast.cli.refs import resolve
    from holdfast.types import Hash

    with state.open(reads=True) as store:
        found = resolve(store, ref)
        if isinstance(found, Hash):
            from holdfast.cli.layer import show_blob

            blob, field = store.blobs.info(found), store.blobs.bitfield(found)
            document = blob.to_dict() | {"bitfield": field.to_dict()}
            state.answer(document, lambda: show_blob(blob, field), quiet=str(blob.hash))
            return
        a = found

        def show_artifact() -> None:
            chunks = plural(a.chunk_count, "chunk")
            changed = f"{when(a.modified_at)}, revision {a.revision}" if a.revision > 1 else None
            fields(
                {
                    "id": a.id,
                    "name": escape(display_name(a)) if a.filename else None,
                    "size": f"{size(a.size_bytes)} ({a.size_bytes:,} bytes, {chunks})",
                    "hash": f"blake3:{a.hash}",
                    "format": "tree" if a.format == "hash_seq" else None,
                    "type": escape(a.content_type or ""),
                    "checksum": a.checksum,
                    "tags": escape(", ".join(a.tags)),
                    "links": escape(", ".join(a.links)),
                    "requires": escape(", ".join(a.requires)),
                    "metadata": escape(", ".join(f"{key}={value}" for key, value in a.metadata.items())),
                    "stored": when(a.created_at) + (f" by {escape(a.created_by)}" if a.created_by else ""),
                    "changed": changed,
                    "durability": str(a.durability),
                }
            )

        state.answer(a.to_dict(), show_artifact, quiet=a.id)


@command("cat", example="holdfast cat 0199c8f3 --range 0..4096 | xxd\nholdfast cat blake3:af1349b9 > copy")
@click.argument("ref")
@click.option(
    "--range", "byte_range", type=ByteRange(), metavar="START..STOP", help="These bytes only, half-open."
)
def cat(state: State, ref: str, byte_range: tuple[int, int | None] | None) -> None:
    """Write the bytes to standard output, verified."""
    from holdfast.cli.refs import resolve
    from holdfast.types import Hash

    start, stop = byte_range or (0, None)
    with state.open(reads=True) as store:
        found = resolve(store, ref)
        if not isinstance(found, Hash) and found.format == "hash_seq":
            raise InvalidInput(
                f"{ref} is a tree: `get` writes its files, `cat blake3:{found.hash}` its list of hashes",
                ref=ref,
            )
        length = None if stop is None else stop - start
        name = found if isinstance(found, Hash) else found.id
        out_bytes(store.iter_bytes(name, offset_bytes=start, length_bytes=length))


@command("get", example="holdfast get 0199c8f3\nholdfast get 0199c8f3 -o /tmp/copy.bin")
@click.argument("ref")
@click.option(
    "-o", "--output", metavar="PATH", help="Where to (- is standard output; otherwise the artifact's name)."
)
@click.option("-f", "--overwrite", is_flag=True, help="Replace what is there.")
def get(state: State, ref: str, output: str | None, overwrite: bool) -> None:
    """Write an artifact to a file or a directory.

    It is written aside and renamed when it is whole.
    """
    from holdfast.cli.progress import Bar
    from holdfast.cli.refs import resolve
    from holdfast.types import Hash

    with state.open(reads=True) as store, Bar(state.quiet or state.json) as bar:
        found = resolve(store, ref)
        is_tree = not isinstance(found, Hash) and found.format == "hash_seq"
        name = found if isinstance(found, Hash) else found.id
        if output == "-":
            if is_tree:
                raise InvalidInput(f"{ref} is a tree, which cannot be written to standard output", ref=ref)
            out_bytes(store.iter_bytes(name))
            return
        own = str(found) if isinstance(found, Hash) else _safe_name(found.filename) or found.id
        target = output or own
        if output is not None and os.path.isdir(output) and not is_tree:
            target = os.path.join(output, own)
        store.export(name, target, overwrite=overwrite, progress=bar)
        size_bytes = store.blobs.info(found).size_bytes if isinstance(found, Hash) else found.size_bytes
    document = {"path": target, "size_bytes": size_bytes}
    state.answer(document, lambda: out(f"{size(size_bytes)}  {escape(target)}"), quiet=escape(target))


def _safe_name(filename: str | None) -> str | None:
    """Give the last part of a name from somewhere else: nothing that leads out of this directory."""
    name = os.path.basename((filename or "").rstrip("/"))
    return None if name in ("", ".", "..") or "\0" in name else name


COMMANDS: tuple[click.Command, ...] = (ls, info, cat, get)
