"""The count of requests: by kind, bounded, and of many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast.backend.objects.bucket import Requests
from holdfast.errors import TooLarge

WAIT_SECONDS = 0.15
"""How long something that must wait is watched. A slow machine makes the test weaker, never red."""


def test_counts_and_differences() -> None:
    requests = Requests()
    requests.count("put", 3)
    before = requests.snapshot()
    requests.count("get")
    requests.moved(bytes_in=10, bytes_out=20)
    assert Requests.since(before, requests.snapshot()) == {
        "get": 1, "head": 0, "put": 0, "list": 0, "delete": 0, "bytes_in": 10, "bytes_out": 20,
    }  # fmt: skip
    before["get"] = 99
    assert requests.snapshot()["get"] == 1


def test_what_goes_beyond_the_limit_is_not_counted() -> None:
    requests = Requests(limit=5)
    requests.count("put", 4)
    with pytest.raises(TooLarge, match="limit of 5 requests") as caught:
        requests.count("put", 2)
    assert caught.value.put == 4
    requests.count("head")
    with pytest.raises(TooLarge):
        requests.count("head")
    assert sum(requests.snapshot().values()) == 5


@pytest.mark.parametrize(
    "step",
    [lambda r: r.count("get"), lambda r: r.moved(bytes_in=1), lambda r: r.snapshot()],
    ids=["count", "moved", "snapshot"],
)
def test_while_one_thread_counts_others_wait(step: Callable[[Requests], object]) -> None:
    requests, done = Requests(), threading.Event()

    def run() -> None:
        step(requests)
        done.set()

    thread = threading.Thread(target=run)
    with requests._mutex:
        thread.start()
        assert not done.wait(WAIT_SECONDS)
    thread.join()
    assert done.is_set()


def test_many_threads_reach_the_limit_and_not_more() -> None:
    requests = Requests(limit=1_000)

    def spend() -> int:
        made = 0
        try:
            while True:
                requests.count("get")
                made += 1
        except TooLarge:
            return made

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: spend(), range(8))) == 1_000
