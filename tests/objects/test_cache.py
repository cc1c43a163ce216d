"""The cache of verified blocks: bounded, shared by processes, and never believed."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

import holdfast
from holdfast.backend.objects.cache import BlockCache, BlockFile
from holdfast.backend.objects.opening import memory_bucket
from holdfast.config import Cache, Config
from holdfast.config.places import cache_of, place_of
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.inside import object_core

HASH = bytes(range(32))
LARGE = 3 << 20


def until(holds: Callable[[], bool]) -> None:
    """Wait for the thread that writes."""
    for _ in range(500):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def test_memory_is_bounded_and_what_was_used_stays() -> None:
    cache = BlockCache(10_000)
    for number in range(20):
        cache.put(HASH, {number: bytes(1_000)})
        cache.get(HASH, [0])
    assert set(cache.get(HASH, range(20))) == {0, *range(11, 20)}
    cache.put(HASH, {99: bytes(20_000)})
    assert cache.get(HASH, [99]) == {}


def test_the_file_is_bounded_and_what_was_used_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "blocks.db"
    with closing(BlockFile(path, 1_000_000)) as file:
        file.put(HASH, {0: b"kept"})
        until(lambda: bool(file.get(HASH, [0])))
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE blocks SET used = 1")
    connection.close()
    with closing(BlockFile(path, 1_000_000)) as file:
        assert file.get(HASH, [0]) == {0: b"kept"}
        for number in range(1, 400):
            file.get(HASH, [0])
            file.put(HASH, {number: bytes(10_000)})
        until(lambda: bool(file.get(HASH, [399])))
    with closing(BlockFile(path, 1_000_000)) as file:
        there = file.get(HASH, list(range(400)))
        assert there[0] == b"kept"
        assert sum(map(len, there.values())) <= 1_000_000
        assert len(there) > 50
    assert path.stat().st_size < 2_000_000
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["rubbish", "cut", "another's", "another version's", "a directory"])
def test_a_file_that_cannot_be_used_is_thrown_away(tmp_path: Path, what: str) -> None:
    path = tmp_path / "blocks.db"
    if what in ("cut", "another version's"):
        with closing(BlockFile(path, 1 << 20)) as file:
            file.put(HASH, {number: os.urandom(5_000) for number in range(20)})
        if what == "cut":
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            os.truncate(path, 5_000)
        else:
            connection = apsw.Connection(str(path))
            connection.pragma("user_version", 99)
            connection.close()
    elif what == "rubbish":
        path.write_bytes(os.urandom(50_000))
    elif what == "another's":
        connection = apsw.Connection(str(path))
        connection.execute("CREATE TABLE other(a)")
        connection.close()
    else:
        path.mkdir()
    with closing(BlockFile(path, 1 << 20)) as file:
        for _ in range(3):
            assert file.get(HASH, [0, 1]) in ({}, {0: b"new"})
            file.put(HASH, {0: b"new"})
        if what != "a directory":
            until(lambda: file.get(HASH, [0]) == {0: b"new"})


def _work(path: str, seed: int) -> None:
    with closing(BlockFile(Path(path), 400_000)) as file:
        chance = random.Random(seed)
        for _ in range(300):
            number = chance.randrange(200)
            found = file.get(HASH, [number]).get(number)
            assert found in (None, bytes([number]) * 5_000)
            file.put(HASH, {number: bytes([number]) * 5_000})


def test_processes_share_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = str(tmp_path / "blocks.db")
    children = [context.Process(target=_work, args=(path, seed)) for seed in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    with closing(BlockFile(Path(path), 400_000)) as file:
        there = file.get(HASH, list(range(200)))
        assert sum(map(len, there.values())) <= 400_000 + 5_000
        assert all(data == bytes([number]) * 5_000 for number, data in there.items())


def open_cached(path: Path, *, memory: int = 0) -> Store:
    """Open a store in memory, with a file for its blocks."""
    return Store._open_objects(
        memory_bucket(), create=True, cache=BlockCache(memory, BlockFile(path, 1 << 26))
    )


def gets(store: Store) -> int:
    return store.stats().requests["get"]


@pytest.mark.parametrize("size", [9_000, LARGE])
def test_what_the_file_has_costs_no_request(tmp_path: Path, size: int) -> None:
    content = sample(size)
    path = tmp_path / "blocks.db"
    with open_cached(path) as store:
        artifact = store.put(content)
        offset = size // 2
        assert store.read(artifact, offset, 4_000) == content[offset : offset + 4_000]
        until(lambda: bool(object_core(store).backend.cache.load(artifact.hash.digest, [offset // 16_384])))
        bucket = object_core(store).backend.bucket
        with Store._open_objects(bucket, cache=BlockCache(0, BlockFile(path, 1 << 26))) as other:
            before = gets(other)
            assert other.read(artifact.hash, offset, 4_000) == content[offset : offset + 4_000]
            assert gets(other) == before


@pytest.mark.parametrize("size", [9_000, LARGE])
def test_what_the_file_has_wrong_is_never_given_out(tmp_path: Path, size: int) -> None:
    content = sample(size)
    path = tmp_path / "blocks.db"
    with open_cached(path) as store:
        artifact = store.put(content)
        assert store.read(artifact, 0, 4_000) == content[:4_000]
        cache = object_core(store).backend.cache
        until(lambda: bool(cache.load(artifact.hash.digest, [0])))
        if size > 16_384:
            until(lambda: bool(cache.load(artifact.hash.digest, [-1])))
        for change in ("substr(data, 1, 20) || x'00' || substr(data, 22)", "substr(data, 2)", "x''"):
            connection = apsw.Connection(str(path))
            connection.execute(f"UPDATE blocks SET data = CAST({change} AS BLOB)")
            assert connection.changes() >= 1
            connection.close()
            object_core(store).backend._readers.clear()
            assert store.read(artifact, 0, 4_000) == content[:4_000]
            until(lambda: cache.load(artifact.hash.digest, [0]).get(0) == content[:16_384])
            if size > 16_384:
                object_core(store).backend._readers.clear()
                store.read(artifact, 0, 4_000)


def test_without_a_cache_each_read_asks(tmp_path: Path) -> None:
    with Store._open_objects(memory_bucket(), create=True, cache=BlockCache(0)) as store:
        artifact = store.put(sample(5_000))
        before = gets(store)
        store.read(artifact)
        store.read(artifact)
        assert gets(store) == before + 2


def test_what_is_configured_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remote, local = place_of("s3://bucket/prefix"), place_of(f"dir://{tmp_path}/objects")
    assert remote is not None
    assert local is not None
    assert cache_of(remote) == (str(tmp_path / "holdfast" / "blocks.db"), 1 << 30)
    assert cache_of(local) == ("", 0)
    assert cache_of(remote, Config(cache=Cache(max_bytes=0))) == ("", 0)
    assert cache_of(local, Config(cache=Cache(path=str(tmp_path)))) == (str(tmp_path / "blocks.db"), 1 << 30)
    config = Config(cache=Cache(max_bytes=1 << 20, path=str(tmp_path / "here")))
    with holdfast.open(f"dir://{tmp_path}/objects", create=True, config=config) as store:
        artifact = store.put(sample(50_000))
        store.read(artifact, 0, 100)
    assert (tmp_path / "here" / "blocks.db").exists()
    off = Config(cache=Cache(max_bytes=0))
    with holdfast.open(f"dir://{tmp_path}/objects", config=off) as store:
        store.read(artifact.id, 0, 100)
        before = gets(store)
        store.read(artifact.id, 0, 100)
        assert gets(store) == before + 1  # the data: what proves it is known
