"""A large file that is put into a bucket is read twice, and goes through no spool, whatever happens to it between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any, cast

import pytest

from holdfast import _native
from holdfast.backend.objects.backend import SINGLE_PUT_BYTES
from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.layout import COMMITS
from holdfast.backend.objects.opening import memory_bucket
from holdfast.backend.objects.spool import SourceChanged, Spool
from holdfast.errors import BlobNotFound, SourceNotFound
from holdfast.sources import PathWindows
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.types import Hash, Progress
from tests.objects.world import collect_elsewhere

SIZE = SINGLE_PUT_BYTES + 70_001
CONTENT = sample(SIZE, 1)
OTHER = sample(SIZE, 2)


class Watched:
    """A bucket that calls `before` when a large blob is about to go up, and `named` behind each object of names."""

    def __init__(self, inner: Bucket) -> None:
        self.inner = inner
        self.before: Callable[[], object] = lambda: None
        self.named: Callable[[], object] = lambda: None
        self.uploads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def upload(self, key: str, pieces: Any, size_bytes: int) -> Meta:
        if size_bytes > SINGLE_PUT_BYTES:
            self.uploads += 1
            self.before()
        return self.inner.upload(key, pieces, size_bytes)

    def create(self, key: str, data: bytes) -> Meta | None:
        made = self.inner.create(key, data)
        if key.startswith(COMMITS):
            self.named()
        return made


@pytest.fixture
def bucket() -> Watched:
    return Watched(memory_bucket())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "files" / "large.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def spooled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many bytes are written to files of spools."""
    sizes: list[int] = []
    write = Spool._write

    def watched(self: Spool, at: int, data: Any) -> None:
        sizes.append(len(data))
        write(self, at, data)

    monkeypatch.setattr(Spool, "_write", watched)
    monkeypatch.setattr(Spool.__init__, "__defaults__", (1 << 20,))
    return sizes


def test_a_file_goes_through_no_spool(store: Store, path: Path, spooled: list[int]) -> None:
    told: list[int] = []
    artifact = store.put(path, progress=lambda event: told.append(event.done_bytes))
    assert store.read(artifact.id) == CONTENT
    assert (artifact.filename, artifact.size_bytes, told[-1]) == ("large.bin", SIZE, SIZE)
    assert not spooled
    (again,) = store.put_many([path])
    assert again.hash == artifact.hash
    assert not spooled
    with store.blobs.put(iter([OTHER])) as lease:
        assert store.read(lease.hash) == OTHER
    assert sum(spooled) >= SIZE  # what comes once does


def test_one_that_changes_meanwhile_is_stored_as_it_was_read(
    store: Store, bucket: Watched, path: Path, spooled: list[int]
) -> None:
    def change() -> None:
        bucket.before = lambda: None
        path.write_bytes(OTHER)

    bucket.before = change
    told: list[int] = []
    artifact = store.put(path, progress=lambda event: told.append(event.done_bytes))
    assert artifact.hash == Hash(_native.blake3(OTHER))
    assert store.read(artifact.id) == OTHER
    assert told == sorted(told)
    assert told[-1] == SIZE
    assert sum(spooled) >= SIZE
    assert bucket.uploads == 2
    assert store.health().ok
    assert store.stats().blobs == 1


@pytest.mark.parametrize("change", ["cut", "grown"])
def test_one_that_is_cut_or_grows_meanwhile(store: Store, bucket: Watched, path: Path, change: str) -> None:
    wanted = CONTENT[:1_000] if change == "cut" else CONTENT  # what was there when it was hashed

    def work() -> None:
        bucket.before = lambda: None
        path.write_bytes(CONTENT[:1_000] if change == "cut" else CONTENT + b"more")

    bucket.before = work
    assert store.read(store.put(path).id) == wanted


def test_one_that_is_removed_meanwhile_is_an_error(store: Store, bucket: Watched, path: Path) -> None:
    bucket.before = path.unlink
    with pytest.raises(SourceNotFound):
        store.put(path)
    assert store.count() == 0
    assert store.stats().blobs == 0


@pytest.mark.parametrize("known", [False, True])
def test_what_was_collected_before_it_was_named_is_read_once_more(
    store: Store, bucket: Watched, path: Path, known: bool
) -> None:
    if known:
        store.blobs.put(path).release()
    hash = Hash(_native.blake3(CONTENT))

    def work() -> None:
        bucket.named = lambda: None
        collect_elsewhere(bucket.inner, hash)

    bucket.named = work
    artifact = store.put(path)
    assert bucket.uploads == 2
    with Store._open_objects(cast("Bucket", bucket), None) as another:
        assert another.read(artifact.id) == CONTENT


def test_a_name_is_taken_back_where_the_file_is_another_by_then(
    store: Store, bucket: Watched, path: Path
) -> None:
    hash = Hash(_native.blake3(CONTENT))

    def work() -> None:
        bucket.named = lambda: None
        path.write_bytes(OTHER)
        collect_elsewhere(bucket.inner, hash)

    bucket.named = work
    with pytest.raises(SourceChanged, match=r"large\.bin changed .* put it again"):
        store.put(path)
    with Store._open_objects(cast("Bucket", bucket), None) as another:
        assert another.count() == 0
        with pytest.raises(BlobNotFound):
            another.read(hash)


def test_one_that_was_cut_off_before_it_was_read_and_then_changes(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is small by then: such blobs go up in one request, and are verified all the same."""
    size_bytes = PathWindows.size_bytes

    def cut(self: PathWindows) -> int:
        found = size_bytes(self)
        path.write_bytes(CONTENT[:5_000])
        return found

    monkeypatch.setattr(PathWindows, "size_bytes", cut)

    def change(_: Progress) -> None:
        path.write_bytes(OTHER[:5_000])

    artifact = store.put(path, progress=change)
    assert artifact.hash == Hash(_native.blake3(OTHER[:5_000]))
    assert store.read(artifact.id) == OTHER[:5_000]


def test_a_file_of_a_tree_that_another_machine_has_collected_is_read_once_more(
    store: Store, bucket: Watched, path: Path, tmp_path: Path
) -> None:
    """Its handle is closed by then."""
    store.blobs.put(path).release()
    collect_elsewhere(bucket.inner, Hash(_native.blake3(CONTENT)))
    artifact = store.put_tree(path.parent)
    store.export(artifact, tmp_path / "out")
    assert (tmp_path / "out" / path.name).read_bytes() == CONTENT


def test_an_interrupt_ends_an_upload(
    store: Store, bucket: Watched, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C must not wait until hours of an upload are over."""
    begun = threading.Event()
    given: list[int] = []
    ended: list[BaseException] = []

    def slowly(pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            given.append(len(piece))
            begun.set()
            time.sleep(0.5)
            yield piece

    def upload(key: str, pieces: Any, size_bytes: int) -> Meta:
        try:
            return bucket.inner.upload(key, slowly(pieces), size_bytes)
        except BaseException as error:
            ended.append(error)
            raise

    def interrupted(*arguments: Any, **how: Any) -> Any:
        assert begun.wait(30)
        monkeypatch.setattr("holdfast.object_group.wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(bucket, "upload", upload, raising=False)
    monkeypatch.setattr("holdfast.object_group.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put(path)
    assert len(ended) == 1
    assert sum(given) < SIZE
    monkeypatch.undo()
    assert store.read(store.put(path)) == CONTENT
