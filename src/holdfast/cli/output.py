"""What commands share: the state of one call, and how answers look.

On a terminal: aligned columns for people. Into a pipe: tab-separated, whole ids, exact bytes, no header.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import holdfast
    from holdfast.config import Config
    from holdfast.types import Artifact

BATCH_ROWS = 1000
"""How many rows are looked at to choose the widths of columns; memory stays bounded for any list."""
MIN_ID_DIGITS = 8


@dataclass(slots=True)
class State:
    """One call of the command: the global options, and what follows from them."""

    store: str | None = None
    config_file: str | None = None
    json: bool = False
    quiet: bool = False
    location: str | None = None
    """Where the store is, once that is known."""
    opened: holdfast.Store | None = None
    """The store that was opened, for what it cost."""

    def config(self) -> Config:
        """Read the configuration."""
        from holdfast.config import load

        _log_to_stderr()
        return load(self.config_file)

    def locate(self, config: Config) -> str:
        """Decide which store is meant: option, variable, configuration, or the platform's default."""
        import os

        self.location = self.store or os.environ.get("HOLDFAST_STORE") or config.location()
        return self.location

    def open(
        self, *, create_default: bool = False, reads: bool = False, use_reserve: bool = False
    ) -> holdfast.Store:
        """Open the store that is meant. Only the platform's default one is made, and only where asked.

        `reads`: the command changes nothing, so a store that may not be written, or cannot be because the disk
        is full or another one has it, is opened read-only. `use_reserve`: the command makes room, and may take what
        is kept for that.
        """
        import os

        config = self.config()
        location = self.locate(config)
        import holdfast

        if create_default and location == "memory://" and not self.store:
            from holdfast.errors import InvalidInput

            raise InvalidInput(
                "the configured store is memory://, which ends with this command: nothing would stay"
                " (--store memory:// tries it all the same)"
            )
        is_default = not self.store and not os.environ.get("HOLDFAST_STORE") and config.is_default_location
        if create_default and is_default and not os.path.lexists(location):
            os.makedirs(os.path.dirname(location), exist_ok=True)
            store = self.opened = holdfast.open(location, create=True, config=config)
            note(f"made a store at {escape(location)}")
            return store
        from holdfast.errors import Locked, NoSpace, PermissionDenied

        try:
            self.opened = holdfast.open(location, use_reserve=use_reserve, config=config)
            return self.opened
        except (Locked, NoSpace, PermissionDenied) as error:
            if not reads:
                raise
            # if that fails too, what it says is about reading, which is what was asked for
            store = self.opened = holdfast.open(location, read_only=True, config=config)
            note(f"warning: opened read-only: {escape(' '.join(str(error).split()))}")
            return store

    def answer(self, value: Any, human: Callable[[], None], quiet: str | None = None) -> None:
        """Print one answer in the form that was asked for."""
        if self.json:
            json_line(value)
        elif self.quiet:
            if quiet is not None:
                out(quiet)
        else:
            human()

    def artifacts(self, artifacts: Iterable[Artifact]) -> None:
        """Print a list of artifacts."""
        if self.json:
            for artifact in artifacts:
                json_line(artifact.to_dict())
        elif self.quiet:
            for artifact in artifacts:
                out(artifact.id)
        elif sys.stdout.isatty():
            _table(artifacts)
        else:
            for a in artifacts:
                row = (a.id, str(a.size_bytes), _iso(a.created_at), display_name(a), ",".join(a.tags))
                out("\t".join(escape(cell) for cell in row))


def _log_to_stderr() -> None:
    """Let warnings of the package appear as plain lines."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(f"{record.levelname.lower()}: {escape(record.getMessage())}")

    logger = logging.getLogger("holdfast")
    if not logger.handlers:
        logger.addHandler(Lines(logging.WARNING))
        logger.propagate = False


def out(line: str) -> None:
    """Write a line of the answer."""
    try:
        sys.stdout.write(line + "\n")
    except OSError as error:
        raise stdout_failed(error) from error


def out_bytes(pieces: Iterable[bytes | memoryview]) -> None:
    """Write bytes of the answer."""
    flush()
    write = sys.stdout.buffer.write
    for piece in pieces:
        try:
            write(piece)
        except OSError as error:
            raise stdout_failed(error) from error
    flush()


def flush() -> None:
    """Send on what was written of the answer."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise stdout_failed(error) from error


