"""A proxy between a client and a real HTTP server that fails on purpose, by request.

Faults of a connection alone (toxiproxy) cannot answer with a status or spoil a body; what can (mitmproxy) brings
fifty packages. This one knows what S3 and its clients speak, bodies with a length or in chunks, and no more.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit


class HttpFault(StrEnum):
    """What happens to a request. Where nothing else is said, it does not reach the server."""

    S500 = "500"
    S503 = "503"
    """With Retry-After."""
    S409 = "409"
    S412 = "412"
    EXPIRED = "expired"
    """What a provider says of credentials that are too old."""
    SKEWED = "skewed"
    """What it says of a clock that is wrong."""
    DENIED = "denied"
    """What it says of credentials without that permission."""
    HTML = "html"
    """A page for people, with status 200."""
    DROP_BEFORE = "drop-before"
    DROP_AFTER = "drop-after"
    """Applied; the connection breaks before the answer."""
    HALF_BODY = "half-body"
    """Applied; the connection breaks in the middle of the body of the answer."""
    SHORT_BODY = "short-body"
    """Applied; half of the body of the answer counts as the whole."""
    FLIPPED = "flipped"
    """Applied; one bit of the body of the answer is another one."""
    FLIPPED_REQUEST = "flipped-request"
    """One bit of the body of the request is another one when it reaches the server."""
    HANG_BEFORE = "hang-before"
    HANG_AFTER = "hang-after"
    """Applied; no answer comes."""
    DRIP = "drip"
    """Applied; the body of the answer comes a byte at a time."""


_STATUSES: Final = {
    HttpFault.S500: (500, "InternalError"),
    HttpFault.S503: (503, "SlowDown"),
    HttpFault.S409: (409, "OperationAborted"),
    HttpFault.S412: (412, "PreconditionFailed"),
    HttpFault.EXPIRED: (400, "ExpiredToken"),
    HttpFault.SKEWED: (403, "RequestTimeTooSkewed"),
    HttpFault.DENIED: (403, "AccessDenied"),
}
_PAGE: Final = b"<!DOCTYPE html><html><body><h1>Welcome</h1></body></html>"
_OF_THE_CONNECTION: Final = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length"})


class Request(NamedTuple):
    """A request as it came; numbers start at 1."""

    number: int
    method: str
    path: str
    query: str
    size_bytes: int


class FaultProxy:
    """Listens on the loopback and passes on to `upstream` (http://HOST:PORT). A context manager.

    Without a fault it changes nothing, the `Host` header included, so that signatures hold.
    """

    def __init__(self, upstream: str, *, drip_seconds: float = 0.05, retry_after_seconds: int = 1) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.drip_seconds = drip_seconds
        self.retry_after_seconds = retry_after_seconds
        self.flip_at = 0.5
        """Where in a body the bit is that is another one: 0 at its first byte, almost 1 at its last."""
        self.requests: list[Request] = []
        self.hits: list[Request] = []
        self.on_request: Callable[[Request], None] | None = None
        """Called before a request is passed on."""
        self.drops: frozenset[str] = frozenset()
        """Headers of requests that the server does not get, in lower case; they must not be signed."""
        self._fault: HttpFault | None = None
        self._where: Callable[[Request], bool] | None = None
        self._wait = self._times = 0
        self._mutex = threading.Lock()
        self._over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def arm(
        self,
        fault: HttpFault,
        at: int = 1,
        *,
        times: int = 1,
        where: Callable[[Request], bool] | None = None,
    ) -> None:
        """Fail at the request that comes `at` from now (1: the next) of those for which `where` holds, and so often."""
        with self._mutex:
            self._fault, self._wait, self._times, self._where = fault, at - 1, times, where
            self.hits.clear()

    def heal(self) -> None:
        """Fail no more."""
        self._fault = None

    def decide(self, method: str, target: str, size_bytes: int) -> HttpFault | None:
        """Note a request, and say what befalls it."""
        parts = urlsplit(target)
        with self._mutex:
            request = Request(len(self.requests) + 1, method, parts.path, parts.query, size_bytes)
            self.requests.append(request)
            fault = self._fault
            if fault is None or not (self._where is None or self._where(request)):
                fault = None
            elif self._wait > 0:
                self._wait -= 1
                fault = None
            elif self._times <= 0:
                fault = None
            else:
                self._times -= 1
                self.hits.append(request)
        if self.on_request is not None:
            self.on_request(request)
        return fault

    def pass_on(
        self, method: str, target: str, headers: Any, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the server, and give status, headers and body of its answer."""
        connection = http.client.HTTPConnection(*self._upstream, timeout=60)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in _OF_THE_CONNECTION | self.drops:
                    connection.putheader(name, value)
            if body or method in ("PUT", "POST"):
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in _OF_THE_CONNECTION]
            if method == "HEAD" and (length := answer.getheader("content-length")) is not None:
                kept.append(("content-length", length))
            return answer.status, kept, data
        finally:
            connection.close()

    def hang(self) -> None:
        """Wait until the proxy ends."""
        self._over.wait()

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        super().__init__(address, _Handler)
        self.proxy = proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def parse_request(self) -> bool:
        """Any method is handled alike."""
        parsed = super().parse_request()
        setattr(self, f"do_{self.command}", self._handle)
        return parsed

    def _handle(self) -> None:
        proxy = self.server.proxy
        body = self._read_body()
        fault = proxy.decide(self.command, self.path, len(body))
        if fault is HttpFault.DROP_BEFORE:
            return self._drop()
        if fault is HttpFault.HANG_BEFORE:
            return self._hang()
        if fault is HttpFault.HTML:
            return self._answer(200, [("content-type", "text/html")], _PAGE)
        if fault in _STATUSES:
            status, code = _STATUSES[fault]
            said = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'
            later = [("retry-after", str(proxy.retry_after_seconds))] if status == 503 else []
            return self._answer(status, [("content-type", "application/xml"), *later], said.encode())
        if fault is HttpFault.FLIPPED_REQUEST:
            body = _flip(body, proxy.flip_at)
        try:
            status, headers, data = proxy.pass_on(self.command, self.path, self.headers, body)
        except (OSError, http.client.HTTPException):
            return self._drop()  # the server is not there: no more is the connection to it
        if fault is HttpFault.DROP_AFTER:
            return self._drop()
        if fault is HttpFault.HANG_AFTER:
            return self._hang()
        if fault is HttpFault.FLIPPED:
            data = _flip(data, proxy.flip_at)
        if fault is HttpFault.SHORT_BODY:
            data = data[: len(data) // 2]
        return self._answer(status, headers, data, fault)

    def _read_body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, fault: HttpFault | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("content-length", str(len(data)))
        elif self.command == "HEAD" and not any(name == "content-length" for name, _ in headers):
            self.send_header("content-length", "0")
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault is HttpFault.HALF_BODY:
            self.wfile.write(data[: len(data) // 2])
            return self._drop()
        if fault is HttpFault.DRIP:
            for at in range(len(data)):
                self.wfile.write(data[at : at + 1])
                self.wfile.flush()
                if self.server.proxy._over.wait(self.server.proxy.drip_seconds):
                    return self._drop()
            return None
        self.wfile.write(data)
        return None

    def _hang(self) -> None:
        self.server.proxy.hang()
        self._drop()

    def _drop(self) -> None:
        """Break the connection as a crash does: no farewell, what was not read is lost."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def _flip(data: bytes, where: float) -> bytes:
    if not data:
        return data
    at = int(len(data) * where)
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
