"""The one narrow layer between the log and the operating system. Nothing else in the log backend calls it.

A test replaces it: `holdfast.testing` has a disk that fails on purpose and one that forgets what was not
synced. So every call here is one step that a crash can fall before or after, and nothing here is clever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from holdfast.errors import HoldfastError, NoSpace, PermissionDenied, Unavailable
from holdfast.types import BytesLike

OpenMode: TypeAlias = Literal["r", "a", "x", "rw"]
"""`r`: read. `a`: read and write what is there. `x`: create what must not be there. `rw`: `a` or else `x`."""


class FileStat(NamedTuple):
    """What is to be known of a path: which file it is, how long, when it was written, how many names it has."""

    dev: int
    ino: int
    size_bytes: int
    is_dir: bool
    modified_ns: int = 0
    links: int = 1


class Disk(Protocol):
    """Files by integer handles, paths as `str`, each call one step.

    Failures are `holdfast.errors` with the path as evidence (`translate`); a missing file is a plain
    `FileNotFoundError` and one that is there against `x` a plain `FileExistsError`, for the caller to judge.
    `pread` and `preadv` are the system calls themselves and raise plain `OSError`: who reads knows the
    segment, and says so. After `pwrite`, `fsync`, `truncate` or `close` failed, nobody knows what the disk
    holds (durability.md, rule 3).
    """

    def open(self, path: str, mode: OpenMode) -> int:
        """Give a handle that no child process inherits. New files are 0600.

        What is no regular file (a symbolic link, pipe, device, directory) is refused, and never waited for.
        """

    def close(self, handle: int) -> None:
        """Give the handle back, with every lock that it holds."""

    def pread(self, handle: int, length: int, offset: int, /) -> bytes:
        """Read up to `length` bytes; fewer only at the end of the file."""

    def preadv(self, handle: int, buffers: Sequence[bytearray | memoryview], offset: int, /) -> int:
        """Fill the buffers in turn; give the count of bytes, which is short only at the end of the file."""

    def pwrite(self, handle: int, buffers: Sequence[BytesLike], offset: int) -> None:
        """Write all of the buffers (of single bytes), one after the other, from `offset` on."""

    def fsync(self, handle: int) -> None:
        """Make the bytes and the length of the file durable (not its name: `fsync_dir`)."""

    def truncate(self, handle: int, length: int) -> None:
        """Set the length of the file."""

    def punch(self, handle: int, offset: int, length: int) -> None:
        """Give the room of a range back: it reads as zeros, the length stays. Does nothing where that is not known."""

    def allocate(self, handle: int, length: int) -> None:
        """Let the file be at least so long, with room on the disk for every byte; what is new reads as zeros."""

    def size(self, handle: int) -> int:
        """Give the length of the file."""

    def fstat(self, handle: int) -> FileStat:
        """Describe the open file, whatever its path leads to by now."""

    def lock(self, handle: int, *, exclusive: bool = True, wait: bool = False) -> bool:
        """Take or convert the `flock` of this handle; False when another handle is in the way."""

    def unlock(self, handle: int) -> None:
        """Release the lock of this handle."""

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, replacing what is there. Durable with `fsync_dir`."""

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, which must not be there. Durable with `fsync_dir`."""

    def unlink(self, path: str) -> None:
        """Remove a name. Counts once `fsync_dir` has returned."""

    def mkdir(self, path: str) -> None:
        """Make a directory, 0700."""

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""

    def listdir(self, path: str) -> list[str]:
        """Give the names in a directory, in no order."""

    def stat(self, path: str) -> FileStat | None:
        """Describe what is at a path; None when nothing is."""

    def fsync_dir(self, path: str) -> None:
        """Make the names in a directory durable."""

    def free_bytes(self, path: str) -> int:
        """Give the room that is left for us on the file system of a path."""

    def total_bytes(self, path: str) -> int:
        """Give the size of the file system of a path."""

    def drop_cache(self, handle: int) -> None:
        """Ask the kernel to forget the pages of a file. A courtesy: it may do nothing."""


_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_FILE: Final = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV})
"""What opening a link, a directory, a socket and a device without a driver says."""
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP})


def translate(error: OSError, path: str | None) -> HoldfastError | OSError:
    """Give the error of this package for one of the operating system; raise it `from` that one.

    A file that is missing or already there stays the plain exception: only the caller knows what it means.
    """
    if isinstance(error, (HoldfastError, FileNotFoundError, FileExistsError, NotADirectoryError)):
        return error
    code = error.errno
    reason = os.strerror(code) if code is not None else str(error)
    where = path if path is not None else "an open file"
    if code in _NO_SPACE:
        return NoSpace(f"no space left for {where}: {reason}", path=path, errno=code)
    if code in _DENIED:
        return PermissionDenied(f"not allowed: {where}: {reason}", path=path, errno=code)
    return Unavailable(f"the disk failed at {where}: {reason}", path=path, errno=code)


_FILL_BYTES: Final = 1 << 20
_IOV_MAX: Final = min(os.sysconf("SC_IOV_MAX"), 1024) if "SC_IOV_MAX" in os.sysconf_names else 16
_COMMON: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe or a device would wait
_FLAGS: Final[dict[str, int]] = {
    "r": os.O_RDONLY | _COMMON,
    "a": os.O_RDWR | _COMMON,
    "x": os.O_RDWR | os.O_CREAT | os.O_EXCL | _COMMON,
    "rw": os.O_RDWR | os.O_CREAT | _COMMON,
}
_F_FULLFSYNC: Final[int | None] = getattr(fcntl, "F_FULLFSYNC", None)


class LocalDisk:
    """The real disk."""

    pread = staticmethod(os.pread)
    preadv = staticmethod(os.preadv)

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}

    def open(self, path: str, mode: OpenMode) -> int:
        try:
            handle = os.open(path, _FLAGS[mode], 0o600)
        except OSError as error:
            if error.errno in _NO_FILE:
                raise _not_a_file(path) from error
            raise translate(error, path) from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise _not_a_file(path)
        self._paths[handle] = path
        return handle

    def close(self, handle: int) -> None:
        path = self._paths.pop(handle, None)
        try:
            os.close(handle)
        except OSError as error:
            raise translate(error, path) from error

    def pwrite(self, handle: int, buffers: Sequence[BytesLike], offset: int) -> None:
        total = sum(map(len, buffers))
        try:
            if len(buffers) <= _IOV_MAX:
                written = os.pwritev(handle, buffers, offset)
                if written == total:
                    return
            else:
                written = 0
            _write_rest(handle, buffers, offset, written)
        except OSError as error:
            raise translate(error, self._paths.get(handle)) from error

    def fsync(self, handle: int) -> None:
        try:
            _fsync_data(handle)
        except OSError as error:
            raise translate(error, self._paths.get(handle)) from error

    def truncate(self, handle: int, length: int) -> None:
        try:
            os.ftruncate(handle, length)
        except OSError as error:
            raise translate(error, self._paths.get(handle)) from error

    def punch(self, handle: int, offset: int, length: int) -> None:
        code = _find_fallocate()(handle, _PUNCH_HOLE | _KEEP_SIZE, offset, length) if length > 0 else 0
        if code not in _CANNOT_PUNCH:
            raise translate(OSError(code, os.strerror(code)), self._paths.get(handle))

    def allocate(self, handle: int, length: int) -> None:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, length)
                return
            for at in range(os.fstat(handle).st_size, length, _FILL_BYTES):
                os.pwrite(handle, bytes(min(_FILL_BYTES, length - at)), at)
        except OSError as error:
            raise translate(error, self._paths.get(handle)) from error

    def size(self, handle: int) -> int:
        try:
            return os.fstat(handle).st_size
        except OSError as error:
            raise translate(error, self._paths.get(handle)) from error

    def fstat(self, handle: int) -> FileStat:
        try:
            return _described(os.fstat(handle))
        except OSError as error:
            raise translate(error, self._paths.get(handle)) from error

    def lock(self, handle: int, *, exclusive: bool = True, wait: bool = False) -> bool:
        operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(handle, operation if wait else operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise translate(error, self._paths.get(handle)) from error
        return True

    def unlock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_UN)
        except OSError as error:
            raise translate(error, self._paths.get(handle)) from error

    def rename(self, source: str, target: str) -> None:
        try:
            os.rename(source, target)
        except OSError as error:
            raise translate(error, source) from error

    def link(self, source: str, target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            raise translate(error, target) from error

    def unlink(self, path: str) -> None:
        try:
            os.unlink(path)
        except OSError as error:
            raise translate(error, path) from error

    def mkdir(self, path: str) -> None:
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            raise translate(error, path) from error

    def rmdir(self, path: str) -> None:
        try:
            os.rmdir(path)
        except OSError as error:
            raise translate(error, path) from error

    def listdir(self, path: str) -> list[str]:
        try:
            return os.listdir(path)
        except OSError as error:
            raise translate(error, path) from error

    def stat(self, path: str) -> FileStat | None:
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise translate(error, path) from error
        return _described(found)

    def fsync_dir(self, path: str) -> None:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise translate(error, path) from error

    def free_bytes(self, path: str) -> int:
        try:
            found = os.statvfs(path)
        except OSError as error:
            raise translate(error, path) from error
        return found.f_bavail * found.f_frsize

    def total_bytes(self, path: str) -> int:
        try:
            found = os.statvfs(path)
        except OSError as error:
            raise translate(error, path) from error
        return found.f_blocks * found.f_frsize

    def drop_cache(self, handle: int) -> None:
        if hasattr(os, "posix_fadvise"):
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            except OSError:
                pass


_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_CANNOT_PUNCH: Final = frozenset({0, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR})
"""With these the hole is there, or cannot be had."""


@cache
def _find_fallocate() -> Callable[[int, int, int, int], int]:
    """Give a call of Linux's `fallocate`, which `os` lacks, that gives its `errno`."""
    if not sys.platform.startswith("linux"):
        return lambda *_: errno.ENOSYS
    import ctypes  # slow to import, and of use for partial blobs alone

    library = ctypes.CDLL(None, use_errno=True)
    found = getattr(library, "fallocate64", None) or library.fallocate  # musl: `off_t` always has 64 bits
    found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return lambda *arguments: ctypes.get_errno() if found(*arguments) else 0


