"""Locks between threads in the object backend: while one thread holds it, another cannot step in.

As in `unit/test_mutexes.py`, one case for each use of each lock. Those of parts and of the count of requests stand
beside their other tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from holdfast.backend.objects.backend import ObjectBackend
from holdfast.backend.objects.cache import BlockCache, BlockFile
from holdfast.backend.objects.opening import memory_bucket
from holdfast.backend.objects.reader import LargeObjectReader
from holdfast.object_checks import BlobCheck
from holdfast.object_core import ObjectCore
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.inside import object_core

HASH = bytes(range(32))
CONTENT = sample(100_000)
WAIT_SECONDS = 0.15
"""How long something that must wait is watched. A slow machine makes the test weaker, never red."""


class Case(NamedTuple):
    """A lock, and a step that takes it."""

    lock: Any
    step: Callable[[], object]


@pytest.fixture
def core() -> Iterator[ObjectCore]:
    with Store._open_objects(memory_bucket(), create=True) as store:
        store.put(CONTENT)
        yield object_core(store)


def _hash(core: ObjectCore) -> bytes:
    (row,) = core.catalog.iter_blobs()
    return row.hash


def _backend(core: ObjectCore, step: Callable[[ObjectBackend], object]) -> Case:
    return Case(core.backend._mutex, lambda: step(core.backend))


def _reader(core: ObjectCore, step: Callable[[LargeObjectReader], object]) -> Case:
    reader = core.backend.reader(_hash(core), len(CONTENT))
    assert isinstance(reader, LargeObjectReader)
    return Case(reader._mutex, lambda: step(reader))


def _keeper(core: ObjectCore, step: str) -> Case:
    if step == "current":
        core.keeper._retire()
    arguments: dict[str, tuple[Any, ...]] = {"replace": ("it lies",), "rebuild": (None,), "refresh": (None,)}
    return Case(core.keeper._mutex, lambda: getattr(core.keeper, step)(*arguments.get(step, ())))


def _check(core: ObjectCore) -> Case:
    check = BlobCheck(core.backend, _hash(core), len(CONTENT), has_outboard=True)
    return Case(check._mutex, check._without_outboard)


CASES: dict[str, Callable[[ObjectCore], Case]] = {
    "backend reader": lambda c: _backend(c, lambda b: b.reader(HASH, len(CONTENT))),
    "backend damage": lambda c: _backend(c, lambda b: b.note_damage("key", HASH, "wrong")),
    "backend damaged": lambda c: _backend(c, lambda b: b.is_damaged(HASH)),
    "backend takes damage": lambda c: _backend(c, lambda b: b.take_damage()),
    "backend generation": lambda c: _backend(c, lambda b: b.expect(HASH, 3)),
    "reader pairs": lambda c: _reader(c, lambda r: r.read_pairs(0, 64)),
    "reader check": lambda c: _reader(c, lambda r: r._check(CONTENT, 0)),
    "reader asks": lambda c: _reader(c, lambda r: r._ask_for_pairs(0, 1)),
    "reader forgets": lambda c: _reader(c, lambda r: r._forget_pairs()),
    "reader makes": lambda c: _reader(c, lambda r: r._remake()),
    "outboard": _check,
    "change": lambda c: Case(c._changes, lambda: _change(c)),
    **{
        f"keeper {step}": lambda c, s=step: _keeper(c, s)  # type: ignore[misc]
        for step in ("open", "current", "replace", "rebuild", "refresh")
    },
}


def _change(core: ObjectCore) -> None:
    with core.changing():
        pass


@pytest.mark.parametrize("name", CASES)
def test_who_holds_the_lock_is_alone(name: str, core: ObjectCore) -> None:
    _alone(CASES[name](core))


@pytest.mark.parametrize("step", ["get", "put"])
def test_blocks_in_memory_are_one_thread_s(step: str) -> None:
    cache = BlockCache(10_000)
    steps: dict[str, Callable[[], object]] = {
        "get": lambda: cache.get(HASH, [0]),
        "put": lambda: cache.put(HASH, {0: b"x"}),
    }
    _alone(Case(cache._mutex, steps[step]))


@pytest.mark.parametrize("step", ["get", "put", "drop", "close", "fail"])
def test_what_waits_for_the_file_is_one_thread_s(step: str, tmp_path: Path) -> None:
    with closing(BlockFile(tmp_path / "blocks.db", 1_000_000)) as file:
        steps: dict[str, Callable[[], object]] = {
            "get": lambda: file.get(HASH, [0]),
            "put": lambda: file.put(HASH, {0: b"x"}),
            "drop": lambda: file.drop(HASH, [0]),
            "close": file.close,
            "fail": lambda: file._failed(0, OSError("gone")),
        }
        _alone(Case(file._mutex, steps[step]))


def _alone(case: Case) -> None:
    def work() -> None:
        with suppress(Exception):
            case.step()

    thread = threading.Thread(target=work, daemon=True)
    with case.lock:
        thread.start()
        thread.join(WAIT_SECONDS)
        assert thread.is_alive(), "it did not wait"
    thread.join(20)
    assert not thread.is_alive(), "it waits for ever"
