"""A bucket that obstore talks to: S3 and its likes, GCS, Azure, or obstore's own memory.

obstore's retries are off, but for the parts of multipart uploads: with them on, an object that we made and
whose reply was lost counts as somebody else's. Our own tries are here (`Tries`), and after an unclear reply to
`create` and `replace` we look before we try again. Timeouts count for a whole request, its body included; a
stream that one cuts off is taken up where it was.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from holdfast.backend.objects.answers import Failure, explain, no_object_store, parse_answer
from holdfast.backend.objects.bucket import Kind, Meta, Requests, exactly
from holdfast.backend.objects.tries import Tries
from holdfast.errors import FormatError, InvalidConfig, NeedsReopen
from holdfast.types import BytesLike

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

PART_BYTES: Final = 8 << 20
"""A part of a multipart upload. Large objects have larger ones, which cost the service less: `MAX_PARTS` at most."""
LARGE_BYTES: Final = 128 << 20
LARGE_PART_BYTES: Final = 16 << 20
MAX_PARTS: Final = 9_000
IN_FLIGHT_BYTES: Final = 64 << 20
"""How much of an upload is on its way at once, unless two parts are more."""
PIECE_BYTES: Final = 4 << 20
"""How much of a stream is handed on at once."""
DRIP_BYTES: Final = 1 << 20
"""The same of one that broke off: what had come of a piece by then has to come once more."""
PAGE_KEYS: Final = 1_000
DELETE_KEYS: Final = 1_000
BULK_PATIENCE: Final = 4
"""How many times longer a request with a large body may take."""
BULK_BYTES: Final = 1 << 20
_ANY_KEY: Final = "store.json"
"""obstore takes a web page for an empty listing. So one is believed when the answer about an object is none."""
MAX_COPY_BYTES: Final = 5 << 30
"""What S3 copies in one request."""


class MakeStore(Protocol):
    """Gives a store of obstore: how long a request may take, for how long obstore may try again, for large bodies."""

    def __call__(self, timeout_seconds: float, retry_seconds: float, large: bool, /) -> ObjectStore: ...


class _Odd(Exception):
    """An answer that looks like a success, and is none."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error)
        self.failure = failure


