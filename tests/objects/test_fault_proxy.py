"""RemoteBucket behind a proxy that fails: every call, with every fault, ends right or in a typed error, in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.opening import open_remote
from holdfast.backend.objects.remote import PART_BYTES, RemoteBucket
from holdfast.errors import FormatError, HoldfastError, InvalidConfig, PermissionDenied, Unavailable
from holdfast.servers import LocalServer
from holdfast.testing.contract_base import sample
from holdfast.testing.contract_bucket import Another, BucketContract
from holdfast.testing.fault_proxy import FaultProxy, HttpFault
from tests.servers import place_in

HANGS = (HttpFault.HANG_BEFORE, HttpFault.HANG_AFTER)
SHORT_SECONDS = 0.4
"""Of requests that are left to hang."""
DATA = sample(300_000)
LARGE = 2 * PART_BYTES + 5


@pytest.fixture
def proxy(servers: Callable[[str], LocalServer]) -> Iterator[FaultProxy]:
    with FaultProxy(servers("versitygw").access.endpoint, drip_seconds=0.1) as proxy:
        yield proxy


@pytest.fixture
def direct(servers: Callable[[str], LocalServer], prefix: str) -> RemoteBucket:
    """The same place, without the proxy between."""
    return open_remote(place_in(servers("versitygw").access, prefix))


@pytest.fixture
def through(
    servers: Callable[[str], LocalServer], proxy: FaultProxy, prefix: str
) -> Callable[..., RemoteBucket]:
    """Give a function that opens the place through the proxy."""
    access = servers("versitygw").access

    def open_it(timeout_seconds: float = 10, retry_seconds: float = 20) -> RemoteBucket:
        times = {"timeout_seconds": timeout_seconds, "retry_seconds": retry_seconds}
        return open_remote(place_in(access, prefix, endpoint=proxy.endpoint, **times))

    return open_it


class TestWithoutAFault(BucketContract):
    """The proxy itself changes nothing."""

    @pytest.fixture
    def another(self, servers: Callable[[str], LocalServer], proxy: FaultProxy, prefix: str) -> Another:
        place = place_in(servers("versitygw").access, prefix, endpoint=proxy.endpoint)
        from dataclasses import replace

        return lambda limit=None: open_remote(replace(place, max_requests=limit))


def _upload(bucket: Bucket) -> Meta:
    data = sample(LARGE)
    return bucket.upload("large", (data[at : at + 1_000_000] for at in range(0, LARGE, 1_000_000)), LARGE)


def _e_tag(bucket: Bucket, key: str) -> str:
    found = bucket.head(key)
    return (found.e_tag if found is not None else None) or ""


CALLS: dict[str, Callable[[Bucket, str], object]] = {
    "head": lambda bucket, e_tag: bucket.head("there"),
    "get": lambda bucket, e_tag: bucket.get("there", max_bytes=len(DATA)),
    "get_range": lambda bucket, e_tag: bucket.get_range("there", 100, 200_000),
    "iter": lambda bucket, e_tag: b"".join(bucket.iter("there", 100, 200_000) or ()),
    "list": lambda bucket, e_tag: [meta.key for meta in bucket.list("")],
    "create": lambda bucket, e_tag: bucket.create("new", DATA),
    "replace": lambda bucket, e_tag: bucket.replace("there", DATA[::-1], e_tag),
    "small upload": lambda bucket, e_tag: bucket.upload("new", [DATA], len(DATA)),
    "upload": lambda bucket, e_tag: _upload(bucket),
    "copy": lambda bucket, e_tag: bucket.copy("there", "new"),
    "delete": lambda bucket, e_tag: bucket.delete(["there", "other"]),
}
PASSING = [
    HttpFault.S500, HttpFault.S503, HttpFault.S409, HttpFault.DROP_BEFORE, HttpFault.DROP_AFTER, HttpFault.HALF_BODY,
    HttpFault.FLIPPED_REQUEST, HttpFault.HANG_BEFORE, HttpFault.HANG_AFTER,
]  # fmt: skip
"""Faults that one more try heals."""
TRIED_BY_OBSTORE = (HttpFault.S500, HttpFault.S503, HttpFault.DROP_BEFORE, HttpFault.DROP_AFTER, *HANGS)
"""Faults at a part of an upload that obstore itself tries again; the others end it."""


def check_done(call: str, direct: Bucket, result: object) -> None:
    """See in the bucket itself that a call did what it says."""
    there = direct.get("there", max_bytes=len(DATA))
    if call == "delete":
        assert there is None
        assert direct.head("other") is None
        return
    assert there is not None
    assert there[0] == (DATA[::-1] if call == "replace" else DATA)
    if call in ("create", "replace", "small upload", "upload", "copy"):
        key = {"replace": "there", "upload": "large"}.get(call, "new")
        size_bytes = LARGE if call == "upload" else len(DATA)
        wanted = sample(LARGE) if call == "upload" else DATA[::-1] if call == "replace" else DATA
        assert isinstance(result, Meta)
        assert (result.key, result.size_bytes, result.e_tag) == (key, size_bytes, _e_tag(direct, key))
        assert direct.get_range(key, 0, size_bytes) == wanted
    else:
        assert (
            result
            == {
                "head": direct.head("there"),
                "get": (DATA, direct.head("there")),
                "get_range": DATA[100:200_000],
                "iter": DATA[100:200_000],
                "list": ["other", "there"],
            }[call]
        )


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("call", CALLS)
def test_every_request_with_every_fault(
    call: str, fault: HttpFault, proxy: FaultProxy, direct: RemoteBucket, through: Callable[..., RemoteBucket]
) -> None:
    def prepare() -> str:
        direct.delete(["new", "large", "there", "other"])
        direct.create("other", b"")
        made = direct.create("there", DATA)
        assert made is not None
        return made.e_tag or ""

    e_tag = prepare()
    before = len(proxy.requests)
    CALLS[call](through(), e_tag)
    bucket = through(SHORT_SECONDS) if fault in HANGS else through()
    requests = len(proxy.requests) - before
    numbers = range(1, requests + 1) if call != "upload" else (1, 2, 4, requests)  # the parts are all alike
    for number in numbers:
        e_tag = prepare()
        proxy.arm(fault, number)
        try:
            result = CALLS[call](bucket, e_tag)
        except Unavailable:
            assert call == "upload", (number, fault)
            assert number == requests or fault not in TRIED_BY_OBSTORE, (number, fault)
            assert direct.head("large") is None or direct.get_range("large", 0, LARGE) == sample(LARGE)
            result = _upload(bucket)
        assert len(proxy.hits) == 1, number
        check_done(call, direct, result)


PLACES = {"list": 60, "delete": 60, "abort_stale": 60, "copy": 40}
"""Of a bit in the body of an answer; four where it is a payload, or none."""


@pytest.mark.parametrize("call", [*CALLS, "abort_stale"])
def test_an_answer_that_is_spoiled_is_right_or_refused_or_seen_by_its_hash(
    call: str, proxy: FaultProxy, direct: RemoteBucket, through: Callable[..., RemoteBucket]
) -> None:
    """Half of a body, and one with another bit, at each request: nothing else than a typed error comes of it."""
    calls: dict[str, Callable[[Bucket, str], object]] = {
        **CALLS,
        "abort_stale": lambda bucket, e_tag: bucket.abort_stale(0),
    }
    bucket = through(retry_seconds=0)
    before = len(proxy.requests)
    calls[call](bucket, _prepared(direct))
    requests = len(proxy.requests) - before
    spoilt = 0
    for number in range(1, requests + 1) if call != "upload" else (1, 2, 4, requests):
        places = PLACES.get(call, 4)
        for place in range(places):
            fault = HttpFault.FLIPPED if place else HttpFault.SHORT_BODY
            proxy.flip_at = place / places
            e_tag = _prepared(direct)
            proxy.arm(fault, number)
            try:
                result = calls[call](bucket, e_tag)
            except HoldfastError:
                result = None
            assert len(proxy.hits) == 1
            proxy.heal()
            _check_spoilt(call, direct, result)
            spoilt += 1
    print(f"{call}: {spoilt} answers of {requests} requests")


def _prepared(direct: RemoteBucket) -> str:
    direct.delete(["new", "large", "there", "other"])
    direct.create("other", b"")
    made = direct.create("there", DATA)
    assert made is not None
    return made.e_tag or ""


def _check_spoilt(call: str, direct: Bucket, result: object) -> None:
    """What is there is what was asked for, or what was there; what was given is as long as it says."""
    if call in ("get", "get_range", "iter") and result is not None:
        data = result[0] if isinstance(result, tuple) else result
        assert isinstance(data, bytes)
        wanted = DATA if call == "get" else DATA[100:200_000]
        assert data == wanted[: len(data)] or sum(x != y for x, y in zip(data, wanted, strict=True)) == 1
    for key, states in {
        "there": (DATA, DATA[::-1], None),
        "other": (b"", None),
        "new": (DATA, None),
        "large": (sample(LARGE), None),
    }.items():
        found = direct.get(key, max_bytes=LARGE)
        assert (None if found is None else found[0]) in states, key
    if result is not None and call not in ("abort_stale", "get", "get_range", "iter", "list", "head"):
        check_done(call, direct, result)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "fault", [HttpFault.S500, HttpFault.DROP_BEFORE, HttpFault.HANG_BEFORE, HttpFault.HTML]
)
def test_what_stays_away_is_given_up_in_time(
    call: str, fault: HttpFault, proxy: FaultProxy, direct: RemoteBucket, through: Callable[..., RemoteBucket]
) -> None:
    made = direct.create("there", DATA)
    assert made is not None
    bucket = through(SHORT_SECONDS if fault in HANGS else 10, retry_seconds=0.4)
    proxy.arm(fault, times=1_000_000)
    begun = time.monotonic()
    with pytest.raises(InvalidConfig if fault is HttpFault.HTML else Unavailable) as caught:
        CALLS[call](bucket, made.e_tag or "")
    assert time.monotonic() - begun < 30  # far above what it takes, far below for ever
    assert "no object store" in str(caught.value) or "same call may work later" in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "words"), [(HttpFault.EXPIRED, "have expired"), (HttpFault.SKEWED, "clock of this machine")]
)
@pytest.mark.parametrize("call", CALLS)
def test_what_cannot_pass_is_said_at_once(
    call: str, fault: HttpFault, words: str, proxy: FaultProxy, direct: RemoteBucket,
    through: Callable[..., RemoteBucket],
) -> None:  # fmt: skip
    made = direct.create("there", DATA)
    assert made is not None
    bucket = through()
    before = len(proxy.requests)
    proxy.arm(fault, times=1_000_000)
    with pytest.raises(PermissionDenied, match=words):
        CALLS[call](bucket, made.e_tag or "")
    assert len(proxy.requests) - before <= 2  # one more, where a HEAD could not say why


def test_a_condition_that_is_refused_is_not_tried_again(
    proxy: FaultProxy, direct: RemoteBucket, through: Callable[..., RemoteBucket]
) -> None:
    made = direct.create("there", DATA)
    assert made is not None
    bucket = through()
    acts: list[Callable[[], object]] = [
        lambda: bucket.create("new", DATA),
        lambda: bucket.replace("there", b"x", made.e_tag or ""),
    ]
    for act in acts:
        before = len(proxy.requests)
        proxy.arm(HttpFault.S412)
        assert act() is None
        assert len(proxy.requests) - before == 1


def test_an_object_of_somebody_else_is_not_taken_for_ours(
    proxy: FaultProxy, direct: RemoteBucket, through: Callable[..., RemoteBucket]
) -> None:
    """Our request is lost, theirs is applied; or ours is applied, replaced by theirs, and the reply is lost."""

    def they_create(_: object) -> None:
        direct.create("new", b"theirs")

    bucket = through()
    proxy.on_request = they_create
    proxy.arm(HttpFault.DROP_BEFORE)
    assert bucket.create("new", b"ours..") is None
    first = direct.create("there", DATA)
    assert first is not None

    def they_replace(_: object) -> None:
        direct.replace("there", b"theirs", first.e_tag or "")

    proxy.on_request = they_replace
    proxy.arm(HttpFault.DROP_BEFORE)
    assert bucket.replace("there", b"ours..", first.e_tag or "") is None
    assert direct.get_range("there", 0, 6) == b"theirs"


def test_spoiled_bodies_are_given_as_they_came_and_never_longer(
    proxy: FaultProxy, direct: RemoteBucket, through: Callable[..., RemoteBucket]
) -> None:
    """Who reads checks the hash; what a bucket can see is the length of a range."""
    direct.create("there", DATA)
    bucket = through()
    proxy.arm(HttpFault.FLIPPED)
    found = bucket.get("there", max_bytes=len(DATA))
    assert found is not None
    assert sum(x != y for x, y in zip(found[0], DATA, strict=True)) == 1
    proxy.arm(HttpFault.SHORT_BODY)
    found = bucket.get("there", max_bytes=len(DATA))
    assert found is not None
    assert found[0] == DATA[: len(DATA) // 2]
    proxy.arm(HttpFault.SHORT_BODY)
    assert bucket.get_range("there", 10, 250_000) == DATA[10:250_000]  # the rest was asked for
    proxy.arm(HttpFault.SHORT_BODY, times=1_000_000)
    with pytest.raises(HoldfastError):
        through(retry_seconds=0.3).get_range("there", 10, 20)


def test_a_stream_goes_on_where_it_broke(
    proxy: FaultProxy, direct: RemoteBucket, through: Callable[..., RemoteBucket]
) -> None:
    data = sample(5_000_000)
    direct.upload("there", [data], len(data))
    for fault, bucket in ((HttpFault.HALF_BODY, through()), (HttpFault.DRIP, through(SHORT_SECONDS))):
        before = bucket.requests.snapshot()
        proxy.arm(fault, times=2)
        pieces = bucket.iter("there", 1, 4_999_999)
        assert pieces is not None
        assert b"".join(pieces) == data[1:4_999_999]
        assert bucket.requests.snapshot()["get"] - before["get"] == 3


def test_a_drip_is_given_up(
    proxy: FaultProxy, direct: RemoteBucket, through: Callable[..., RemoteBucket]
) -> None:
    direct.create("there", DATA)
    proxy.arm(HttpFault.DRIP, times=1_000_000)
    bucket = through(SHORT_SECONDS, retry_seconds=1)
    with pytest.raises(Unavailable):
        bucket.get_range("there", 0, 200_000)


def test_a_stream_of_what_went_away(
    proxy: FaultProxy, direct: RemoteBucket, through: Callable[..., RemoteBucket]
) -> None:
    direct.create("there", DATA)
    pieces = through().iter("there", 0, len(DATA))
    assert pieces is not None
    proxy.arm(HttpFault.HALF_BODY)
    again = through().iter("there", 0, len(DATA))
    assert again is not None
    direct.delete(["there"])
    assert b"".join(pieces) == DATA  # this one was on its way
    with pytest.raises(FormatError, match="went away"):
        b"".join(again)


def test_a_listing_goes_on_where_it_broke(
    proxy: FaultProxy, direct: RemoteBucket, through: Callable[..., RemoteBucket]
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    keys = [f"tags/{number:05}" for number in range(1_100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: direct.create(key, b""), keys))
    bucket = through()
    for fault in (HttpFault.S500, HttpFault.DROP_AFTER, HttpFault.HALF_BODY, HttpFault.SHORT_BODY):
        for number in (1, 2):
            proxy.arm(fault, number)
            assert [meta.key for meta in bucket.list("tags/")] == keys, (fault, number)
            assert len(proxy.hits) == 1


@pytest.mark.parametrize("is_applied", [True, False])
def test_a_reply_to_an_upload_that_was_lost_is_told_by_what_is_there(is_applied: bool) -> None:
    """Another object stood there before, as long: by its e_tag it is seen whether ours has taken its place."""
    from obstore.store import MemoryStore

    store = MemoryStore()
    bucket: Any = RemoteBucket(lambda *_: store, location="memory", retry_seconds=0)
    old, new = sample(LARGE, 1), sample(LARGE, 2)
    bucket.upload("key", [old], LARGE)
    real = bucket._obstore

    def put(target: Any, key: str, source: Any, **more: Any) -> None:
        if is_applied:
            real.put(target, key, source, **more)
        else:
            for _ in source:
                pass
        raise bucket._failures[0]("the connection was closed")

    bucket._obstore = SimpleNamespace(**{**vars(real), "put": put})
    if is_applied:
        assert bucket.upload("key", [new], LARGE).size_bytes == LARGE
    else:
        with pytest.raises(Unavailable):
            bucket.upload("key", [new], LARGE)
    bucket._obstore = real
    assert bucket.get_range("key", 0, LARGE) == (new if is_applied else old)
    bucket.close()
