"""Sources that do not block: what has not come yet is waited for, and never taken for the end."""

from __future__ import annotations

import io
import os
import random
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest
from typing_extensions import Buffer

import holdfast
from holdfast import sources
from holdfast.errors import InvalidInput, Unavailable
from holdfast.store import Store
from holdfast.types import Hash

T = TypeVar("T")
DATA = random.Random(3).randbytes(100_000)


class Late(io.FileIO):
    """The end of a pipe that does not block; asked in vain, it lets more be written."""

    def __init__(self, number: int, asked: threading.Event) -> None:
        super().__init__(number, "rb")
        self.asked = asked
        self.nones = 0

    def readinto(self, buffer: Buffer) -> int | None:
        return self._looked(super().readinto(buffer))

    def read(self, size: int | None = -1, /) -> bytes:
        return self._looked(super().read(size))

    def _looked(self, found: T) -> T:
        if found is None:
            self.nones += 1
            self.asked.set()
        return found


@contextmanager
def late(data: bytes, *, buffered: bool) -> Iterator[IO[bytes]]:
    out, into = os.pipe()
    os.set_blocking(out, False)
    asked, over = threading.Event(), threading.Event()

    def write() -> None:
        for at in range(0, len(data), 40_000):
            asked.wait()
            asked.clear()
            if not over.is_set():
                os.write(into, data[at : at + 40_000])
        os.close(into)

    writer = threading.Thread(target=write)
    raw = Late(out, asked)
    with io.BufferedReader(raw) if buffered else raw as file:
        writer.start()
        try:
            yield file
        finally:
            over.set()
            while writer.is_alive():
                asked.set()
    assert raw.nones


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize(
    "put",
    [
        lambda store, file: store.put(file).hash,
        lambda store, file: store.put_many([file])[0].hash,
        lambda store, file: store.blobs.put(file).hash,
        lambda store, file: next(iter(store.blobs.put_many([file]))).hash,
    ],
)
def test_what_comes_later_belongs_to_it(
    store: Store, put: Callable[[Store, IO[bytes]], Hash], buffered: bool
) -> None:
    with late(DATA, buffered=buffered) as file:
        assert store.read(put(store, file)) == DATA


@pytest.mark.parametrize("buffered", [False, True])
def test_streams_are_waited_for(store: Store, buffered: bool) -> None:
    with holdfast.open("memory://") as other:
        tree = [other.blobs.put(DATA).hash, other.blobs.put(b"small").hash]
        root = other.blobs.hash_seq(tree).hash
        stream, seq = b"".join(other.blobs.encode(tree[0])), b"".join(other.blobs.encode_seq(root))
    with late(stream, buffered=buffered) as file:
        assert store.blobs.decode(tree[0], file).status == "complete"
    with late(seq, buffered=buffered) as file:
        assert store.blobs.decode_seq(root, file).complete_children == 2


def test_without_a_number_to_wait_on_it_is_an_error(store: Store) -> None:
    class Never:
        def read(self, length: int) -> None:
            return None

    hash = Hash(b"h" * 32)
    calls: list[Callable[[Any], object]] = [
        store.put,
        store.blobs.put,
        lambda file: store.blobs.decode(hash, file),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match="gave None"):
            call(Never())
    assert not store.count()


def test_a_path_that_gives_nothing_for_now_is_no_shorter(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(DATA)
    answers: list[bytes | None] = [DATA[:50_000], None]

    class Stuck(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return answers.pop(0)  # type: ignore[return-value]  # as FileIO does

    def opened(path: str) -> io.FileIO:
        return Stuck(path, "rb")

    monkeypatch.setattr(sources, "open_source", opened)
    with pytest.raises(Unavailable):
        store.put(tmp_path / "f")


@pytest.mark.parametrize("command", ["put", "decode"])
def test_the_commands_wait_for_their_input(tmp_path: Path, command: str) -> None:
    with holdfast.open("memory://") as other:
        hash = other.blobs.put(DATA).hash
        stream = DATA if command == "put" else b"".join(other.blobs.encode(hash))
    holdfast.create(tmp_path / "s").close()
    out, into = os.pipe()
    os.set_blocking(out, False)
    words = ["put", "-"] if command == "put" else ["decode", str(hash)]
    child = subprocess.Popen(
        [sys.executable, "-m", "holdfast.cli", "--store", str(tmp_path / "s"), *words],
        stdin=out,
        stdout=subprocess.PIPE,
    )
    with open(into, "wb", buffering=0) as file:
        file.write(stream[:30_000])
        # The pipe is empty once the child has read what is in it: only then does it meet one that has nothing now.
        while holds_something(out):
            pass
        file.write(stream[30_000:])
    os.close(out)
    child.communicate(timeout=60)
    assert child.returncode == 0
    with holdfast.open(tmp_path / "s") as store:
        assert store.blobs.read(hash) == DATA


def holds_something(number: int) -> bool:
    """Whether the pipe still holds something."""
    waiting = select.poll()
    waiting.register(number, select.POLLIN)
    return bool(waiting.poll(0))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with holdfast.create(tmp_path / "store") as store:
        yield store


class Interrupted(Future[Any]):
    """Whoever waits for it is interrupted."""

    def result(self, timeout: float | None = None) -> Any:
        raise KeyboardInterrupt

    def exception(self, timeout: float | None = None) -> BaseException | None:
        raise KeyboardInterrupt


class Interrupting(ThreadPoolExecutor):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Interrupted()
        super().submit(lambda: future.set_result(fn(*args, **kwargs)))
        return future


def test_who_interrupts_while_the_next_window_is_read_is_told_just_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, closed = threading.Event(), threading.Event()

    def slow(file: io.FileIO, name: str) -> Iterator[bytes]:
        try:
            yield bytes(sources.WINDOW_BYTES)
            go_on.wait()
            yield b"the end"
        finally:
            closed.set()

    monkeypatch.setattr(sources, "_raw_windows", slow)
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with Interrupting(1) as pool:
        try:
            windows = sources.iter_windows(path, pool)
            next(windows)
            with pytest.raises(KeyboardInterrupt):
                next(windows)
            assert not closed.is_set()  # it is being read
        finally:
            go_on.set()
    assert closed.is_set()
