"""Every error that Holdfast raises, and the one table that turns them into exit codes.

The tree is grouped by what a caller would do about an error, not by where it comes from. Evidence stands
in attributes; every class pickles; `kind` is a stable name for programs (`--json`, HTTP).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final


class HoldfastError(Exception):
    """The root of all errors of this package: a message for people, evidence as attributes.

    Evidence is given by keyword and readable as an attribute (`error.path`, `error.offset_bytes`, …).
    """

    kind: ClassVar[str] = "error"

    def __init__(self, message: str, **evidence: Any) -> None:
        super().__init__(message)
        self.message: Final = message
        self.evidence: Final = evidence

    def __getattr__(self, name: str) -> Any:
        evidence = self.__dict__.get("evidence", {})
        if name in evidence:
            return evidence[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Callable[..., HoldfastError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.message, self.evidence)

    def to_dict(self) -> dict[str, Any]:
        """Give the error as plain data: `kind`, `message`, and the evidence as text."""
        plain = (str, int, float, bool, type(None))
        evidence = {k: v if isinstance(v, plain) else _plain(v) for k, v in self.evidence.items()}
        return {"kind": self.kind, "message": self.message, **evidence}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return str(value)


def _rebuild(cls: type[HoldfastError], message: str, evidence: dict[str, Any]) -> HoldfastError:
    return cls(message, **evidence)


class NotFound(HoldfastError, KeyError):
    """What was asked for is not here."""

    kind = "not_found"


class ArtifactNotFound(NotFound):
    """No artifact has this id (or it was deleted)."""

    kind = "artifact_not_found"


class BlobNotFound(NotFound):
    """The store does not hold a blob of this hash."""

    kind = "blob_not_found"


class TagNotFound(NotFound):
    """No tag has this name."""

    kind = "tag_not_found"


class StoreNotFound(NotFound):
    """There is no store at this location."""

    kind = "store_not_found"


class SourceNotFound(NotFound):
    """The file or directory that was to be stored is not there."""

    kind = "source_not_found"


class UploadNotFound(NotFound):
    """No upload with this token can go on; `state` says why: unknown, committed (`artifact_id`), aborted or expired."""

    kind = "upload_not_found"


class RangeNotAvailable(NotFound):
    """The blob is partial, and this range of it is not here."""

    kind = "range_not_available"


class Conflict(HoldfastError):
    """It exists already, or was changed meanwhile, or is required by others."""

    kind = "conflict"


class InvalidInput(HoldfastError, ValueError):
    """The caller's input cannot be accepted as it is."""

    kind = "invalid_input"


class EmptyData(InvalidInput):
    """The source has no bytes, and empty data is not allowed here."""

    kind = "empty_data"


class TooLarge(InvalidInput):
    """More bytes or items than the limit allows."""

    kind = "too_large"


class InvalidConfig(InvalidInput):
    """A configuration value or option cannot be used."""

    kind = "invalid_config"


class InvalidRange(InvalidInput):
    """The range is negative or goes past the end."""

    kind = "invalid_range"


class InvalidHash(InvalidInput):
    """The text or bytes are not a hash."""

    kind = "invalid_hash"


class IntegrityError(HoldfastError):
    """Stored bytes are not what they should be. Retrying will not help."""

    kind = "integrity"


class CorruptBlob(IntegrityError):
    """Stored bytes do not hash to their name."""

    kind = "corrupt_blob"


class CorruptSegment(IntegrityError):
    """A segment of the log is damaged."""

    kind = "corrupt_segment"


class CorruptObject(IntegrityError):
    """An object of a bucket that holds names is damaged."""

    kind = "corrupt_object"


class MissingChunk(IntegrityError):
    """A blob is named, and a piece of it is not here."""

    kind = "missing_chunk"


class UnreadableRoot(IntegrityError):
    """Something that is kept cannot be read, so nobody knows what else it keeps: nothing is collected."""

    kind = "unreadable_root"


class CorruptStream(IntegrityError):
    """A BAO stream does not verify."""

    kind = "corrupt_stream"


class FormatError(HoldfastError):
    """Not a store, or one made by a newer version."""

    kind = "format"


class BackendError(HoldfastError, OSError):
    """The place where the bytes live did not do what was asked."""

    kind = "backend"

    def __init__(self, message: str, **evidence: Any) -> None:
        HoldfastError.__init__(self, message, **evidence)

    @property
    def errno(self) -> int | None:  # type: ignore[override]  # OSError's slot would hide the evidence
        value = self.evidence.get("errno")
        return value if isinstance(value, int) else None


class Unavailable(BackendError):
    """It failed for now; the same call may work later."""

    kind = "unavailable"


class NeedsReopen(BackendError):
    """This `Store` object cannot go on (closed, or carried over a fork): open the store anew."""

    kind = "needs_reopen"


class Locked(BackendError):
    """Somebody else holds the lock; the evidence names the owner."""

    kind = "locked"


class NoSpace(BackendError):
    """The disk or quota is full. Nothing that was acknowledged is affected."""

    kind = "no_space"


class PermissionDenied(BackendError):
    """The operating system or the provider does not allow it."""

    kind = "permission_denied"


class ProtocolError(HoldfastError):
    """A message that does not follow the protocol."""

    kind = "protocol"


class LocalProtocolError(ProtocolError):
    """We were asked to send what the protocol does not allow."""

    kind = "local_protocol"


class RemoteProtocolError(ProtocolError):
    """The other side sent what the protocol does not allow."""

    kind = "remote_protocol"


EXIT_CODES: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (NotFound, 3),
    (Conflict, 4),
    (InvalidInput, 2),
    (IntegrityError, 5),
    (FormatError, 6),
    (BackendError, 7),
    (ProtocolError, 8),
    (KeyboardInterrupt, 130),
)
"""The first class that an error is an instance of decides; anything else is 1. Codes are never reused."""


def exit_code(error: BaseException) -> int:
    """Give the exit code of the command line for an error."""
    for cls, code in EXIT_CODES:
        if isinstance(error, cls):
            return code
    return 1
