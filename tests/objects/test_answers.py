"""What a provider may answer, and what we make of it: the right error, what to do, and no word of the answer itself."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from holdfast.backend.objects.answers import Failure, parse_answer
from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.credentials import Keys
from holdfast.backend.objects.opening import open_remote
from holdfast.backend.objects.place import BucketPlace
from holdfast.backend.objects.tries import TOLD_FAILURES, Tries
from holdfast.errors import (
    FormatError,
    HoldfastError,
    InvalidConfig,
    NoSpace,
    PermissionDenied,
    StoreNotFound,
    Unavailable,
)
from holdfast.secret import Secret

SECRET = "s3cr3t-of-nobody"


class Service:
    """Answers everything with one answer."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 200, dict[str, str](), b""
        self.asked: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

            def parse_request(self) -> bool:
                parsed = super().parse_request()
                setattr(self, f"do_{self.command}", self.answer)
                return parsed

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                service.asked.append(f"{self.command} {self.path}")
                self.send_response_only(service.status)
                for name, value in {"content-length": str(len(service.body)), **service.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(service.body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def says(self, status: int, code: str = "", more: str = "") -> None:
        self.status, self.headers = status, {}
        secret = f"<StringToSign>{SECRET}</StringToSign><AWSAccessKeyId>{SECRET}</AWSAccessKeyId>"
        said = f"<Error><Code>{code}</Code><Message>It was {SECRET}</Message>{secret}{more}</Error>"
        self.body = said.encode() if code else b""


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.server.shutdown()
    service.server.server_close()


def bucket_at(endpoint: str, **more: Any) -> Bucket:
    options = (("endpoint", endpoint), ("region", "us-east-1"))
    return open_remote(
        BucketPlace(
            "s3", bucket="photos", prefix="a/b", endpoint=endpoint, options=options, allow_http=True,
            credentials=Keys(Secret("key"), Secret(SECRET)), timeout_seconds=5, **{"retry_seconds": 0, **more},
        )
    )  # fmt: skip


CALLS: dict[str, Callable[[Bucket], object]] = {
    "head": lambda bucket: bucket.head("k"),
    "get": lambda bucket: bucket.get("k", max_bytes=100),
    "get_range": lambda bucket: bucket.get_range("k", 0, 10),
    "list": lambda bucket: list(bucket.list("tags/")),
    "create": lambda bucket: bucket.create("k", b"x"),
    "replace": lambda bucket: bucket.replace("k", b"x", '"e"'),
    "upload": lambda bucket: bucket.upload("k", [b"x"], 1),
    "upload in parts": lambda bucket: bucket.upload("k", [bytes(20 << 20)], 20 << 20),
    "copy": lambda bucket: bucket.copy("k", "l"),
    "delete": lambda bucket: bucket.delete(["k"]),
}
ANSWERS: list[tuple[int, str, type[HoldfastError], str]] = [
    (404, "NoSuchBucket", StoreNotFound, "no such bucket"),
    (403, "AccessDenied", PermissionDenied, "lack that permission"),
    (403, "InvalidAccessKeyId", PermissionDenied, "not accepted"),
    (403, "SignatureDoesNotMatch", PermissionDenied, "not accepted"),
    (403, "AuthenticationFailed", PermissionDenied, "not accepted"),
    (401, "Whatever", PermissionDenied, "not accepted"),
    (400, "ExpiredToken", PermissionDenied, "have expired"),
    (400, "TokenRefreshRequired", PermissionDenied, "have expired"),
    (403, "RequestTimeTooSkewed", PermissionDenied, "set the clock"),
    (400, "AuthorizationHeaderMalformed", InvalidConfig, "another region"),
    (301, "PermanentRedirect", InvalidConfig, "another region"),
    (507, "XMinioStorageFull", NoSpace, "no space left"),
    (403, "QuotaExceeded", NoSpace, "quota"),
    (501, "NotImplemented", InvalidConfig, "refuses"),
    (400, "SomethingNew", InvalidConfig, "refuses"),
    (500, "InternalError", Unavailable, "may work later"),
    (503, "SlowDown", Unavailable, "may work later"),
    (429, "TooManyRequests", Unavailable, "may work later"),
    (400, "RequestTimeout", Unavailable, "may work later"),
]


@pytest.mark.parametrize(("status", "code", "kind", "words"), ANSWERS)
def test_what_is_answered_becomes_the_right_error(
    service: Service, status: int, code: str, kind: type[HoldfastError], words: str
) -> None:
    bucket = bucket_at(service.endpoint)
    service.says(status, code)
    for name, call in CALLS.items():
        if name in ("head", "copy") and status == 404:  # the answer to a HEAD has no body
            assert call(bucket) is None
            continue
        with pytest.raises(kind, match=words) as caught:
            pytest.fail(f"{name} gives {call(bucket)!r}")
        assert type(caught.value) is kind, name
        assert caught.value.location == "s3://photos/a/b"
        seen = f"{caught.value!r} {caught.value} {caught.value.to_dict()} {caught.value.__cause__}"
        assert SECRET not in seen
        assert caught.value.__suppress_context__


def test_the_right_region_is_named(service: Service) -> None:
    service.says(400, "AuthorizationHeaderMalformed", "<Region>eu-north-1</Region>")
    with pytest.raises(InvalidConfig, match='set region = "eu-north-1"'):
        bucket_at(service.endpoint).head("k")


def test_an_answer_without_a_word_is_asked_again_where_words_come(service: Service) -> None:
    """A HEAD that is refused says nothing: a GET says why."""
    service.says(403, "RequestTimeTooSkewed")
    with pytest.raises(PermissionDenied, match="clock"):
        bucket_at(service.endpoint).head("k")
    assert [line.split()[0] for line in service.asked] == ["HEAD", "GET"]


def test_a_page_is_no_object_store(service: Service) -> None:
    service.body = b"<!DOCTYPE html><html><body>Sign in</body></html>"
    bucket = bucket_at(service.endpoint)
    for status in (200, 404):
        service.status = status
        for name, call in CALLS.items():
            if status == 404 and name in ("head", "copy", "list"):
                continue  # no body, or another error
            with pytest.raises(InvalidConfig, match=r"no object store|refuses"):
                pytest.fail(f"{name} gives {call(bucket)!r} at {status}")


def listing(*keys: str) -> bytes:
    more = "<Size>3</Size><ETag>e</ETag><LastModified>2026-11-21T16:00:00Z</LastModified>"
    found = "".join(f"<Contents><Key>{key}</Key>{more}</Contents>" for key in keys)
    return f"<ListBucketResult>{found}</ListBucketResult>".encode()


def test_objects_of_others_in_a_listing(service: Service) -> None:
    bucket = bucket_at(service.endpoint)
    service.body = listing("a/b/", "a/b/tags-", "a/b/tags/", "a/b/tags/x", "a/b/tags/ü #?%41 z")
    assert [meta.key for meta in bucket.list("tags/")] == ["tags/x", "tags/ü #?%41 z"]
    assert [meta.key for meta in bucket.list("")] == ["tags-", "tags", "tags/x", "tags/ü #?%41 z"]
    service.body = listing("a/b/tags//x")
    with pytest.raises(FormatError, match="move it away"):
        list(bucket.list(""))


def test_a_listing_without_order_is_not_taken(service: Service) -> None:
    service.body = listing("a/b/tags/x", "a/b/tags/c")
    with pytest.raises(InvalidConfig, match="in order of keys"):
        list(bucket_at(service.endpoint).list(""))


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (None, "nothing can be reached"),
        (lambda connection: connection.recv(9999), "the connection broke"),
        (
            lambda connection: (connection.recv(9999), connection.send(b"SSH-2.0-OpenSSH\r\n")),
            "does not speak HTTP",
        ),
        (
            lambda connection: (connection.recv(9999), connection.send(b"HTTP/1.1 200 OK\r\nETag")),
            "connection broke",
        ),
    ],
)
def test_where_there_is_no_service(act: Callable[[socket.socket], object] | None, words: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if act is not None:
            listener.listen()

            def serve() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    act(connection)
                    connection.close()

            threading.Thread(target=serve, daemon=True).start()
        bucket = bucket_at(f"http://127.0.0.1:{listener.getsockname()[1]}")
        for call in CALLS.values():
            with pytest.raises(Unavailable, match=words):
                call(bucket)
        listener.shutdown(socket.SHUT_RDWR) if act is not None else None


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(Unavailable, match="nothing can be reached"):
        bucket_at("http://nobody.invalid").head("k")


def test_tls_where_none_is_spoken(service: Service) -> None:
    with pytest.raises(InvalidConfig, match="certificate"):
        bucket_at(service.endpoint.replace("http", "https")).head("k")


def test_an_object_that_is_larger_than_it_may_be_is_not_fetched(service: Service) -> None:
    service.headers = {"etag": '"e"', "last-modified": "Sat, 21 Nov 2026 16:00:00 GMT"}
    service.body = bytes(200)
    with pytest.raises(FormatError, match="200 bytes"):
        bucket_at(service.endpoint).get("k", max_bytes=100)


def test_a_range_that_is_ignored_is_not_believed(service: Service) -> None:
    service.headers = {"etag": '"e"', "last-modified": "Sat, 21 Nov 2026 16:00:00 GMT"}
    service.body = bytes(200)
    with pytest.raises(HoldfastError):
        bucket_at(service.endpoint).get_range("k", 0, 10)


def test_who_waits_for_a_service_that_is_away_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Never(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return False

    error = Unavailable("s3://bucket: nobody answers")
    failure = Failure(error, True, parse_answer(error))
    tries = Tries(60, Never())
    for _ in range(TOLD_FAILURES - 1):
        tries.again(failure)
    assert not caplog.messages
    for _ in range(3):
        tries.again(failure)
    (message,) = caplog.messages
    assert re.fullmatch(r"s3://bucket: nobody answers; trying again for (59|60) seconds more", message)
