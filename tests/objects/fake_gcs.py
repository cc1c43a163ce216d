"""GCS as far as obstore speaks to it: the shapes of its XML API, with generations, kept in memory.

No emulator that takes obstore's writes can be installed, so this stands in for one. It was written from
https://cloud.google.com/storage/docs/xml-api and from the requests that obstore sends, not from a recording.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1_000


class Stored(NamedTuple):
    data: bytes
    generation: int
    modified: float

    @property
    def e_tag(self) -> str:
        return f'"{hashlib.md5(self.data, usedforsecurity=False).hexdigest()}"'


class FakeGcs:
    """One bucket, `photos`. A context manager."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.mutex = threading.Lock()
        self.numbers = itertools.count(1_700_000_000_000_000)
        self._server = _Server(("127.0.0.1", 0), self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def put(self, key: str, data: bytes, match: str | None) -> Stored | None:
        """Store on a condition; None when it is not met."""
        with self.mutex:
            before = self.objects.get(key)
            if match is not None and int(match) != (before.generation if before else 0):
                return None
            stored = self.objects[key] = Stored(data, next(self.numbers), time.time())
            return stored

    def __enter__(self) -> FakeGcs:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], gcs: FakeGcs) -> None:
        super().__init__(address, _Handler)
        self.gcs = gcs


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        setattr(self, f"do_{self.command}", self._handle)
        return parsed

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        _, bucket, *rest = unquote(parts.path).split("/", 2)
        key = rest[0] if rest else ""
        if bucket != "photos":
            return self._fail(404, "NoSuchBucket")
        if not key:
            return self._list(query)
        if self.command in ("GET", "HEAD"):
            return self._get(key)
        if self.command == "DELETE":
            return self._delete(key, query)
        if "uploads" in query or "uploadId" in query:
            return self._multipart(key, query, body)
        if source := self.headers.get("x-goog-copy-source"):
            found = self.server.gcs.objects.get(unquote(source).removeprefix("photos/"))
            if found is None:
                return self._fail(404, "NoSuchKey")
            body = found.data
        stored = self.server.gcs.put(key, body, self.headers.get("x-goog-if-generation-match"))
        return self._fail(412, "PreconditionFailed") if stored is None else self._answer(200, stored)

    def _multipart(self, key: str, query: dict[str, str], body: bytes) -> None:
        gcs = self.server.gcs
        if "uploads" in query:
            token = str(next(gcs.numbers))
            gcs.uploads[token] = {}
            return self._xml(
                f"<InitiateMultipartUploadResult><UploadId>{token}</UploadId></InitiateMultipartUploadResult>"
            )
        if query["uploadId"] not in gcs.uploads:
            return self._fail(404, "NoSuchUpload")
        pieces = gcs.uploads[query["uploadId"]]
        if "partNumber" in query:
            pieces[int(query["partNumber"])] = body
            return self._answer(200, Stored(body, 0, time.time()))
        del gcs.uploads[query["uploadId"]]
        stored = gcs.put(key, b"".join(pieces[number] for number in sorted(pieces)), None)
        assert stored is not None
        e_tag = escape(stored.e_tag, {'"': "&quot;"})
        return self._xml(
            f"<CompleteMultipartUploadResult><ETag>{e_tag}</ETag></CompleteMultipartUploadResult>", stored
        )

    def _get(self, key: str) -> None:
        stored = self.server.gcs.objects.get(key)
        if stored is None:
            return self._fail(404, "NoSuchKey")
        if (wanted := self.headers.get("range")) is None:
            return self._answer(200, stored, stored.data)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop, size = int(first), int(last) + 1, len(stored.data)
        if start >= size:
            return self._fail(416, "InvalidRange")
        body = stored.data[start:stop]
        return self._answer(206, stored, body, f"bytes {start}-{start + len(body) - 1}/{size}")

    def _delete(self, key: str, query: dict[str, str]) -> None:
        gcs = self.server.gcs
        if "uploadId" in query:
            gcs.uploads.pop(query["uploadId"], None)
        elif gcs.objects.pop(key, None) is None:
            return self._fail(404, "NoSuchKey")
        self.send_response_only(204)
        self.end_headers()
        return None

    def _list(self, query: dict[str, str]) -> None:
        after = query.get("continuation-token") or query.get("start-after", "")
        prefix = query.get("prefix", "")
        found = sorted(key for key in self.server.gcs.objects if key > after and key.startswith(prefix))
        page = found[:PAGE]
        rows = []
        for key in page:
            stored = self.server.gcs.objects[key]
            modified = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(stored.modified))
            rows.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(stored.data)}</Size><ETag>{escape(stored.e_tag)}</ETag>"
                f"<Generation>{stored.generation}</Generation><LastModified>{modified}.000Z</LastModified></Contents>"
            )
        more = (
            f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if len(found) > PAGE else ""
        )
        truncated = "true" if more else "false"
        self._xml(
            f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{''.join(rows)}{more}</ListBucketResult>"
        )

    def _fail(self, status: int, code: str) -> None:
        self._send(status, {}, f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode())

    def _xml(self, text: str, stored: Stored | None = None) -> None:
        self._send(200, {} if stored is None else _headers(stored), f'<?xml version="1.0"?>{text}'.encode())

    def _answer(self, status: int, stored: Stored, body: bytes = b"", content_range: str = "") -> None:
        self._send(
            status, _headers(stored) | ({"content-range": content_range} if content_range else {}), body
        )

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _headers(stored: Stored) -> dict[str, str]:
    return {
        "etag": stored.e_tag,
        "x-goog-generation": str(stored.generation),
        "last-modified": formatdate(stored.modified, usegmt=True),
    }
