"""`blob …` and `tag …`: the layer below artifacts, hashes and their names."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.cli.base import ByteRange, command, group
from holdfast.cli.output import (
    State,
    confirm,
    escape,
    fields,
    json_line,
    note,
    out,
    out_bytes,
    plural,
    size,
    when,
)
from holdfast.cli.streams import COMMANDS as STREAMS
from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    import holdfast
    from holdfast.bitfield import Bitfield
    from holdfast.types import BlobInfo, Hash, Tag


SIGNS: Final = "█▒░"
"""All of it, some of it, nothing of it is here."""
ASCII_SIGNS: Final = "#+-"


@group("tag", example="holdfast tag set latest 0199c8f3\nholdfast cat tag:latest\nholdfast tag ls")
def tag_group() -> None:
    """Give names to hashes. A tag keeps its blob; `tag:NAME` stands for it at the prompt."""


@command("ls", example="holdfast tag ls\nholdfast tag ls release/ --json")
@click.argument("prefix", default="")
def tag_ls(state: State, prefix: str) -> None:
    """List tags in the order of their names: name, hash, format."""
    with state.open(reads=True) as store:
        for tag in store.tags.list(prefix):
            if state.json:
                json_line(tag.to_dict())
            elif state.quiet:
                out(escape(tag.name))
            else:
                out(f"{escape(tag.name)}\t{tag.hash}\t{tag.format}")


@command("set", example="holdfast tag set latest 0199c8f3\nholdfast tag set seq blake3:af1349b9 --hash-seq")
@click.argument("name")
@click.argument("ref")
@click.option(
    "--hash-seq", is_flag=True, help="The blob is a list of hashes: keep those too (trees do this)."
)
@click.option(
    "--if-revision", type=int, metavar="NUMBER", help="Only if it is at this revision; 0: if it is new."
)
def tag_set(state: State, name: str, ref: str, hash_seq: bool, if_revision: int | None) -> None:
    """Give a name to the blob of a REF, in place of what it named before."""
    from holdfast.cli.refs import resolve
    from holdfast.types import Hash

    with state.open() as store:
        found = resolve(store, ref)
        hash_ = found if isinstance(found, Hash) else found.hash
        is_tree = not isinstance(found, Hash) and found.format == "hash_seq"
        format_ = "hash_seq" if hash_seq or is_tree else "raw"
        tag = store.tags.set(name, hash_, format_, if_revision=if_revision)
    state.answer(tag.to_dict(), lambda: _show_tag(tag), quiet=escape(tag.name))


@command("mv", example="holdfast tag mv latest previous")
@click.argument("name")
@click.argument("to")
@click.option("-f", "--overwrite", is_flag=True, help="Replace a tag that is there.")
def tag_mv(state: State, name: str, to: str, overwrite: bool) -> None:
    """Give a tag another name, in one step."""
    with state.open() as store:
        tag = store.tags.rename(name, to, overwrite=overwrite)
    state.answer(tag.to_dict(), lambda: _show_tag(tag), quiet=escape(tag.name))


@command("rm", example="holdfast tag rm latest\nholdfast tag ls old/ -q | xargs holdfast tag rm --dry-run")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def tag_rm(state: State, names: tuple[str, ...], dry_run: bool, yes: bool) -> int:
    """Delete tags. What nothing else keeps is then collected."""
    with state.open() as store:
        doomed = [store.tags.get(name) for name in dict.fromkeys(names)]
        if not dry_run and not confirm(f"delete {plural(len(doomed), 'tag')}?", yes):
            note("nothing was deleted")
            return 1
        for tag in doomed:
            if not dry_run:
                store.tags.delete(tag.name)
            verb = "would delete" if dry_run else "deleted"
            document = {"name": tag.name, "deleted": not dry_run, "dry_run": dry_run}
            line = f"{verb} {escape(tag.name)}  blake3:{tag.hash}"
            state.answer(document, partial(out, line), quiet=escape(tag.name))
    return 0


def _show_tag(tag: Tag) -> None:
    out(f"{escape(tag.name)}  blake3:{tag.hash}  {tag.format}, revision {tag.revision}")


@group("blob", example="holdfast blob add data.bin --tag data\nholdfast blob ls\nholdfast blob info tag:data")
def blob_group() -> None:
    """Work with blobs by their hash. What no artifact and no tag names is collected."""


@command("ls", example="holdfast blob ls\nholdfast blob ls af13")
@click.argument("prefix", default="")
def blob_ls(state: State, prefix: str) -> None:
    """List blobs in the order of their hashes: hash, bytes, stored bytes."""
    with state.open(reads=True) as store:
        for blob in store.blobs.list(prefix=prefix):
            if state.json:
                json_line(blob.to_dict())
            elif state.quiet:
                out(str(blob.hash))
            else:
                out(f"{blob.hash}\t{blob.size_bytes}\t{blob.stored_bytes}")


@command("info", example="holdfast blob info blake3:af1349b9")
@click.argument("ref", metavar="HASH")
def blob_info(state: State, ref: str) -> None:
    """Show what is known of a blob, and which parts of it are here."""
    with state.open(reads=True) as store:
        hash_ = whole_hash(store, ref)
        blob, field = store.blobs.info(hash_), store.blobs.bitfield(hash_)
    document = blob.to_dict() | {"bitfield": field.to_dict()}
    state.answer(document, lambda: show_blob(blob, field), quiet=str(blob.hash))


def show_blob(blob: BlobInfo, field: Bitfield) -> None:
    """Show a blob for people."""
    claimed = "" if blob.is_size_verified else ", as a stream claimed"
    missing = str(field.missing)
    fields(
        {
            "hash": str(blob.hash),
            "size": f"{size(blob.size_bytes)} ({blob.size_bytes:,} bytes{claimed})",
            "status": str(blob.status),
            "here": f"{draw_bar(field)} {_share(field)}",
            "missing": f"{missing[:100]}{'…' if len(missing) > 100 else ''} (in leaves of 1,024)"
            if missing
            else None,
            "on disk": size(blob.stored_bytes),
            "outboard": "yes" if blob.has_outboard else "none (not needed up to 16 KiB)",
            "stored": when(blob.created_at),
        }
    )


@command(
    "add", example="holdfast blob add data.bin --tag data\nzcat dump.gz | holdfast blob add - --tag dump"
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option(
    "--tag", "name", metavar="NAME", help="Name it (one PATH only). Without a name it may be collected."
)
def blob_add(state: State, paths: tuple[str, ...], name: str | None) -> None:
    """Store files as blobs, without a word about them."""
    from holdfast.cli.storing import source_of

    if name is not None and len(paths) > 1:
        raise InvalidInput("--tag goes with one PATH")
    if paths.count("-") > 1:
        raise InvalidInput("standard input (-) can be stored once")
    with state.open(create_default=True) as store:
        leases = store.blobs.put_many([source_of(path, None)[0] for path in paths])
        if name is not None:
            store.tags.set(name, leases[0].hash)
        for lease in leases:
            document: dict[str, Any] = {"hash": str(lease.hash), "size_bytes": lease.size_bytes}
            document |= {"durability": str(lease.durability), "tag": name}
            line = f"{lease.hash}  {size(lease.size_bytes)}"
            state.answer(document, partial(out, line), quiet=str(lease.hash))


@command("cat", example="holdfast blob cat tag:data | sha256sum\nholdfast blob cat af1349b9 --range 0..4096")
@click.argument("ref", metavar="HASH")
@click.option(
    "--range", "byte_range", type=ByteRange(), metavar="START..STOP", help="These bytes only, half-open."
)
def blob_cat(state: State, ref: str, byte_range: tuple[int, int | None] | None) -> None:
    """Write the bytes of a blob to standard output, verified."""
    start, stop = byte_range or (0, None)
    length = None if stop is None else stop - start
    with state.open(reads=True) as store:
        out_bytes(store.blobs.iter_bytes(whole_hash(store, ref), start, length))


def draw_bar(field: Bitfield, cells: int | None = None) -> str:
    """Draw what is here of a blob, as wide as the terminal allows; in ASCII where it can write nothing else."""
    from holdfast.ranges import ChunkRanges, leaf_count

    if cells is None:
        cells = max(10, min(100, shutil.get_terminal_size().columns) - 30)
    full, some, none = SIGNS if _writes(SIGNS) else ASCII_SIGNS
    leaves = leaf_count(field.size_bytes)
    cells = min(cells, leaves)
    edges = [leaves * cell // cells for cell in range(cells + 1)]
    drawn = []
    for start, stop in pairwise(edges):
        here = (field.ranges & ChunkRanges.leaves(start, stop)).count(field.size_bytes)
        drawn.append(full if here == stop - start else some if here else none)
    return "".join(drawn)


def _share(field: Bitfield) -> str:
    if field.status == "complete":
        return "100 %"
    percent = 100 * field.present_bytes / max(1, field.size_bytes)
    return f"{min(percent, 99.9):.1f} %, {size(field.present_bytes)}"


def _writes(text: str) -> bool:
    """Whether standard output can write a text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def whole_hash(store: holdfast.Store, text: str) -> Hash:
    """Give the hash that is meant: here bare digits are those of a hash, never of an id."""
    from holdfast.cli.refs import resolve
    from holdfast.types import Hash

    bare = not text.startswith(("tag:", "blake3:"))
    found = resolve(store, f"blake3:{text}" if bare else text)
    return found if isinstance(found, Hash) else found.hash


for _command in (tag_ls, tag_set, tag_mv, tag_rm):
    tag_group.add_command(_command)
for _command in (blob_ls, blob_info, blob_add, blob_cat):
    blob_group.add_command(_command)
COMMANDS: tuple[click.Command, ...] = (blob_group, tag_group, *STREAMS)