def stdout_failed(error: OSError) -> OSError:
    """Give the error to raise for one of standard output; a pipe that was closed stays what it is."""
    if isinstance(error, BrokenPipeError):
        return error
    from holdfast.errors import BackendError

    return BackendError(f"standard output: {error.strerror or error}", errno=error.errno)


def json_line(value: Any) -> None:
    """Write one document on one line."""
    import json

    out(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def note(*lines: str, plain: bool = False) -> None:
    """Tell the person something, on standard error."""
    if sys.stderr is None:
        return
    prefix = "" if plain else "holdfast: "
    try:
        for line in lines:
            sys.stderr.write(f"{prefix}{line}\n")
            prefix = " " * len(prefix)
        sys.stderr.flush()
    except OSError:  # nobody listens
        pass


def asks() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, yes: bool) -> bool:
    """Ask before something is destroyed: only on a terminal, and not with --yes."""
    if yes or not asks():
        return True
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def escape(text: str) -> str:
    """Make what came from outside safe to print: no control characters, no lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: int) -> str:
    """Write a number of bytes for people."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:,.1f} PiB"


def when(time: datetime) -> str:
    """Write a time for people, in their own time zone."""
    return f"{time.astimezone():%Y-%m-%d %H:%M}"


def seconds(duration: float) -> str:
    """Write a duration for people."""
    return f"{duration * 1000:.0f} ms" if duration < 1 else f"{duration:.1f} s"


def plural(count: int, word: str, many: str | None = None) -> str:
    """Write `1 blob`, `2 blobs`."""
    return f"{count:,} {word if count == 1 else many or word + 's'}"


def requests_line(requests: Mapping[str, int]) -> str | None:
    """Write what a bucket was asked; None for a local store, and where it was not asked."""
    kinds = [f"{count:,} {kind.upper()}" for kind, count in requests.items() if count and "bytes" not in kind]
    if not kinds:
        return None
    moved = f"{size(requests.get('bytes_in', 0))} in, {size(requests.get('bytes_out', 0))} out"
    return f"{', '.join(kinds)}; {moved}"


def fields(pairs: Mapping[str, str | None]) -> None:
    """Write named values, one a line, aligned; those that are None or empty are left out."""
    width = max((len(name) for name, value in pairs.items() if value), default=0)
    for name, value in pairs.items():
        if value:
            out(f"{name:>{width}}  {value}")


def display_name(artifact: Artifact) -> str:
    """Give the name, with a slash after a directory's."""
    name = artifact.filename or "-"
    return f"{name}/" if artifact.format == "hash_seq" else name


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _batches(artifacts: Iterable[Artifact]) -> Iterator[list[Artifact]]:
    rest = iter(artifacts)
    while batch := list(islice(rest, BATCH_ROWS)):
        yield batch


def unique_prefix_digits(ids: Sequence[str]) -> int:
    """Give how many characters of these ids tell them apart."""
    digits = MIN_ID_DIGITS
    ordered = sorted(set(ids))
    for a, b in pairwise(ordered):
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
        digits = max(digits, shared + 1)
    return digits


def _table(artifacts: Iterable[Artifact]) -> None:
    header = True
    for batch in _batches(artifacts):
        digits = unique_prefix_digits([a.id for a in batch])
        rows = [
            (a.id[:digits], size(a.size_bytes), when(a.created_at), escape(display_name(a)), _labels(a))
            for a in batch
        ]
        wide = max(len("SIZE"), *(len(row[1]) for row in rows))
        named = min(60, max(len("NAME"), *(len(row[3]) for row in rows)))
        if header:
            out(f"{'ID':<{digits}}  {'SIZE':>{wide}}  {'STORED':<16}  {'NAME':<{named}}  TAGS".rstrip())
            header = False
        for id_, bytes_, time, name, labels in rows:
            out(f"{id_:<{digits}}  {bytes_:>{wide}}  {time:<16}  {name:<{named}}  {labels}".rstrip())


def _labels(artifact: Artifact) -> str:
    return escape(" ".join(artifact.tags))
