"""Reading: ranges, pieces, a seekable file, export to disk. Every byte was verified before it gets here."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Final

from holdfast.arguments import path_of
from holdfast.backend.log.disk import translate
from holdfast.backend.log.payloads import StaleIndex
from holdfast.catalog import ArtifactBlob
from holdfast.core import MENDABLE, Core, Reader, Watch, id_of
from holdfast.errors import ArtifactNotFound, Conflict, HoldfastError, InvalidInput, NotFound, Unavailable
from holdfast.finding import FORMATS
from holdfast.trees import export_tree
from holdfast.types import Artifact, BlobFormat, Hash, ProgressCallback, Ref, check_range, parse_id
from holdfast.wire.collection import (
    EXTRAS_PREFIX,
    MAX_EXTRAS_BYTES,
    TreeExtras,
    file_count,
    iter_hashes,
    iter_names,
    parse_extras,
)
from holdfast.wire.document import parse_details

BUFFER_BYTES: Final = 16 << 10
READ_AHEAD_BYTES: Final = 512 << 10
STREAM_AFTER: Final = 3
"""So many such reads one after the other, and a store that is far away is read as a stream, ahead of who reads."""


class MendingReader:
    """Reads a blob for who has pinned; where the catalog proves wrong on the way, it is rebuilt and it goes on."""

    def __init__(self, core: Core, ref: Ref) -> None:
        self._core = core
        self._ref = ref
        self._reader = core.reader(ref)
        self.size_bytes = self._reader.size_bytes

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        try:
            return self._reader.read_at(offset_bytes, length_bytes)
        except MENDABLE as error:
            self._reopen(error)
            return self._reader.read_at(offset_bytes, length_bytes)

    def iter_bytes(self, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            try:
                for piece in self._reader.iter_bytes(start, stop):
                    yield piece
                    start += len(piece)
            except MENDABLE as error:
                self._reopen(error)

    def _reopen(self, error: HoldfastError) -> None:
        self._core.mend(error)
        self._reader = self._core.reader(self._ref)
        if self._reader.size_bytes != self.size_bytes:  # the range was made for another size
            raise Unavailable(
                "the catalog was wrong about the size of a blob and has been rebuilt: try again"
            )


class Pieces(Iterator[bytes]):
    """A range of a blob in pieces. Pins what it reads before it looks it up, until its end or `close`."""

    def __init__(self, core: Core, ref: Ref, offset_bytes: int, length_bytes: int | None) -> None:
        self._core = core
        self._stack = ExitStack()
        self._stack.enter_context(core.operation())
        try:
            reader = MendingReader(core, ref)
            start, stop = check_range(offset_bytes, length_bytes, reader.size_bytes)
        except BaseException:
            self.close()
            raise
        self._pieces = reader.iter_bytes(start, stop)

    def __next__(self) -> bytes:
        try:
            self._core.check()
            return next(self._pieces)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Rely on it no more. Harmless when done twice."""
        self._stack.close()

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the interpreter nothing is there to be told
            self.close()


class RawBlob(io.RawIOBase):
    """A blob as an unbuffered file: seeks anywhere, reads ahead while it is read in sequence.

    It pins what it reads until it is closed.
    """

    def __init__(self, core: Core, ref: Ref) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._stack.enter_context(core.operation())
        try:
            self._reader: Reader = MendingReader(core, ref)
        except BaseException:
            self._stack.close()
            raise
        self._core = core
        self._position = 0
        self._last_stop = -1
        self._ahead = b""
        self._ahead_start = 0
        self._in_order = 0
        self._stream: Iterator[bytes] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._reader.size_bytes}
        if whence not in base:
            raise InvalidInput(f"whence is {whence}; it can be 0, 1 or 2")
        position = base[whence] + offset
        if position < 0:
            raise InvalidInput(f"cannot seek to {position}: before the start")
        self._position = position
        return position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # any writable buffer
        if self.closed:
            raise InvalidInput("the file is closed")
        self._core.check()
        start = self._position
        stop = min(start + len(buffer), self._reader.size_bytes)
        if stop <= start:
            return 0
        data = self._get(start, stop)
        buffer[: len(data)] = data
        self._position = self._last_stop = start + len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream = None
            self._stack.close()
        super().close()

    def _get(self, start: int, stop: int) -> bytes:
        at = start - self._ahead_start
        if self._ahead and at >= 0 and stop <= self._ahead_start + len(self._ahead):
            return self._ahead[at : at + stop - start]
        if start != self._last_stop:
            self._in_order, self._stream = 0, None
            return self._reader.read_at(start, stop - start)
        self._in_order += 1
        if self._core.is_far and self._in_order > STREAM_AFTER:
            return self._from_stream(start, stop)
        if stop - start >= READ_AHEAD_BYTES:
            return self._reader.read_at(start, stop - start)
        length = min(READ_AHEAD_BYTES, self._reader.size_bytes - start)
        self._ahead, self._ahead_start = self._reader.read_at(start, length), start
        return self._ahead[: stop - start]

    def _from_stream(self, start: int, stop: int) -> bytes:
        """Give what the stream has of a range, one byte at least; it goes on where the last piece ended."""
        end = self._ahead_start + len(self._ahead)
        if self._stream is None or not self._ahead_start <= start <= end:
            self._stream = self._reader.iter_bytes(start, self._reader.size_bytes)
            self._ahead, self._ahead_start = b"", start
        if start >= self._ahead_start + len(self._ahead):
            self._ahead_start += len(self._ahead)
            self._ahead = next(self._stream)
        at = start - self._ahead_start
        return self._ahead[at : at + stop - start]


