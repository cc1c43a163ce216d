"""A bucket that fails on purpose: it numbers each call, and fails, lies or dies at one.

Record a run with `FaultyBucket(inner)`, take its `sites`, and run again once for each of them and each fault that
it `can` have. `on_site` is called before each call, with nothing held: there a test lets the other side run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Final, NamedTuple, TypeVar

from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.errors import Unavailable
from holdfast.testing.faults import SimulatedCrash
from holdfast.types import BytesLike

T = TypeVar("T")


class BucketFault(StrEnum):
    """What happens at a site."""

    BEFORE = "before"
    """It fails, and was not applied."""
    AFTER = "after"
    """It was applied, and the reply is lost."""
    HANG = "hang"
    """It was applied, no reply came in time; `on_hang` runs meanwhile."""
    DENIED = "denied"
    """`error` is raised; not applied."""
    TRUNCATED = "truncated"
    """Half of the body is the whole body."""
    FLIPPED = "flipped"
    """One bit of the body is another one."""
    MISSING = "missing"
    """The listing lacks the key that was written last through here, or else its first one."""
    MIDWAY = "midway"
    """Half of a listing or of a stream comes, then it fails."""
    CRASH_BEFORE = "crash-before"
    CRASH_AFTER = "crash-after"


WRITES: Final = frozenset({"create", "replace", "upload", "copy", "delete"})
BODIES: Final = frozenset({"get", "get_range", "iter"})
CALLS: Final = WRITES | BODIES | {"head", "list"}
_OF_CALLS: Final[dict[BucketFault, frozenset[str]]] = {
    BucketFault.BEFORE: CALLS,
    BucketFault.AFTER: WRITES,
    BucketFault.HANG: CALLS,
    BucketFault.DENIED: CALLS,
    BucketFault.TRUNCATED: BODIES,
    BucketFault.FLIPPED: BODIES,
    BucketFault.MISSING: frozenset({"list"}),
    BucketFault.MIDWAY: frozenset({"list", "iter"}),
    BucketFault.CRASH_BEFORE: CALLS,
    BucketFault.CRASH_AFTER: WRITES,
}
_CRASHES: Final = frozenset({BucketFault.CRASH_BEFORE, BucketFault.CRASH_AFTER})


class BucketSite(NamedTuple):
    """One call of a run; numbers start at 1. Of a deletion, `key` is the first one."""

    number: int
    call: str
    key: str
    size_bytes: int = 0

    def can(self, fault: BucketFault) -> bool:
        """Say whether a fault can happen here at all."""
        return self.call in _OF_CALLS[fault]

    def __str__(self) -> str:
        return f"{self.number}:{self.call}({self.key})"


class FaultyBucket:
    """A bucket around another one, of one process, that fails at one site, once or from then on.

    `at` counts the sites for which `where` holds (all of them, if it is not given). With `for_good`, every later
    call fails as `BEFORE`: the service is away. A crash is for good by nature.
    """

    def __init__(
        self,
        inner: Bucket,
        fault: BucketFault | None = None,
        at: int = 0,
        *,
        for_good: bool = False,
        where: Callable[[BucketSite], bool] | None = None,
        error: Exception | None = None,
        on_site: Callable[[BucketSite], None] | None = None,
        on_hang: Callable[[], None] | None = None,
    ) -> None:
        self.inner = inner
        self.location = inner.location
        self.requests = inner.requests
        self.fault = fault
        self.at = at
        self.for_good = for_good
        self.where = where
        self.error = error
        self.on_site = on_site
        self.on_hang = on_hang
        self.sites: list[BucketSite] = []
        self.hit: BucketSite | None = None
        self.struck = False
        """Whether the fault came to pass: the call of that number was one that can have it."""
        self.crashed = False
        self._matching = 0
        self._last_written = ""
        self._mutex = threading.Lock()

    def arm(self, fault: BucketFault, calls: int) -> None:
        """Fail at the call that comes `calls` after this moment (1: the next)."""
        with self._mutex:
            self.fault, self.hit, self.struck = fault, None, False
            self.at = self._matching + calls

    def heal(self) -> None:
        """Fail no more."""
        self.fault = None

    def _decide(self, call: str, key: str, size_bytes: int) -> BucketFault | None:
        with self._mutex:
            if self.crashed:
                raise SimulatedCrash("this process has crashed")
            site = BucketSite(len(self.sites) + 1, call, key, size_bytes)
            self.sites.append(site)
        if self.on_site is not None:
            self.on_site(site)
        with self._mutex:
            if self.fault is None or not (self.where is None or self.where(site)):
                return None
            self._matching += 1
            if self._matching == self.at:
                self.hit = site
                self.struck = site.can(self.fault)
                return self.fault if self.struck else None
            return BucketFault.BEFORE if self.for_good and self.hit is not None else None

    def _step(
        self, call: str, key: str, action: Callable[[], T], size_bytes: int = 0
    ) -> tuple[T, BucketFault | None]:
        """Do a call, with what befalls it; what is left to be done to its result is given with it."""
        fault = self._decide(call, key, size_bytes)
        if fault is BucketFault.DENIED and self.error is not None:
            raise self.error
        if fault in (BucketFault.BEFORE, BucketFault.DENIED):
            raise self._unavailable(call, key)
        if fault is BucketFault.CRASH_BEFORE:
            self._die()
        result = action()
        if call in WRITES and call != "delete":
            self._last_written = key
        if fault is BucketFault.CRASH_AFTER:
            self._die()
        if fault is BucketFault.HANG and self.on_hang is not None:
            self.on_hang()
        if fault in (BucketFault.AFTER, BucketFault.HANG):
            raise self._unavailable(call, key)
        return result, fault

    def _unavailable(self, call: str, key: str) -> Unavailable:
        return Unavailable(
            f"{self.location}: injected at {call} of {key}; the same call may work later", key=key
        )

    def _die(self) -> None:
        self.crashed = True
        raise SimulatedCrash(f"{self.fault} {self.hit}")

    # --- the calls of a bucket

    def head(self, key: str) -> Meta | None:
        return self._step("head", key, lambda: self.inner.head(key))[0]

    def get(self, key: str, *, max_bytes: int) -> tuple[bytes, Meta] | None:
        found, fault = self._step("get", key, lambda: self.inner.get(key, max_bytes=max_bytes))
        if found is None or fault is None:
            return found
        data = _spoil(found[0], fault)
        return data, found[1]._replace(size_bytes=len(data))

    def get_range(self, key: str, start: int, stop: int) -> bytes | None:
        found, fault = self._step(
            "get_range", key, lambda: self.inner.get_range(key, start, stop), stop - start
        )
        return found if found is None or fault is None else _spoil(found, fault)

    def iter(self, key: str, start: int, stop: int) -> Iterator[bytes] | None:
        pieces, fault = self._step("iter", key, lambda: self.inner.iter(key, start, stop), stop - start)
        if pieces is None or fault is None:
            return pieces
        data = b"".join(pieces)
        if fault is BucketFault.MIDWAY:
            return self._broken("iter", key, [data[: len(data) // 2]])
        return iter((_spoil(data, fault),))

    def create(self, key: str, data: BytesLike) -> Meta | None:
        return self._step("create", key, lambda: self.inner.create(key, data), len(data))[0]

    def replace(self, key: str, data: BytesLike, e_tag: str) -> Meta | None:
        return self._step("replace", key, lambda: self.inner.replace(key, data, e_tag), len(data))[0]

    def upload(self, key: str, pieces: Iterable[BytesLike], size_bytes: int) -> Meta:
        return self._step("upload", key, lambda: self.inner.upload(key, pieces, size_bytes), size_bytes)[0]

    def copy(self, source: str, target: str) -> Meta | None:
        return self._step("copy", target, lambda: self.inner.copy(source, target))[0]

    def delete(self, keys: Sequence[str]) -> None:
        return self._step("delete", next(iter(keys), ""), lambda: self.inner.delete(keys))[0]

    def list(self, prefix: str, *, after: str = "") -> Iterator[Meta]:
        found, fault = self._step("list", prefix, lambda: self.inner.list(prefix, after=after))
        if fault is BucketFault.MIDWAY:
            listed = list(found)
            return self._broken("list", prefix, listed[: len(listed) // 2])
        return found if fault is not BucketFault.MISSING else self._without_one(found)

    def _broken(self, call: str, key: str, first: Sequence[T]) -> Iterator[T]:
        yield from first
        raise self._unavailable(call, key)

    def _without_one(self, found: Iterator[Meta]) -> Iterator[Meta]:
        listed = list(found)
        missing = self._last_written if any(m.key == self._last_written for m in listed) else None
        yield from (m for m in listed if m.key != (missing or listed[0].key))

    def abort_stale(self, before_ms: int) -> int | None:
        return self.inner.abort_stale(before_ms)

    def close(self) -> None:
        if not self.crashed:
            self.inner.close()


def _spoil(data: bytes, fault: BucketFault) -> bytes:
    if fault is BucketFault.TRUNCATED:
        return data[: len(data) // 2]
    if fault is BucketFault.FLIPPED and data:
        at = len(data) // 2
        return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
    return data
