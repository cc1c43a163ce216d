"""What broken-off uploads leave at a provider, removed by age."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import pytest

from holdfast.backend.objects import stale
from holdfast.backend.objects.bucket import Requests
from holdfast.backend.objects.credentials import Keys
from holdfast.backend.objects.opening import open_remote
from holdfast.backend.objects.remote import PART_BYTES
from holdfast.backend.objects.stale import abort_stale_uploads
from holdfast.errors import HoldfastError, InvalidConfig, PermissionDenied, StoreNotFound, Unavailable
from holdfast.secret import Secret
from holdfast.servers import LocalServer
from holdfast.store import Store
from holdfast.testing.fault_proxy import FaultProxy, HttpFault, Request
from holdfast.testing.inside import object_core
from tests.servers import place_in

LARGE = PART_BYTES + 5


def leave(servers: Callable[[str], LocalServer], prefix: str, key: str) -> None:
    """Break off an upload, and its abort too."""
    access = servers("versitygw").access
    with FaultProxy(access.endpoint) as proxy:
        bucket = open_remote(place_in(access, prefix, endpoint=proxy.endpoint, retry_seconds=0))
        proxy.arm(HttpFault.S500, times=9, where=lambda request: "uploadId" in request.query)
        with pytest.raises(Unavailable):
            bucket.upload(key, [bytes(LARGE)], LARGE)


def test_old_ones_are_aborted_and_others_left_alone(
    servers: Callable[[str], LocalServer], prefix: str
) -> None:
    place = place_in(servers("versitygw").access, prefix)
    for key in ("blobs/a b+c/data", "blobs/ü/data", "blobs/ü/data"):
        leave(servers, prefix, key)
    leave(servers, f"{prefix}-other", "blobs/x/data")
    leave(servers, prefix, "another/program's")
    assert abort_stale_uploads(place, 3600) == []
    aborted = abort_stale_uploads(place, -3600)
    assert aborted is not None
    assert sorted(upload.key for upload in aborted) == ["blobs/a b+c/data", "blobs/ü/data", "blobs/ü/data"]
    assert abort_stale_uploads(place, -3600) == []
    others = abort_stale_uploads(replace(place, prefix=f"{prefix}-other"), -3600)
    assert others is not None
    assert [upload.key for upload in others] == ["blobs/x/data"]


def test_one_that_another_machine_aborts_meanwhile(
    servers: Callable[[str], LocalServer], prefix: str
) -> None:
    access = servers("versitygw").access
    leave(servers, prefix, "blobs/a/data")
    with FaultProxy(access.endpoint) as proxy:
        place = place_in(access, prefix, endpoint=proxy.endpoint)

        def meanwhile(request: Request) -> None:
            if request.method == "DELETE":
                abort_stale_uploads(place_in(access, prefix), -3600)

        proxy.on_request = meanwhile
        aborted = abort_stale_uploads(place, -3600)
    assert aborted is not None
    assert len(aborted) == 1


def test_a_listing_with_another_bit_is_right_or_refused(
    servers: Callable[[str], LocalServer], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each byte of it: what is aborted then is an upload of this store, or nothing."""
    place = place_in(servers("versitygw").access, prefix, retry_seconds=0)
    leave(servers, prefix, "blobs/a/data")
    assert place.credentials is not None
    ask = stale._Service._ask_once
    aborted: set[str] = set()
    body = ask(
        stale._Service(place, place.credentials(), Requests()), "GET", "", {"uploads": "", "prefix": ""}
    )
    assert b"blobs/a/data" in body
    for at in range(len(body)):
        spoiled = body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]

        def answer(self: Any, method: str, key: str, query: Any, spoiled: bytes = spoiled) -> bytes:
            if method == "DELETE":
                aborted.add(key)
            return spoiled if method == "GET" else b""

        monkeypatch.setattr(stale._Service, "_ask_once", answer)
        with suppress(HoldfastError):
            abort_stale_uploads(place, -3600)
    assert f"{prefix}/blobs/a/data" in aborted
    assert all(key.startswith(f"{prefix}/") for key in aborted)


