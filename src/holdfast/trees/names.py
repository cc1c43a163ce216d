"""Names in trees, and directories opened by them so that no link is ever followed. Works on open directories.

A name is relative, with `/` between its parts, in UTF-8. Backslashes, colons and device names of other
systems are plain characters here: on POSIX they mean nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from holdfast.errors import InvalidInput

DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_OPEN: Final = 64


def split_name(name: str) -> list[str]:
    """Give the parts of a name; InvalidInput when it could lead anywhere but below the directory it is meant for."""
    parts = name.split("/")
    if "\0" in name or "" in parts or "." in parts or ".." in parts:
        raise InvalidInput(f"not a name that a tree may have: {name!r:.300}", name=name)
    return parts


def decode_name(name: str, where: str) -> str:
    """Give a name of the file system as UTF-8 text; InvalidInput, with the name, when it is not."""
    try:
        if name.isascii():
            return name
        return os.fsencode(name).decode()
    except UnicodeError:
        raw = os.fsencode(name)
        raise InvalidInput(
            f"a name in a tree must be UTF-8: {raw!r} in {where!r}", name=raw, path=where
        ) from None


def describe_mode(mode: int) -> str:
    """Say what a thing is that is neither a file nor a directory nor a link."""
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory"}
    kinds |= {stat.S_IFBLK: "a device", stat.S_IFCHR: "a device", stat.S_IFLNK: "a symbolic link"}
    return kinds.get(stat.S_IFMT(mode), "not a file")


class Directories:
    """Opens directories below a root, part by part and never through a link; made on the way if `create`.

    The directories on the current path stay open, the upper 64 of them, so that neighbours cost no more than
    their own names and depth costs no more descriptors. `close` leaves the root open: it is the caller's.
    """

    def __init__(self, root: int, *, create: bool = False) -> None:
        self._root = root
        self._create = create
        self._kept: list[tuple[str, int]] = []
        self._deep: tuple[list[str], int] | None = None

    def open(self, parts: Sequence[str]) -> int:
        """Give the descriptor of a directory, good until the next call; OSError as `os.open` raises it."""
        kept = self._kept
        if self._deep is not None:
            if self._deep[0] == list(parts):
                return self._deep[1]
            os.close(self._deep[1])
            self._deep = None
        same = 0
        for (name, _), part in zip(kept, parts, strict=False):
            if name != part:
                break
            same += 1
        while len(kept) > same:
            os.close(kept.pop()[1])
        current = kept[-1][1] if kept else self._root
        for index in range(same, len(parts)):
            child = self._open_child(current, parts[index])
            if index < _KEPT_OPEN:
                kept.append((parts[index], child))
            else:
                if self._deep is not None:
                    os.close(self._deep[1])
                self._deep = list(parts[: index + 1]), child
            current = child
        return current

    def _open_child(self, parent: int, part: str) -> int:
        raw = part.encode() if self._create else part
        try:
            return os.open(raw, DIRECTORY_FLAGS, dir_fd=parent)
        except FileNotFoundError:
            if not self._create:
                raise
        os.mkdir(raw, 0o755, dir_fd=parent)
        return os.open(raw, DIRECTORY_FLAGS, dir_fd=parent)

    def close(self) -> None:
        """Close all that is open below the root."""
        if self._deep is not None:
            os.close(self._deep[1])
            self._deep = None
        while self._kept:
            os.close(self._kept.pop()[1])


def remove_tree(name: str, parent: int) -> None:
    """Remove `name` in the open directory `parent` and all that is below it, links themselves, as far as it goes."""
    try:
        root = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
    except OSError:  # a file, a link, or not there
        with suppress(OSError):
            os.unlink(name, dir_fd=parent)
        return
    directories = Directories(root)
    pending: list[tuple[list[str], bool]] = [([], False)]
    try:
        while pending:
            parts, emptied = pending.pop()
            with suppress(OSError):
                if emptied:
                    os.rmdir(parts[-1], dir_fd=directories.open(parts[:-1]))
                    continue
                here = directories.open(parts)
                if parts:
                    pending.append((parts, True))
                with os.scandir(here) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(([*parts, entry.name], False))
                        else:
                            with suppress(OSError):
                                os.unlink(entry.name, dir_fd=here)
    finally:
        directories.close()
        os.close(root)
    with suppress(OSError):
        os.rmdir(name, dir_fd=parent)
