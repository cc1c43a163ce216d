"""What the object backend asks of a bucket, and the count of what was asked.

A bucket keeps whole objects under keys. It knows no hashes, names or catalogs; it is trusted with nothing:
who reads checks length and hash. Keys are relative to the prefix of the store, in ASCII, and parts of one
are separated by single slashes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from holdfast.errors import TooLarge
from holdfast.types import BytesLike

Kind: TypeAlias = Literal["get", "head", "put", "list", "delete"]
KINDS: Final[tuple[Kind, ...]] = ("get", "head", "put", "list", "delete")


class Meta(NamedTuple):
    """What a bucket says of an object. `e_tag` changes when the bytes do; None where there is none."""

    key: str
    size_bytes: int
    e_tag: str | None
    modified_ms: int


class Requests:
    """Counts what a bucket was asked, tries included, since it was opened. Thread-safe.

    `get`, `head`, `put` (parts, copies, and the beginning and end of a multipart upload included), `list`
    (pages), `delete` (batches), and the bytes of objects that came in and went out. `limit` bounds the sum
    of requests: the one that would go beyond is not made.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._mutex = threading.Lock()
        self._counts: dict[str, int] = dict.fromkeys((*KINDS, "bytes_in", "bytes_out"), 0)
        self._total = 0

    def count(self, kind: Kind, requests: int = 1) -> None:
        """Note requests that are about to be made; `TooLarge` when they go beyond the limit."""
        with self._mutex:
            if self.limit is not None and self._total + requests > self.limit:
                raise TooLarge(
                    f"the limit of {self.limit} requests is reached: nothing more was asked of the bucket; "
                    "raise the limit, or go on later",
                    limit=self.limit,
                    **self._counts,
                )
            self._total += requests
            self._counts[kind] += requests

    def moved(self, *, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """Note bytes of objects that came or went."""
        with self._mutex:
            self._counts["bytes_in"] += bytes_in
            self._counts["bytes_out"] += bytes_out

    def snapshot(self) -> dict[str, int]:
        """Give the counts by name."""
        with self._mutex:
            return dict(self._counts)

    @staticmethod
    def since(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
        """Give what was asked between two snapshots."""
        return {name: count - before.get(name, 0) for name, count in after.items()}


class Bucket(Protocol):
    """Whole objects under keys. Synchronous, shared by threads, not carried over a fork.

    Every method may raise `Unavailable` (the same call may work later; bounded tries were made),
    `PermissionDenied`, `StoreNotFound` (there is no such bucket), `InvalidConfig` (what answers is no such
    service, or the region or credentials are wrong), `NoSpace`, or `TooLarge` for the limit of requests.
    No message and no `repr` has a secret in it. After an error of a method that changes something, nobody
    knows whether it was changed: look.
    """

    location: str
    """What users see, without secrets."""
    requests: Requests

    def head(self, key: str) -> Meta | None:
        """Describe an object; None when there is none."""

    def get(self, key: str, *, max_bytes: int) -> tuple[bytes, Meta] | None:
        """Give a whole object, of the length that its `Meta` says; `FormatError` when that is above `max_bytes`."""

    def get_range(self, key: str, start: int, stop: int) -> bytes | None:
        """Give exactly the bytes from `start` to `stop`; None when there is no such key.

        `FormatError` when the object ends before `stop`.
        """

    def iter(self, key: str, start: int, stop: int) -> Iterator[bytes] | None:
        """Stream exactly the bytes from `start` to `stop`, in pieces of no particular length; as `get_range`.

        The request is made before this returns. A stream that breaks off is taken up where it broke.
        """

    def create(self, key: str, data: BytesLike) -> Meta | None:
        """Make an object that must not be there, in one request: whole, or not at all.

        None: there is one already, and its bytes may be others. When a reply was lost it looks: an object
        that has just these bytes counts as made by us (whoever made it), another one gives None.
        """

    def replace(self, key: str, data: BytesLike, e_tag: str) -> Meta | None:
        """Put other bytes in place of the object that has this `e_tag`; None: it is another one by now, or gone.

        After a lost reply it looks, as `create` does.
        """

    def upload(self, key: str, pieces: Iterable[BytesLike], size_bytes: int) -> Meta:
        """Put an object of `size_bytes` from pieces, large ones in parallel parts with bounded memory.

        Whatever is there is replaced: the key names the bytes, so that only equal bytes can be. An error of
        `pieces` is raised as it is, and the key has what it had. `ValueError` when the pieces are of another length.
        """

    def copy(self, source: str, target: str) -> Meta | None:
        """Give an object another key too, inside the bucket, replacing what is there; None: there is no `source`."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, in batches; those that are not there are none of its business."""

    def list(self, prefix: str, *, after: str = "") -> Iterator[Meta]:
        """Stream what is under `prefix` ("" or whole parts with a slash at the end) and after a key, in order of keys.

        Page by page: what is made or removed meanwhile may be seen or not.
        """

    def abort_stale(self, before_ms: int) -> int | None:
        """Abort uploads in parts that were begun before a time of the service's and never ended; how many.

        None where this cannot be done from here: the provider does it by itself or by a rule, or has no such thing.
        """

    def close(self) -> None:
        """Give back what it holds."""


def exactly(pieces: Iterable[BytesLike], size_bytes: int) -> Iterator[BytesLike]:
    """Pass pieces on; `ValueError` at the end, before anything is published, when it is not just so many bytes."""
    left = size_bytes
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            break
        if len(piece):
            yield piece
    if left != 0:
        raise ValueError(
            f"the pieces are {'more' if left < 0 else 'fewer'} than the {size_bytes} bytes that were said"
        )