@pytest.mark.parametrize("name", ["minio", "versitygw"])
def test_errors_are_those_of_a_bucket(name: str, servers: Callable[[str], LocalServer]) -> None:
    place = place_in(servers(name).access, "p", retry_seconds=0.5)
    assert abort_stale_uploads(place, 0) is not None
    with pytest.raises(StoreNotFound):
        abort_stale_uploads(replace(place, bucket="none-of-ours"), 0)
    with pytest.raises(PermissionDenied, match="not accepted"):
        abort_stale_uploads(replace(place, credentials=Keys(Secret("holdfast"), Secret("wrong"))), 0)
    with pytest.raises(Unavailable, match="nothing can be reached"):
        abort_stale_uploads(replace(place, endpoint="http://127.0.0.1:9"), 0)
    with FaultProxy(place.endpoint) as proxy:
        proxy.arm(HttpFault.S500, 1)
        assert abort_stale_uploads(replace(place, endpoint=proxy.endpoint), 0) == []
        proxy.arm(HttpFault.HTML, times=99)
        with pytest.raises(InvalidConfig, match="no object store"):
            abort_stale_uploads(replace(place, endpoint=proxy.endpoint), 0)


def test_where_it_cannot_be_done(servers: Callable[[str], LocalServer]) -> None:
    place = place_in(servers("versitygw").access, "p")
    assert abort_stale_uploads(replace(place, credentials=None), 0) is None
    assert abort_stale_uploads(replace(place, provider="azure"), 0) is None


@pytest.mark.parametrize("name", ["minio", "versitygw"])
def test_a_collection_aborts_what_a_killed_process_left(
    name: str, servers: Callable[[str], LocalServer], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MinIO does not list them by a prefix, and drops them by itself."""
    place = place_in(servers(name).access, prefix)
    with Store._open_objects(open_remote(place), create=True) as store:
        with FaultProxy(place.endpoint) as proxy:
            proxy.arm(HttpFault.HANG_BEFORE, times=99, where=lambda request: "partNumber=2" in request.query)
            script = textwrap.dedent(f"""
                import json, sys
                from holdfast.backend.objects.opening import open_remote
                from tests.servers import place_in
                from holdfast.servers import Access
                access = Access(**json.loads(sys.stdin.readline()))
                bucket = open_remote(place_in(access, {prefix!r}, endpoint={proxy.endpoint!r}))
                bucket.upload("blobs/{"ab" * 32}/data", [bytes({LARGE})], {LARGE})
            """)
            with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, text=True) as child:
                assert child.stdin is not None
                child.stdin.write(json.dumps(asdict(servers(name).access)) + "\n")
                child.stdin.close()
                while not proxy.hits and child.poll() is None:
                    time.sleep(0.01)
                child.kill()
            assert proxy.hits
        assert store.gc().aborted_uploads == 0  # a day old, at least
        monkeypatch.setattr("holdfast.object_collecting.MIN_STALE_SECONDS", -3600)
        object_core(store).options = object_core(store).options._replace(partial_age_seconds=-3600)
        if name == "minio":
            assert store.gc().aborted_uploads == 0
            return
        report = store.gc()
        assert report.aborted_uploads == 1
        assert store.gc().aborted_uploads == 0
        assert report.requests["delete"] == store.gc().requests["delete"] + 1


def test_a_collection_goes_on_where_they_may_not_be_listed(
    servers: Callable[[str], LocalServer], prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    access = servers("versitygw").access
    with FaultProxy(access.endpoint) as proxy:
        place = place_in(access, prefix, endpoint=proxy.endpoint)
        with Store._open_objects(open_remote(place), create=True) as store:
            proxy.arm(HttpFault.DENIED, times=99, where=lambda request: "uploads=" in request.query)
            assert store.gc().complete
    assert "not looked for" in caplog.text
    assert "lack that permission" in caplog.text
