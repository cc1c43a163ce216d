"""`encode` and `decode`: BAO streams on standard output and input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import click

from holdfast.cli.base import ByteRange, command
from holdfast.cli.output import State, escape, note, out, out_bytes, size
from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    from holdfast import Store
    from holdfast.cli.progress import Bar
    from holdfast.ranges import ChunkRanges
    from holdfast.types import Hash

LOOKED_AT = 16
_RANGES = click.option(
    "--range",
    "byte_ranges",
    type=ByteRange(),
    multiple=True,
    metavar="START..STOP",
    help="These bytes only, half-open, rounded out to 1,024; may be given again.",
)
_CHILDREN = click.option(
    "--children", is_flag=True, help="It is a hash seq, as a tree is: the blobs that it lists, too."
)


@command(
    "encode",
    example="holdfast encode blake3:af1349b9 > blob.bao\n"
    "holdfast encode af1349b9… --range 0..1048576 | ssh host holdfast decode af1349b9… --range 0..1048576",
)
@click.argument("ref", metavar="HASH")
@_RANGES
@_CHILDREN
def encode(state: State, ref: str, byte_ranges: tuple[tuple[int, int | None], ...], children: bool) -> None:
    """Write a blob to standard output as a BAO stream, which whoever receives it can verify as it comes."""
    from holdfast.cli.layer import whole_hash
    from holdfast.cli.progress import Bar

    if sys.stdout.isatty():
        raise InvalidInput("a BAO stream is not for a terminal: send it into a file or a pipe (> FILE)")
    with state.open(reads=True) as store, Bar(state.quiet or state.json) as bar:
        hash_ = whole_hash(store, ref)
        ranges = _ranges(byte_ranges, children)
        if children:
            _check_seq(store, hash_)
            out_bytes(_watched(store.blobs.encode_seq(hash_), bar, None))
            return
        total = store.blobs.info(hash_).size_bytes if ranges is None else None
        out_bytes(_watched(store.blobs.encode(hash_, ranges), bar, total))


@command(
    "decode",
    example="holdfast decode af1349b9… < blob.bao\nholdfast decode af1349b9… blob.bao --tag data",
)
@click.argument("hash_text", metavar="HASH")
@click.argument("path", metavar="[PATH]", default="-")
@_RANGES
@_CHILDREN
@click.option(
    "--tag", "name", metavar="NAME", help="Name it, if it is complete. Without a name it may be collected."
)
def decode(
    state: State,
    hash_text: str,
    path: str,
    byte_ranges: tuple[tuple[int, int | None], ...],
    children: bool,
    name: str | None,
) -> int:
    """Take in a BAO stream of a blob: from a file, or from standard input.

    What verifies is kept, whatever becomes of the rest. HASH is whole: it is what the stream is checked against.
    `--range` says what was asked for. `blob info` shows what is here, and what is missing.
    """
    from holdfast.cli.layer import show_blob
    from holdfast.cli.progress import Bar
    from holdfast.types import Hash

    hash_ = Hash.parse(hash_text.removeprefix("blake3:"))
    ranges = _ranges(byte_ranges, children)
    if path == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise InvalidInput("a BAO stream does not come from a terminal: give a PATH, or < FILE")
    with state.open(create_default=True) as store:
        blobs = store.blobs
        source: Any = _pieces(sys.stdin.buffer) if path == "-" else path
        with Bar(state.quiet or state.json) as bar:
            if children:
                seq = blobs.decode_seq(hash_, source, progress=bar)
            else:
                blobs.decode(hash_, source, ranges, progress=bar)
        field = blobs.bitfield(hash_)
        if name is not None and field.status == "complete":
            store.tags.set(name, hash_, "hash_seq" if children else "raw")
        named = name if field.status == "complete" else None
        if children:
            document = seq.to_dict() | {"tag": named}
            line = f"{seq.complete_children:,} of {seq.children:,} blobs are here, {size(seq.complete_bytes)}"
            state.answer(document, lambda: out(line), quiet=str(hash_))
        else:
            missing = field.status == "missing"
            info = None if missing else blobs.info(hash_)
            document = {"hash": str(hash_)} | ({} if info is None else info.to_dict())
            document |= {"tag": named, "bitfield": field.to_dict()}

            def show() -> None:
                if info is None:
                    out(f"nothing of {hash_} is here")
                else:
                    show_blob(info, field)

            state.answer(document, show, quiet=str(hash_))
        if name is not None and named is None:
            note(f"not all of it is here: it was not tagged {escape(name)}")
    return 0


def _check_seq(store: Store, hash_: Hash) -> None:
    """Refuse what is none before all of it is out: none of its first children is here, and nobody calls it one."""
    first = list(islice(store.blobs.children(hash_), LOOKED_AT))
    if not first or any(store.blobs.status(child) != "missing" for child in first):
        return
    if any(artifact.format == "hash_seq" for artifact in store.find(hash=hash_)):
        return
    if any(tag.hash == hash_ and tag.format == "hash_seq" for tag in store.tags.list()):
        return
    raise InvalidInput(
        f"{hash_} is no hash seq, as it seems: no blob is here of the first {len(first)} that it would name, and no"
        " artifact or tag says that it is one. Without --children it is sent by itself",
        hash=hash_,
    )


def _ranges(given: Iterable[tuple[int, int | None]], children: bool) -> ChunkRanges | None:
    from holdfast.ranges import ChunkRanges

    parts = [ChunkRanges.bytes(start, stop) for start, stop in given]
    if parts and children:
        raise InvalidInput("--range is of one blob, --children of many: give one of them")
    return ChunkRanges.union(parts) if parts else None


def _watched(pieces: Iterator[bytes], bar: Bar, total_bytes: int | None) -> Iterator[bytes]:
    from holdfast.types import Progress

    done = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        bar(Progress(phase="encode", done_bytes=done, total_bytes=total_bytes))


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    """Give what comes as it comes: a stream must end with its input."""
    from holdfast.sources import read_some

    # Not `read1`: of input that does not block it says that it is at its end, when nothing has come yet.
    source = getattr(file, "raw", file)
    while piece := read_some(source, 1 << 20):
        yield piece


COMMANDS: tuple[click.Command, ...] = (encode, decode)