class RemoteBucket:
    """Implements `Bucket` over one of obstore's stores."""

    def __init__(
        self,
        make: MakeStore,
        *,
        location: str,
        timeout_seconds: float = 30,
        retry_seconds: float = 120,
        limit: int | None = None,
        abort_stale: Callable[[int, Requests], int | None] | None = None,
    ) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
        from obstore.store import GCSStore, MemoryStore

        self.location = location
        self.requests = Requests(limit)
        self.timeout_seconds = timeout_seconds
        self.retry_seconds = retry_seconds
        self._obstore = obstore
        self._store = store = make(timeout_seconds, 0, False)
        self._bulk = make(timeout_seconds * BULK_PATIENCE, 0, True)
        self._parts = make(timeout_seconds * BULK_PATIENCE, retry_seconds, True)
        self._failures = (BaseError, FileNotFoundError, _Odd)
        self._taken = (AlreadyExistsError, PreconditionError)
        self._refused = (FileNotFoundError, *self._taken)
        self._needs_version = isinstance(store, GCSStore)
        self._tells_e_tags = not isinstance(store, MemoryStore)
        self._abort_stale = abort_stale
        self._closed = threading.Event()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"RemoteBucket({self.location!r})"

    # --- reading

    def head(self, key: str) -> Meta | None:
        tries = self._tries()
        while True:
            self.requests.count("head")
            try:
                return self._meta(self._obstore.head(self._store, key))
            except FileNotFoundError:
                return None
            except self._failures as error:
                failure = self._explain(error, "read")
                if not failure.answer.code and failure.answer.status in (400, 403):
                    failure = self._why(key, failure)  # the answer to a HEAD has no body that says why
                tries.again(failure)

    def get(self, key: str, *, max_bytes: int) -> tuple[bytes, Meta] | None:
        def read() -> tuple[bytes, Meta]:
            found = self._obstore.get(self._store, key)
            meta = self._meta(found.meta)
            if meta.size_bytes > max_bytes:
                raise FormatError(
                    f"{self.location}: {key} has {meta.size_bytes} bytes, and at most {max_bytes} belong there",
                    key=key,
                    size_bytes=meta.size_bytes,
                )
            data = bytes(found.bytes())
            self.requests.moved(bytes_in=len(data))
            return data, meta

        return self._read("get", read)

    def get_range(self, key: str, start: int, stop: int) -> bytes | None:
        pieces = self.iter(key, start, stop)
        return None if pieces is None else b"".join(pieces)

    def iter(self, key: str, start: int, stop: int) -> Iterator[bytes] | None:
        if not 0 <= start <= stop:
            raise ValueError(f"{start}..{stop} is no range")
        if start == stop:
            meta = self.head(key)
            if meta is not None and meta.size_bytes < stop:
                raise self._too_short(key, meta.size_bytes, stop)
            return None if meta is None else iter(())
        first = self._read("get", lambda: self._open_range(key, start, stop))
        return None if first is None else self._stream(key, start, stop, first)

    def _open_range(self, key: str, start: int, stop: int, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
        try:
            found = self._obstore.get(self._store, key, options={"range": (start, stop)})
        except self._failures as error:
            if _is_past_end(error):
                meta = self.head(key)
                if meta is not None and meta.size_bytes < stop:
                    raise self._too_short(key, meta.size_bytes, stop) from None
            raise
        meta = self._meta(found.meta)
        if found.range != (start, stop):
            raise self._too_short(key, meta.size_bytes, stop)
        return iter(found.stream(min_chunk_size=min(piece_bytes, stop - start)))

    def _stream(self, key: str, at: int, stop: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        tries = self._tries()
        begun = at
        while at < stop:
            try:
                piece = bytes(next(pieces, b""))
            except self._failures as error:
                failure = self._explain(error, "read")
            else:
                if piece:
                    self.requests.moved(bytes_in=len(piece))
                    piece = piece[: stop - at]
                    at += len(piece)
                    yield piece
                    continue
                failure = no_object_store(self.location)  # it ended before its own length
            if at - begun >= DRIP_BYTES:
                tries = self._tries()  # it goes on, if in parts; a drip of single bytes is no progress
            tries.again(failure)
            begun, again = at, self._read("get", partial(self._open_range, key, at, stop, DRIP_BYTES))
            if again is None:
                raise FormatError(f"{self.location}: {key} went away while it was read", key=key)
            pieces = again

    def list(self, prefix: str, *, after: str = "") -> Iterator[Meta]:
        ahead = ThreadPoolExecutor(1, thread_name_prefix="holdfast-list")  # without a second page, no thread
        try:
            yield from self._list(prefix, after, ahead)
        finally:
            ahead.shutdown(wait=False, cancel_futures=True)

    def _list(self, prefix: str, after: str, ahead: ThreadPoolExecutor) -> Iterator[Meta]:
        tries, begun = self._tries(), after
        while True:
            floor = after
            try:
                pages = self._obstore.list(
                    self._store, prefix.rstrip("/") or None, offset=after or None, chunk_size=PAGE_KEYS
                )
                page = self._page(pages)
                while True:
                    # the next page is on its way while this one is read
                    coming = ahead.submit(self._page, pages) if len(page) == PAGE_KEYS else None
                    for found in page:
                        key = found["path"]
                        if key > floor and key.startswith(prefix):
                            if key > after:
                                after = key
                            elif f"{key}/" < after:  # a slash at the end, which obstore takes off, counts
                                raise _Odd(self._unordered())
                            yield self._meta(found)
                    if coming is None:
                        if after == begun and self._tells_e_tags:
                            self.head(_ANY_KEY)
                        return
                    tries = self._tries()
                    page = coming.result()
            except self._failures as error:
                if "InvalidPath" in type(error).__name__:
                    raise FormatError(
                        f"{self.location}: an object that is none of ours has a name that cannot be listed "
                        f"(two slashes in a row, a dot as a part) under {prefix or 'the prefix'}, after {after!r}; "
                        "move it away",
                        after=after,
                    ) from None
                tries.again(self._explain(error, "list"))

    def _page(self, pages: Iterator[Any]) -> Any:
        self.requests.count("list")
        return next(pages, ())

    # --- writing

    def create(self, key: str, data: BytesLike) -> Meta | None:
        return self._put_if(key, data, None)

    def replace(self, key: str, data: BytesLike, e_tag: str) -> Meta | None:
        return self._put_if(key, data, e_tag)

    def _put_if(self, key: str, data: BytesLike, e_tag: str | None) -> Meta | None:
        """Put on a condition. After anything but a clear answer, what is there decides."""
        store = self._bulk if len(data) > BULK_BYTES else self._store
        tries = self._tries()
        clear = True
        while True:
            mode: Any = "create" if e_tag is None else self._condition(key, e_tag)
            if mode is None:
                return None if clear else self._made(key, data)
            self.requests.count("put")
            self.requests.moved(bytes_out=len(data))
            try:
                result = self._obstore.put(store, key, data, mode=mode, use_multipart=False)
                return self._put_meta(key, len(data), result.get("e_tag"))
            except self._failures as error:
                failure = self._explain(error, "write")
                taken = isinstance(error, self._taken) and _is_taken(failure)
                gone = e_tag is not None and isinstance(error, self._refused) and _is_missing(failure)
                if taken or gone:
                    return None if clear else self._made(key, data)
                tries.again(failure)
            clear = False
            found = self._look(key, data)
            if found is not None:
                meta, equal = found
                if equal:
                    return meta
                if e_tag is None or meta.e_tag != e_tag:
                    return None
            elif e_tag is not None:
                return None

    def _condition(self, key: str, e_tag: str) -> dict[str, str] | None:
        """Give obstore's form of If-Match; None when it cannot be met any more. GCS compares generations."""
        if not self._needs_version:
            return {"e_tag": e_tag}
        self.requests.count("head")
        found = self._read(None, lambda: self._obstore.head(self._store, key))
        if found is None or _quoted(found["e_tag"]) != e_tag:
            return None
        return {"e_tag": e_tag, "version": str(found["version"])}

    def _made(self, key: str, data: BytesLike) -> Meta | None:
        found = self._look(key, data)
        return found[0] if found is not None and found[1] else None

    def _look(self, key: str, data: BytesLike) -> tuple[Meta, bool] | None:
        """Say what is there, and whether it has these bytes."""

        def read() -> tuple[Meta, bool]:
            found = self._obstore.get(self._store, key)
            meta = self._meta(found.meta)
            if meta.size_bytes != len(data):
                return meta, False
            body = bytes(found.bytes())
            self.requests.moved(bytes_in=len(body))
            return meta, body == bytes(data)

        return self._read("get", read)

    def upload(self, key: str, pieces: Iterable[BytesLike], size_bytes: int) -> Meta:
        if size_bytes > PART_BYTES:
            return self._upload_parts(key, pieces, size_bytes)
        data = b"".join(exactly(pieces, size_bytes))
        store = self._bulk if size_bytes > BULK_BYTES else self._store

        def put() -> Meta:
            self.requests.moved(bytes_out=size_bytes)
            result = self._obstore.put(store, key, data, use_multipart=False)
            return self._put_meta(key, size_bytes, result.get("e_tag"))

        return self._write("put", put)

    def _upload_parts(self, key: str, pieces: Iterable[BytesLike], size_bytes: int) -> Meta:
        usual = PART_BYTES if size_bytes < LARGE_BYTES else LARGE_PART_BYTES
        part_bytes = max(usual, -(-size_bytes // MAX_PARTS))
        at_once = max(2, IN_FLIGHT_BYTES // part_bytes)
        before = self.head(key)
        self.requests.count("put", 2 + -(-size_bytes // part_bytes))
        source = _Source(exactly(pieces, size_bytes), self.requests)
        try:
            result = self._obstore.put(
                self._parts, key, source, use_multipart=True, chunk_size=part_bytes, max_concurrency=at_once
            )
        except BaseException as error:
            if source.error is not None:
                raise source.error from None
            if not isinstance(error, self._failures):
                raise
            failure = self._explain(error, "write")
            found = self.head(key) if source.ended else None
            if found is None or found.size_bytes != size_bytes or (before and before.e_tag == found.e_tag):
                raise failure.error from None
            return found  # the reply was lost, or the completion was applied twice
        return self._put_meta(key, size_bytes, result.get("e_tag"))

    def copy(self, source: str, target: str) -> Meta | None:
        meta = self.head(source)
        if meta is None:
            return None
        if meta.size_bytes > MAX_COPY_BYTES:
            pieces = self.iter(source, 0, meta.size_bytes)
            return None if pieces is None else self.upload(target, pieces, meta.size_bytes)
        try:
            self._write("put", lambda: self._obstore.copy(self._bulk, source, target), absent=True)
        except FileNotFoundError:
            return None
        return self.head(target)

    def delete(self, keys: Sequence[str]) -> None:
        wanted = list(dict.fromkeys(keys))
        for first in range(0, len(wanted), DELETE_KEYS):
            batch = wanted[first : first + DELETE_KEYS]
            if not self._delete(batch):  # GCS and Azure mind what is not there, and stop at it
                for key in batch:
                    self._delete([key])

    def _delete(self, keys: Sequence[str]) -> bool:
        try:
            self._write(
                "delete", lambda: self._obstore.delete(self._store, [*keys]), doing="delete", absent=True
            )
        except FileNotFoundError:
            return False
        return True

    def abort_stale(self, before_ms: int) -> int | None:
        self._tries()  # it is open
        return None if self._abort_stale is None else self._abort_stale(before_ms, self.requests)

    def close(self) -> None:
        self._closed.set()

    # --- how a request is made

    def _tries(self) -> Tries:
        if self._closed.is_set() or self._pid != os.getpid():
            raise NeedsReopen(f"{self.location} is closed, or was opened by another process: open it anew")
        return Tries(self.retry_seconds, self._closed)

    def _read(self, kind: Kind | None, action: Callable[[], T]) -> T | None:
        """Read, again and again; None when there is no such object."""
        try:
            return self._write(kind, action, doing="read", absent=True)
        except FileNotFoundError:
            return None

    def _write(
        self, kind: Kind | None, action: Callable[[], T], *, doing: str = "write", absent: bool = False
    ) -> T:
        """Do what may be done twice, again and again. With `absent`, a missing object is a `FileNotFoundError`."""
        tries = self._tries()
        while True:
            if kind is not None:
                self.requests.count(kind)
            try:
                return action()
            except self._failures as error:
                failure = self._explain(error, doing)
                if (
                    absent
                    and _is_missing(failure)
                    and (failure.answer.status or isinstance(error, FileNotFoundError))
                ):
                    raise FileNotFoundError from None
                tries.again(failure)

    def _why(self, key: str, failure: Failure) -> Failure:
        self.requests.count("get")
        try:
            self._obstore.get(self._store, key, options={"range": (0, 1)})
        except self._failures as error:
            found = self._explain(error, "read")
            return found if found.answer.code else failure
        return failure

    def _explain(self, error: BaseException, doing: str) -> Failure:
        return error.failure if isinstance(error, _Odd) else explain(error, doing, self.location)

    def _meta(self, found: Any) -> Meta:
        if found["e_tag"] is None and self._tells_e_tags:
            raise _Odd(no_object_store(self.location))
        return Meta(
            found["path"],
            found["size"],
            _quoted(found["e_tag"]),
            int(found["last_modified"].timestamp() * 1000),
        )

    def _put_meta(self, key: str, size_bytes: int, e_tag: str | None) -> Meta:
        return Meta(key, size_bytes, _quoted(e_tag), int(time.time() * 1000))

    def _unordered(self) -> Failure:
        error = InvalidConfig(
            f"{self.location}: this service does not list in order of keys, which a store relies on; use another kind "
            "of bucket (a directory bucket of S3 is one that does not)",
            location=self.location,
        )
        return Failure(error, False, parse_answer(error))

    def _too_short(self, key: str, size_bytes: int, stop: int) -> FormatError:
        return FormatError(
            f"{self.location}: {key} has {size_bytes} bytes, and {stop} were expected",
            key=key,
            size_bytes=size_bytes,
        )


def _quoted(e_tag: str | None) -> str | None:
    """Give an ETag as HTTP has it: listings of Azure leave the quotes out."""
    return e_tag if e_tag is None or e_tag.endswith('"') else f'"{e_tag}"'


def _is_taken(failure: Failure) -> bool:
    """Whether a condition was not met. A 409 says on S3 that somebody is at it just now, on Azure that it is taken."""
    return failure.answer.status in (0, 412) or failure.answer.code == "BlobAlreadyExists"


def _is_missing(failure: Failure) -> bool:
    """Whether there is no such object, in the words of an object store. obstore's memory has no status."""
    answer = failure.answer
    said = answer.code in ("", "NoSuchKey", "BlobNotFound", "NoSuchVersion")
    return (
        said and answer.status in (0, 404) and not (answer.foreign or answer.transport or answer.credentials)
    )


def _is_past_end(error: BaseException) -> bool:
    return any(word in str(error) for word in ("UnexpectedRange", "StartTooLarge", "status: 416"))


class _Source:
    """Feeds obstore with pieces, and remembers their errors, which obstore wraps."""

    def __init__(self, pieces: Iterator[BytesLike], requests: Requests) -> None:
        self._pieces = pieces
        self._requests = requests
        self.error: BaseException | None = None
        self.ended = False

    def __iter__(self) -> Iterator[BytesLike]:
        return self

    def __next__(self) -> BytesLike:
        try:
            piece = next(self._pieces)
        except StopIteration:
            self.ended = True
            raise
        except BaseException as error:
            self.error = error
            raise
        self._requests.moved(bytes_out=len(piece))
        return piece
