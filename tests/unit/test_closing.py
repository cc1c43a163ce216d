"""Closing a store: from within its own calls it is refused, and one that nobody closed is let go."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast.errors import InvalidInput, NeedsReopen
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.inside import log_core

pytestmark = pytest.mark.timeout(60)


def from_an_iterator(store: Store) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"one"
        store.close()

    store.put(pieces())


def from_progress(store: Store) -> None:
    store.put(sample(100_000), progress=lambda _: store.close())


def from_progress_of_a_scrub(store: Store) -> None:
    store.scrub(progress=lambda _: store.close())


def from_progress_of_a_rebuild(store: Store) -> None:
    store.rebuild(progress=lambda _: store.close())


def from_a_signal(store: Store) -> None:
    def handle(*_: object) -> None:
        store.close()

    def pieces() -> Iterator[bytes]:
        yield b"one"
        os.kill(os.getpid(), signal.SIGUSR1)
        yield b"two"

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        store.put(pieces())
    finally:
        signal.signal(signal.SIGUSR1, before)


WITHIN = [
    from_an_iterator,
    from_progress,
    from_progress_of_a_scrub,
    from_progress_of_a_rebuild,
    from_a_signal,
]


@pytest.mark.parametrize("act", WITHIN)
def test_a_close_from_within_a_call_is_refused(tmp_path: Path, act: Callable[[Store], None]) -> None:
    with holdfast.create(tmp_path / "s") as store:
        artifact = store.put(b"there before")
        with pytest.raises(InvalidInput, match="from within a call"):
            act(store)
        assert store.read(artifact) == b"there before"
        store.put(b"and it goes on")
    with pytest.raises(NeedsReopen):
        store.put(b"closed")


def test_a_close_waits_for_the_calls_of_other_threads(tmp_path: Path) -> None:
    store = holdfast.create(tmp_path / "s")
    begun, go = threading.Event(), threading.Event()

    def pieces() -> Iterator[bytes]:
        begun.set()
        go.wait()
        yield b"content"

    put = threading.Thread(target=lambda: store.put(pieces()))
    put.start()
    begun.wait()
    close = threading.Thread(target=store.close)
    close.start()
    while not log_core(store).was_closed:
        time.sleep(0.001)
    go.set()
    put.join()
    close.join()
    with holdfast.open(tmp_path / "s") as again:
        assert [again.read(one) for one in again.find()] == [b"content"]


def open_files() -> set[str]:
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return {os.readlink(link) for link in links if os.path.lexists(link)}


def test_a_store_that_nobody_closed_is_let_go_with_a_warning(tmp_path: Path) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("there is no /proc to count descriptors in")
    store: Store | None = holdfast.create(tmp_path / "s")
    assert store is not None
    artifact = store.put(sample(200_000))
    store.read(artifact)
    list(store.find())
    assert any(str(tmp_path) in path for path in open_files())
    with pytest.warns(ResourceWarning, match="unclosed store"):  # noqa: PT031  # whichever of the two it takes
        store = None
        gc.collect()
    assert not [path for path in open_files() if str(tmp_path) in path]
    with holdfast.open(tmp_path / "s") as again:
        assert again.read(artifact) == sample(200_000)
        assert len(os.listdir(tmp_path / "s" / "sessions")) == 1


def test_a_file_keeps_its_store(tmp_path: Path) -> None:
    with holdfast.create(tmp_path / "s") as store:
        artifact = store.put(sample(200_000))
    file = holdfast.open(tmp_path / "s").open(artifact)
    gc.collect()
    assert file.read() == sample(200_000)
    file.close()
    with pytest.warns(ResourceWarning, match="unclosed store"):  # noqa: PT031  # whichever of the two it takes
        del file
        gc.collect()


def test_a_store_that_was_closed_goes_in_silence(tmp_path: Path) -> None:
    holdfast.create(tmp_path / "s").close()
    gc.collect()
