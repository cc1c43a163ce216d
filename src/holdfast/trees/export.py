"""Writes a collection as a directory: never outside its target, and under its name only when whole.

Everything is written into a new directory beside the target, which only its owner may enter, and renamed at
the end; what fails midway leaves nothing. Directories are opened part by part and never through a link, files
are created and never opened, and links are made last, so nothing in a hostile collection, and nobody who
changes the tree meanwhile, can lead a write elsewhere. The file system itself finds names that collide (equal
ones, a file where a directory must be, names that differ in case alone where case does not count): all of
these are InvalidInput.

Durability: one `syncfs` (or `sync`) before the rename and an fsync of the parent after it, not one for each
file: after a crash the target is whole or not there.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, TypeAlias

from holdfast.backend.log.disk import translate
from holdfast.errors import Conflict, InvalidInput, SourceNotFound
from holdfast.trees.names import DIRECTORY_FLAGS, Directories, remove_tree, split_name
from holdfast.types import BytesLike, Progress, ProgressCallback
from holdfast.wire.collection import TreeExtras

Entries: TypeAlias = Callable[[], Iterable[tuple[str, bytes]]]
"""Gives (name, hash) of every file, the same each time."""
Read: TypeAlias = Callable[[bytes], Iterable[BytesLike]]
"""Gives the verified bytes of a blob in pieces, none of them before it is verified."""

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PROGRESS_EVERY: Final = 256
_COLLISIONS: Final = frozenset((errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EMLINK))
_BAD_NAMES: Final = frozenset((errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL))


def export_tree(
    target: str | os.PathLike[str],
    entries: Entries,
    extras: TreeExtras | None,
    read: Read,
    *,
    overwrite: bool = False,
    links: Literal["keep", "inside"] = "keep",
    durable: bool = True,
    progress: ProgressCallback | None = None,
) -> int:
    """Write the files of `entries()`, then what `extras` say, as the directory `target`; give the number of files.

    A process that is killed leaves `.NAME.….partial` beside the target.
    Conflict when the target exists, unless `overwrite`: then it is moved aside, replaced, and removed (a
    crash between leaves it beside, as `.NAME.….replaced`). A target that is a link is replaced itself. All
    names are checked before anything is written. Files get 0o755 if executable, else 0o644, directories
    0o755, less the umask. Links are made with any target, as they were stored, and never followed;
    `links="inside"`, for trees of strangers, refuses those that are absolute or lead out. Not atomic for
    readers of an old target.
    """
    path = os.path.abspath(os.fspath(target))
    parent_path, name = os.path.split(path)
    if not name:
        raise Conflict(f"the root directory cannot be replaced: {path!r}", path=path)
    count = _check_names(entries, extras, links)
    executable = extras.is_executable(count) if extras is not None else bytearray(count)
    with _translated(path):
        parent = os.open(parent_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    aside = f".{name[:150]}.{os.urandom(6).hex()}"
    staging = aside + ".partial"
    try:
        if not overwrite and _exists(name, parent):
            raise Conflict(f"it exists already: {path!r}", path=path)
        with _translated(path):
            os.mkdir(staging, 0o700, dir_fd=parent)
        try:
            with _translated(path):
                # One level further down: the umask applies to it, and nobody looks in before it is whole.
                os.mkdir(f"{staging}/tree", 0o755, dir_fd=parent)
                root = os.open(f"{staging}/tree", DIRECTORY_FLAGS, dir_fd=parent)
            try:
                _write(root, entries, extras, executable, read, progress)
                if durable:
                    with _translated(path):
                        _sync(root)
            finally:
                os.close(root)
            with _translated(path):
                _publish(f"{staging}/tree", parent, name, path, overwrite, aside + ".replaced")
                if durable:
                    os.fsync(parent)
        finally:
            remove_tree(staging, parent)
    finally:
        os.close(parent)
    return count


def _check_names(entries: Entries, extras: TreeExtras | None, links: str) -> int:
    count = 0
    for name, _ in entries():
        split_name(name)
        count += 1
    if extras is not None:
        for name in extras.directories:
            split_name(name)
        for name, target in extras.symlinks.items():
            check_link(split_name(name), target, inside=links == "inside")
    return count


def check_link(parts: list[str], target: str, *, inside: bool) -> None:
    """Refuse a link target that no system has, and, if `inside`, one that could lead out of the tree.

    `..` counts only at the beginning of a target, where it is resolved from real directories; behind a name,
    which may itself be a link, it is refused.
    """
    name = "/".join(parts)
    if not target or "\0" in target:
        raise InvalidInput(f"the link {name!r} has a target that cannot be", name=name, target=target)
    if not inside:
        return
    steps = [step for step in target.split("/") if step not in ("", ".")]
    up = 0
    while up < len(steps) and steps[up] == "..":
        up += 1
    if target.startswith("/") or up > len(parts) - 1 or ".." in steps[up:]:
        raise InvalidInput(f"the link {name!r} leads out of the tree: {target!r}", name=name, target=target)


def _write(
    root: int,
    entries: Entries,
    extras: TreeExtras | None,
    executable: bytearray,
    read: Read,
    progress: ProgressCallback | None,
) -> None:
    directories = Directories(root, create=True)
    done = 0
    try:
        for index, (name, hash) in enumerate(entries()):
            *parents, last = split_name(name)
            with _placed(name):
                here = directories.open(parents) if parents else root
                handle = os.open(last.encode(), _CREATE, 0o755 if executable[index] else 0o644, dir_fd=here)
            try:
                for piece in read(hash):
                    done += _write_all(handle, piece)
            finally:
                os.close(handle)
            if progress is not None and index % _PROGRESS_EVERY == 0:
                progress(
                    Progress(phase="export", done_bytes=done, done_items=index, total_items=len(executable))
                )
        if extras is not None:
            for name in extras.directories:
                with _placed(name):
                    directories.open(split_name(name))
            for name, target in extras.symlinks.items():
                *parents, last = split_name(name)
                with _placed(name):
                    here = directories.open(parents) if parents else root
                    os.symlink(target.encode(), last.encode(), dir_fd=here)
        if progress is not None:
            total = len(executable)
            progress(
                Progress(
                    phase="export", done_bytes=done, total_bytes=done, done_items=total, total_items=total
                )
            )
    finally:
        directories.close()


def _write_all(handle: int, piece: BytesLike) -> int:
    length = len(piece)
    try:
        written = os.write(handle, piece)
        while written < length:
            written += os.write(handle, memoryview(piece)[written:])
    except OSError as error:
        raise translate(error, None) from error
    return length


@contextmanager
def _placed(name: str) -> Iterator[None]:
    """Say of a name that it collides, or that this file system does not take it."""
    try:
        yield
    except OSError as error:
        if error.errno in _COLLISIONS:
            why = "another entry of the tree has that name, or one that is the same on this file system"
        elif error.errno in _BAD_NAMES:
            why = f"this file system does not take the name ({os.strerror(error.errno or 0)})"
        else:
            raise translate(error, name) from error
        raise InvalidInput(f"{name!r:.300} cannot be written: {why}", name=name) from error


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise SourceNotFound(f"the directory for {path!r} is not there", path=path) from error
    except OSError as error:
        raise translate(error, path) from error


def _exists(name: str, parent: int) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _publish(tree: str, parent: int, name: str, path: str, overwrite: bool, replaced: str) -> None:
    """Give the tree its name. A rename of a directory never replaces a file, a link, or a directory with content."""
    moved = False
    if overwrite:
        try:
            os.rename(name, replaced, src_dir_fd=parent, dst_dir_fd=parent)
            moved = True
        except FileNotFoundError:
            pass
    try:
        os.rename(tree, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError as error:
        if moved:
            os.rename(replaced, name, src_dir_fd=parent, dst_dir_fd=parent)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise Conflict(f"it exists by now: {path!r}", path=path) from error
        raise
    if moved:
        remove_tree(replaced, parent)


def _sync(handle: int) -> None:
    """Make everything on the file system of `handle` durable."""
    import ctypes  # slow to import, and of use here alone

    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if sys.platform == "linux" else None
    if syncfs is None:
        os.sync()
    elif syncfs(handle) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