def _described(found: os.stat_result) -> FileStat:
    return FileStat(
        found.st_dev,
        found.st_ino,
        found.st_size,
        stat.S_ISDIR(found.st_mode),
        found.st_mtime_ns,
        found.st_nlink,
    )


def _not_a_file(path: str) -> PermissionDenied:
    return PermissionDenied(
        f"{path} is no regular file (a link, directory, pipe, socket or device): nothing of a store is, remove it",
        path=path,
    )


def _fsync_data(handle: int) -> None:
    if _F_FULLFSYNC is not None:  # macOS: fsync leaves the bytes in the drive's cache
        fcntl.fcntl(handle, _F_FULLFSYNC)
    elif hasattr(os, "fdatasync"):  # writes the length too, and spares the journal the times
        os.fdatasync(handle)
    else:
        os.fsync(handle)


def _write_rest(handle: int, buffers: Sequence[BytesLike], offset: int, written: int) -> None:
    """Write what a first call left, in steps that the system takes: it stops short at limits and signals."""
    offset += written
    rest: list[memoryview] = []
    for buffer in buffers:
        if written >= len(buffer):
            written -= len(buffer)
        else:
            rest.append(memoryview(buffer)[written:])
            written = 0
    first = 0
    while first < len(rest):
        count = os.pwritev(handle, rest[first : first + _IOV_MAX], offset)
        if count == 0:
            raise OSError(errno.EIO, "a write took nothing")
        offset += count
        while first < len(rest) and count >= len(rest[first]):
            count -= len(rest[first])
            first += 1
        if count:
            rest[first] = rest[first][count:]


# fmt: off
_NETWORK: Final = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "davfs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4",
    "ocfs2", "prl_fs", "smb", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs",
})
_LOCAL_FUSE: Final = frozenset({
    "fuse.bindfs", "fuse.encfs", "fuse.exfat", "fuse.fuse-overlayfs", "fuse.gocryptfs", "fuse.lxcfs",
    "fuse.mergerfs", "fuse.ntfs-3g", "fuse.ntfs", "fuse.portal", "fuse.zfs",
})
# fmt: on


def is_network_filesystem(path: str) -> bool:
    """Say whether a path lies where `flock` and fsync may mean less than they say.

    A path that does not exist yet is judged by where it would be. A FUSE file system counts unless it is
    known as local (sshfs, s3fs, rclone … are many). False where the kernel does not tell (no mountinfo).
    """
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            kind = filesystem_type(os.path.realpath(path), file.read())
    except OSError:
        return False
    return kind is not None and (kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE))


def filesystem_type(path: str, mountinfo: str) -> str | None:
    """Find the type of file system under an absolute path; of equal mount points the last is on top."""
    best, found = -1, None
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= best:
            best, found = len(mount), right.split(" ", 1)[0]
    return found
