"""Uploads in parts that were broken off: S3 keeps, and bills, their parts until somebody aborts them.

obstore knows no call for it, so two requests are signed here, as
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html says. Azure drops what was not
committed after a week by itself; MinIO after a day, and lists only the uploads of a key that is named.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

from holdfast.backend.objects.answers import explain
from holdfast.backend.objects.bucket import Requests
from holdfast.backend.objects.layout import BLOBS, DAMAGED
from holdfast.backend.objects.place import BucketPlace, read_certificates
from holdfast.backend.objects.probe import PROBE
from holdfast.backend.objects.tries import Tries

MAX_ANSWER_BYTES: Final = 16 << 20
OURS: Final = (BLOBS, DAMAGED, PROBE)
"""Where objects that go up in parts have their keys."""
_EMPTY: Final = hashlib.sha256(b"").hexdigest()


class StaleUpload(NamedTuple):
    """An upload that was begun and neither completed nor aborted; `key` without the prefix."""

    key: str
    upload_id: str
    begun: float
    """Seconds since 1970, by the provider's clock."""


def abort_stale_uploads(
    place: BucketPlace, older_than_seconds: float, requests: Requests | None = None
) -> list[StaleUpload] | None:
    """Abort the uploads of a store's own objects that were begun so long ago, and give them; idempotent.

    What others may have under the prefix is left alone. None where this cannot be done: it is not S3, or the
    credentials are found by obstore alone (a machine's role); there a lifecycle rule of the bucket does it. `requests`
    counts. Errors are those of a bucket.
    """
    if place.provider != "s3" or place.credentials is None:
        return None
    service = _Service(place, place.credentials(), Requests() if requests is None else requests)
    before = time.time() - older_than_seconds
    stale = [one for one in service.uploads() if one.begun < before and one.key.startswith(OURS)]
    for upload in stale:
        service.abort(upload)
    return stale


class _Service:
    """The two requests, one after the other."""

    def __init__(self, place: BucketPlace, credentials: Mapping[str, object], requests: Requests) -> None:
        self._requests = requests
        options = dict(place.options)
        self._place = place
        self._keys = credentials
        self._region = str(options.get("region") or "us-east-1")
        self._url = urlsplit(place.endpoint or f"https://s3.{self._region}.amazonaws.com")
        hosted = bool(options.get("virtual_hosted_style_request")) and bool(place.endpoint)
        self._base = self._url.path.rstrip("/") + ("" if hosted else f"/{place.bucket}")
        self._prefix = f"{place.prefix}/" if place.prefix else ""

    def uploads(self) -> Iterator[StaleUpload]:
        query = {"uploads": "", "prefix": self._prefix}
        while True:
            root = self._ask("GET", "", query, "list")
            assert root is not None
            for found in root.iter("Upload"):
                key, begun = found.findtext("Key", ""), found.findtext("Initiated", "")
                if key.startswith(self._prefix) and begun:
                    when = datetime.fromisoformat(begun)
                    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
                    yield StaleUpload(
                        key[len(self._prefix) :], found.findtext("UploadId", ""), when.timestamp()
                    )
            key, number = root.findtext("NextKeyMarker", ""), root.findtext("NextUploadIdMarker", "")
            if root.findtext("IsTruncated") != "true" or not key:
                return
            query |= {"key-marker": key, "upload-id-marker": number}

    def abort(self, upload: StaleUpload) -> None:
        self._ask("DELETE", f"{self._prefix}{upload.key}", {"uploadId": upload.upload_id}, "delete")

    def _ask(self, method: str, key: str, query: Mapping[str, str], doing: str) -> ElementTree.Element | None:
        """Ask, again and again; both requests may be made twice."""
        tries = Tries(self._place.retry_seconds, threading.Event())
        while True:
            self._requests.count("list" if method == "GET" else "delete")
            try:
                body = self._ask_once(method, key, query)
                return _parse(body) if method == "GET" else None
            except _Refused as refused:
                tries.again(explain(refused, doing, self._place.location))

    def _ask_once(self, method: str, key: str, query: Mapping[str, str]) -> bytes:
        path = quote((self._base + (f"/{key}" if key else "")) or "/", safe="/-_.~")
        asked = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(query.items()))
        connection = self._connect()
        try:
            connection.request(method, f"{path}?{asked}", headers=self._sign(method, path, asked))
            answer = connection.getresponse()
            body = answer.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            timeout = isinstance(error, TimeoutError)
            raise _Refused(f"kind: {'Timeout' if timeout else 'Connect'}") from None
        finally:
            connection.close()
        gone = answer.status == 404 and b"NoSuchUpload" in body  # another machine aborted or completed it
        if answer.status >= 300 and not gone:
            raise _Refused(f"status code: {answer.status}: {body.decode(errors='replace')}")
        return body

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._place.timeout_seconds)
        context = ssl.create_default_context()
        if self._place.ca_file:
            context.load_verify_locations(
                cadata=read_certificates(self._place.ca_file).decode("ascii", "replace")
            )
        return http.client.HTTPSConnection(host, port, timeout=self._place.timeout_seconds, context=context)

    def _sign(self, method: str, path: str, query: str) -> dict[str, str]:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": self._url.netloc, "x-amz-content-sha256": _EMPTY, "x-amz-date": now}
        if token := self._keys.get("token"):
            headers["x-amz-security-token"] = str(token)
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        request = hashlib.sha256(
            f"{method}\n{path}\n{query}\n{lines}\n{names}\n{_EMPTY}".encode()
        ).hexdigest()
        scope = f"{now[:8]}/{self._region}/s3/aws4_request"
        key = f"AWS4{self._keys['secret_access_key']}".encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{request}"
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        who = f"Credential={self._keys['access_key_id']}/{scope}"
        return headers | {
            "authorization": f"AWS4-HMAC-SHA256 {who}, SignedHeaders={names}, Signature={signature}"
        }


class _Refused(Exception):
    """What went wrong, in the words that `explain` reads."""


def _parse(body: bytes) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(body)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]  # some give the namespace, some do not
            if element.tag == "Initiated" and element.text:
                datetime.fromisoformat(element.text)
    except (ElementTree.ParseError, LookupError, ValueError):  # an encoding, a time that there is not
        raise _Refused("InvalidListResponse") from None
    if root.tag != "ListMultipartUploadsResult":
        raise _Refused("InvalidListResponse")
    return root
