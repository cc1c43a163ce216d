"""What is configured wrongly, against real servers: each a typed error that says what to do, with no secret in it."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.backend.objects.check import BucketReport, check_bucket
from holdfast.backend.objects.credentials import Keys
from holdfast.backend.objects.opening import open_bucket
from holdfast.backend.objects.place import BucketPlace
from holdfast.cli import main
from holdfast.config import BlobStore, Config
from holdfast.config.places import place_of
from holdfast.errors import FormatError, HoldfastError, InvalidConfig, PermissionDenied, StoreNotFound
from holdfast.secret import Secret
from holdfast.servers import Access, LocalServer

DATA = Path(__file__).parent / "data"
Servers = Callable[[str], LocalServer]


@pytest.fixture(params=["minio", "versitygw"])
def access(request: pytest.FixtureRequest, servers: Servers) -> Access:
    return servers(request.param).access


def place(access: Access, prefix: str = "", bucket: str = "", **keys: Any) -> BucketPlace:
    """Configure a place as a user does."""
    settings: dict[str, Any] = {
        "endpoint": access.endpoint,
        "region": access.region,
        "access_key": Secret(access.access_key),
        "secret_key": Secret(access.secret_key),
        "retry_seconds": 5.0,
        **keys,
    }
    config = Config(BlobStore(type="s3", bucket=bucket or access.bucket, prefix=prefix, **settings))
    found = place_of(config.location(), config, environ={})
    assert found is not None
    return found


def check(found: BucketPlace) -> BucketReport:
    bucket = open_bucket(found)
    try:
        return check_bucket(bucket)
    finally:
        bucket.close()


def refused(found: BucketPlace, kind: type[HoldfastError]) -> str:
    """Reading, listing and writing are refused in the same way; gives what was said."""
    bucket = open_bucket(found)
    calls: list[Callable[[], object]] = [
        lambda: bucket.get("a", max_bytes=1),
        lambda: list(bucket.list("")),
        lambda: bucket.create("a", b"x"),
    ]
    said = ""
    for call in calls:
        with pytest.raises(kind) as caught:
            call()
        said = str(caught.value)
    bucket.close()
    return said


def test_a_sound_place_passes_whatever_its_prefix(access: Access, prefix: str) -> None:
    for inner in ("", "a b", "é/漢", "+=&;:@,$!'()*~", '[x]{y}<z>|^`"'):
        report = check(place(access, f"{prefix}/{inner}"))
        assert report.ok, f"{inner}: {[f for f in report.findings if f.state != 'ok']}"


def test_foreign_objects_are_left_alone(access: Access, prefix: str) -> None:
    bucket = open_bucket(place(access, prefix))
    keys = ["blobs/notes.txt", "check/mine", "holiday.jpg"]
    for key in keys:
        bucket.create(key, b"x")
    assert check(place(access, prefix)).ok
    assert [meta.key for meta in bucket.list("")] == keys


def test_a_bucket_that_is_absent(access: Access) -> None:
    said = refused(place(access, bucket="there-is-none"), StoreNotFound)
    assert "there is no such bucket" in said
    report = check(place(access, bucket="there-is-none"))
    assert (report.code, report.ok) == (3, False)


def test_credentials_that_are_wrong(access: Access) -> None:
    found = replace(place(access), credentials=Keys(Secret(access.access_key), Secret("hunter2" * 4)))
    said = refused(found, PermissionDenied)
    assert "the credentials are not accepted" in said
    assert "hunter2" not in said
    unknown = replace(place(access), credentials=Keys(Secret("nobody"), Secret("hunter2" * 4)))
    assert "the credentials are not accepted" in refused(unknown, PermissionDenied)
    assert check(found).code == 7


def test_a_region_that_is_wrong(servers: Servers) -> None:
    access = servers("versitygw").access  # MinIO takes any, unless it is given one
    assert "set region" in refused(place(access, region="eu-nowhere-1"), InvalidConfig)


def test_a_prefix_that_holds_another_format(access: Access, prefix: str) -> None:
    bucket = open_bucket(place(access, prefix))
    bucket.create("store.json", b'{"format": "somebody else\'s"}')
    report = check(place(access, prefix))
    assert report.code == 6
    assert [meta.key for meta in bucket.list("")] == ["store.json"]


def test_the_command_says_it_in_one_line(
    access: Access, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEST_SECRET", access.secret_key)
    Path("holdfast.toml").write_text(
        f'[blob_store]\ntype = "s3"\nbucket = "there-is-none"\nendpoint = "{access.endpoint}"\n'
        f'access_key = "{access.access_key}"\nsecret_key = {{ env = "TEST_SECRET" }}\n'
    )
    assert main(["config", "check"]) == 3
    shown = capsys.readouterr()
    assert "there is no such bucket" in shown.out
    assert access.secret_key not in shown.out + shown.err


# Certificates of one's own


@pytest.fixture
def https() -> Iterator[str]:
    """A server that answers 404 over TLS, with a certificate for localhost that only `data/ca.pem` vouches for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>NoSuchKey</Code></Error>"
            self.send_response(404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(DATA / "server.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_certificate_is_trusted_by_its_own_ca_alone(https: str, tmp_path: Path) -> None:
    there = Access("tls", https, "key", "secret", bucket="photos")
    with pytest.raises(InvalidConfig, match="the certificate of the endpoint is not trusted"):
        open_bucket(place(there)).get("a", max_bytes=1)
    assert open_bucket(place(there, ca_file=str(DATA / "ca.pem"))).get("a", max_bytes=1) is None
    broken = tmp_path / "ca.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    with pytest.raises(InvalidConfig):
        open_bucket(place(there, ca_file=str(broken))).get("a", max_bytes=1)


def test_a_file_store_of_iroh_blobs_is_no_directory_of_objects(tmp_path: Path) -> None:
    (tmp_path / "blobs.db").write_bytes(b"redb\x1a\n\xa9\r\n")
    found = place_of(f"dir://{tmp_path}", environ={})
    assert found is not None
    for create in (False, True):
        with pytest.raises(FormatError, match="iroh-blobs"):
            open_bucket(found, create=create)
    assert [path.name for path in tmp_path.iterdir()] == ["blobs.db"]


def test_a_directory_of_objects_is_no_local_store_and_says_how_it_is_opened(tmp_path: Path) -> None:
    holdfast.open(f"dir://{tmp_path}", create=True).close()
    with pytest.raises(FormatError, match=f"dir://{tmp_path}"):
        holdfast.open(tmp_path)
