"""The one error of this package, and the table from SQLite's errors to ours."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

import apsw

from holdfast.errors import HoldfastError, NoSpace, PermissionDenied, Unavailable


class CatalogUnusable(HoldfastError):
    """The catalog cannot be used, for the reason given. It is a cache: the caller rebuilds it, users never see this."""

    kind = "catalog_unusable"


MET: Final = (apsw.Error, UnicodeDecodeError)
"""What a query raises over a file: text that is no text is damage too."""
_DAMAGE: Final = (
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.FormatError,
    apsw.EmptyError,
    apsw.SchemaChangeError,
    apsw.TooBigError,
    UnicodeDecodeError,
)
_SAID_OF_DAMAGE: Final = ("no such table", "no such column", "malformed database schema", "integer overflow")


def translate(error: Exception, path: Path | None) -> Exception:
    """Give the error to raise instead of SQLite's `error`; what can only be our own mistake stays as it is."""
    where = "in memory" if path is None else str(path)
    text = str(error) or type(error).__name__
    extended = getattr(error, "extendedresult", 0)
    if extended == apsw.SQLITE_IOERR_DATA:
        return CatalogUnusable("a page of it does not match its checksum", path=where)
    if isinstance(error, _DAMAGE) or (isinstance(error, apsw.SQLError) and text.startswith(_SAID_OF_DAMAGE)):
        return CatalogUnusable(f"it is damaged ({text})", path=where)
    if isinstance(error, apsw.FullError) or extended == apsw.SQLITE_IOERR_SHMSIZE:  # no room to open it
        return NoSpace(f"no space for the catalog {where}", path=where)
    if isinstance(error, (apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError)):
        return PermissionDenied(f"the catalog {where} cannot be written ({text})", path=where)
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return Unavailable(f"another process holds the catalog {where} ({text})", path=where)
    if isinstance(error, (apsw.IOError, apsw.CantOpenError, apsw.NoMemError, apsw.ProtocolError)):
        return Unavailable(f"the catalog {where} cannot be read or written ({text})", path=where)
    return error


def translate_os(error: OSError, path: Path | None) -> Exception:
    """Give the error to raise instead of one of the operating system around the catalog file."""
    if isinstance(error, HoldfastError):
        return error
    text = f"the catalog {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(text, path=str(path), errno=error.errno)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(text, path=str(path), errno=error.errno)
    return Unavailable(text, path=str(path), errno=error.errno)