class Reading:
    """The room of reading."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def read(self, ref: Ref, offset_bytes: int, length_bytes: int | None) -> bytes:
        """Give a range of a blob. An artifact of one block costs one look-up and one read, unless it is far away."""
        core = self._core
        if not (isinstance(ref, Hash) or core.is_far):
            found = core.catalog.find_artifact_blob(parse_id(id_of(ref)))
            if found is None:
                raise ArtifactNotFound(f"there is no artifact {ref!s:.80}", id=str(ref))
            if found.location is not None:
                data = self._read_small(ref, found)
                if offset_bytes == 0 and length_bytes is None:
                    return data
                start, stop = check_range(offset_bytes, length_bytes, len(data))
                return data[start:stop]
        with core.operation():
            reader = MendingReader(core, ref)
            start, stop = check_range(offset_bytes, length_bytes, reader.size_bytes)
            return b"".join(reader.iter_bytes(start, stop))

    def _read_small(self, ref: Artifact | str, found: ArtifactBlob) -> bytes:
        """Read a blob of one block without a pin; what was collected between look-up and read is not there."""
        core = self._core
        try:
            return core.read_small(found.hash, found)
        except StaleIndex:
            again = core.catalog.find_artifact_blob(parse_id(ref if isinstance(ref, str) else ref.id))
            if again is None:
                raise ArtifactNotFound(f"there is no artifact {ref!s:.80}", id=str(ref)) from None
            if again == found or again.location is None:
                raise
        return self._read_small(ref, again)

    def iter_bytes(self, ref: Ref, offset_bytes: int, length_bytes: int | None) -> Iterator[bytes]:
        """Give a range in pieces. What is wrong with the reference or the range is said at once."""
        return Pieces(self._core, ref, offset_bytes, length_bytes)

    def open(self, ref: Ref) -> io.BufferedReader:
        return io.BufferedReader(RawBlob(self._core, ref), BUFFER_BYTES)

    # -- export

    def export(
        self,
        ref: Ref,
        path: str | os.PathLike[str],
        *,
        overwrite: bool,
        format: BlobFormat | str | None,
        progress: ProgressCallback | None,
    ) -> None:
        with self._core.operation():
            self._export(ref, path, overwrite, format, progress)

    def _export(
        self,
        ref: Ref,
        path: str | os.PathLike[str],
        overwrite: bool,
        format: BlobFormat | str | None,
        progress: ProgressCallback | None,
    ) -> None:
        core = self._core
        path = path_of("the target", path)
        row = core.resolve(ref)
        self._check_target(path)
        extras: TreeExtras | None = None
        if isinstance(ref, Hash):
            wanted = _format(format) or BlobFormat.RAW
        else:
            entry = core.artifact(ref)
            wanted = _format(format) or (BlobFormat.RAW, BlobFormat.HASH_SEQ)[entry.format]
            if wanted is BlobFormat.HASH_SEQ:
                extras = self.tree_extras(ref)
        if wanted is BlobFormat.RAW:
            self._export_file(Hash(row.hash), path, overwrite, progress)
            return
        core.claim(row.hash, FORMATS.index(wanted))
        if overwrite:
            self._check_replaced(path, row.hash, extras)
        export_tree(
            path,
            lambda: self.iter_collection(row.hash),
            extras,
            self._iter_blob,
            overwrite=overwrite,
            progress=progress,
        )

    def _check_target(self, path: str | os.PathLike[str]) -> None:
        """Refuse a target that would overwrite the store, a device, or the directory that somebody works in."""
        text = os.fspath(path)
        real, here = os.path.realpath(text), os.path.realpath(".")
        root = None if self._core.directory is None else os.path.realpath(self._core.directory)
        if root is not None and os.path.commonpath((real, root)) in (real, root):
            raise InvalidInput(f"{text} holds the store, or lies in it: export elsewhere", path=text)
        if os.path.commonpath((real, here)) == real:
            raise InvalidInput(f"{text} is the working directory, or holds it: export elsewhere", path=text)
        if os.path.exists(text) and not (os.path.isfile(text) or os.path.isdir(text)):
            raise InvalidInput(f"{text} is a device, pipe or socket and is not replaced: use cat", path=text)

    def _check_replaced(self, path: str | os.PathLike[str], hash_: bytes, extras: TreeExtras | None) -> None:
        """Let a tree replace a directory only if all that is in it has a successor in the tree."""
        text = os.fspath(path)
        if not os.path.isdir(text) or os.path.islink(text):
            return
        names = {name for name, _ in self.iter_collection(hash_)}
        names.update(extras.symlinks if extras is not None else ())
        for directory, subdirectories, files in os.walk(text):
            links = (name for name in subdirectories if os.path.islink(f"{directory}/{name}"))
            for name in (*files, *links):
                if os.path.relpath(f"{directory}/{name}", text) not in names:
                    raise Conflict(
                        f"{text} holds {name!r}, which is not in the tree that would replace it: move it away first",
                        path=text,
                    )

    def tree_extras(self, ref: Artifact | str) -> TreeExtras | None:
        """Give what a tree's artifact requires beside its collection, if it has such a blob."""
        entry = self._core.artifact(ref)
        for text in parse_details(entry.doc).requires:
            if text.startswith("blake3:"):
                row = self._core.blob(Hash.parse(text))
                if row.size <= MAX_EXTRAS_BYTES:
                    data = b"".join(self._iter_blob(row.hash))
                    if data.startswith(EXTRAS_PREFIX):
                        return parse_extras(data, entry.hash)
        return None

    def iter_collection(self, hash_: bytes) -> Iterator[tuple[str, bytes]]:
        """Give (name, hash) of each file of a collection; `FormatError` where it is none."""
        row = self._core.blob(hash_)
        count = file_count(row.size)
        hashes = iter_hashes(self._iter_blob(hash_))
        meta = next(hashes)
        return zip(iter_names(self._iter_blob(meta), count), hashes, strict=True)

    def _iter_blob(self, hash_: bytes) -> Iterator[bytes]:
        reader = MendingReader(self._core, Hash(hash_))
        return reader.iter_bytes(0, reader.size_bytes)

    def _export_file(
        self, hash_: Hash, path: str | os.PathLike[str], overwrite: bool, progress: ProgressCallback | None
    ) -> None:
        """Write a file aside, make it durable, and give it its name."""
        target = os.fspath(path)
        if not overwrite and os.path.lexists(target):
            raise Conflict(
                f"{target} exists already; give another path, or overwrite=True (--overwrite)", path=target
            )
        if os.path.isdir(target) and not os.path.islink(target):
            raise Conflict(f"{target} is a directory", path=target)
        parent = os.path.dirname(os.path.abspath(target))
        watch = Watch(progress, "export")
        try:
            part = f"{parent}/.holdfast-{os.urandom(8).hex()}.partial"
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            raise NotFound(f"the directory {parent} does not exist", path=parent) from None
        except OSError as error:
            raise translate(error, parent) from error
        try:
            with os.fdopen(fd, "wb", buffering=0) as file:
                for piece in self.iter_bytes(hash_, 0, None):
                    try:
                        _write_all(file, piece)
                    except OSError as error:
                        raise translate(error, target) from error
                    watch(len(piece))
                os.fsync(fd)
            if overwrite:
                os.replace(part, target)
            else:
                try:
                    os.link(part, target, follow_symlinks=False)
                except FileExistsError:
                    raise Conflict(f"{target} exists already", path=target) from None
                os.unlink(part)
        except BaseException:
            if os.path.lexists(part):
                os.unlink(part)
            raise
        directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _format(format: BlobFormat | str | None) -> BlobFormat | None:
    try:
        return None if format is None else BlobFormat(format)
    except ValueError:
        raise InvalidInput(f"format is {format!r:.100}; it can be raw or hash_seq") from None


def _write_all(file: io.RawIOBase | io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = file.write(view)
        view = view[written or 0 :]
