"""Locks between threads: while one thread holds it, another cannot step in. One case for each use of each lock.

The lock is held here, and the step is begun in another thread: it must wait, and go on once the lock is free.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from holdfast import types
from holdfast.backend.log.segment import SegmentWriter
from holdfast.backend.log.session import LEASE_RAW
from holdfast.backend.memory import MemoryDisk
from holdfast.care.report import Report
from holdfast.errors import CorruptSegment
from holdfast.facts import SEGMENT_OPEN, Facts
from holdfast.gc.maintenance import Maintenance
from holdfast.reports import Problem
from holdfast.store import Store
from holdfast.testing.inside import log_core

WAIT_SECONDS = 0.15
"""How long something that must wait is watched. A slow machine makes the test weaker, never red."""


class Case(NamedTuple):
    """A lock, and a step that takes it."""

    lock: Any
    step: Callable[[], object]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store._open(tmp_path / "store", create=True, segment_bytes=64 << 10) as store:
        store.put(b"something")
        yield store


def _writer(store: Store) -> SegmentWriter:
    return log_core(store).backend.committer.writers.checkout(10)


def _facts() -> Facts:
    return Facts(segments={77: (64, SEGMENT_OPEN)})


CASES: dict[str, Callable[[Store], Case]] = {
    "commit": lambda s: Case(log_core(s).backend.committer._condition, lambda: s.put(b"x")),
    "store lock": lambda s: Case(
        log_core(s).backend.committer._lock._mutex, log_core(s).backend.committer.apply
    ),
    "checkout": lambda s: Case(log_core(s).backend.committer.writers._mutex, lambda: _writer(s)),
    "note": lambda s: Case(
        log_core(s).backend.committer.writers._mutex,
        lambda: log_core(s).backend.committer.writers.note(1, 64, 0),
    ),
    "take_news": lambda s: Case(
        log_core(s).backend.committer.writers._mutex, log_core(s).backend.committer.writers.take_news
    ),
    "own": lambda s: Case(
        log_core(s).backend.committer.writers._mutex, log_core(s).backend.committer.writers.own
    ),
    "close idle": lambda s: Case(
        log_core(s).backend.committer.writers._mutex, log_core(s).backend.committer.writers.close
    ),
    "pin": lambda s: Case(
        log_core(s).backend.session._mutex, lambda: log_core(s).backend.session.begin(bytes(16), 1)
    ),
    "lease": lambda s: Case(
        log_core(s).backend.session._mutex, lambda: log_core(s).backend.session.lease([bytes(32)])
    ),
    "release": lambda s: Case(
        log_core(s).backend.session._mutex, lambda: log_core(s).backend.session.release(0)
    ),
    "keep": lambda s: Case(log_core(s).kept._mutex, lambda: log_core(s).kept.keep(bytes(32), LEASE_RAW)),
    "let go": lambda s: Case(log_core(s).kept._mutex, lambda: log_core(s).kept.let_go(bytes(32))),
    "apply": lambda s: Case(log_core(s).catalog._writing, lambda: log_core(s).catalog.apply(_facts())),
    "checkpoint": lambda s: Case(log_core(s).catalog._writing, log_core(s).catalog.checkpoint),
    "enter": lambda s: Case(log_core(s)._gate, s.count),
    "close": lambda s: Case(s._closing, s.close),
    "ids": lambda _: Case(types._ticking, lambda: types.new_ids(1, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_who_holds_the_lock_is_alone(name: str, store: Store) -> None:
    _check(CASES[name](store))


def test_an_unpin_waits(store: Store) -> None:
    session = log_core(store).backend.session
    key = session.begin(bytes(16), 1)
    _check(Case(session._mutex, lambda: session.end(key)))


@pytest.mark.parametrize("step", ["checkin", "forget", "seal", "release_sealed"])
def test_giving_a_writer_back_waits(step: str, store: Store) -> None:
    writers = log_core(store).backend.committer.writers
    writer = _writer(store)
    _check(Case(writers._mutex, lambda: getattr(writers, step)(writer)))


@pytest.mark.parametrize("step", ["append", "entries", "truncate"])
def test_the_index_of_a_segment_is_one_thread_s(step: str, store: Store) -> None:
    writer = _writer(store)
    steps: dict[str, Callable[[], object]] = {
        "append": lambda: writer.append([], b"", 0),
        "entries": lambda: writer.entries(0, 64),
        "truncate": lambda: writer.truncate(writer.offset),
    }
    _check(Case(writer._index, steps[step]))
    log_core(store).backend.committer.writers.checkin(writer)


@pytest.mark.parametrize("step", ["add", "checked"])
def test_a_report_is_counted_by_one_thread(step: str) -> None:
    report = Report("scrub", None)
    problem = Problem(kind=CorruptSegment.kind, message="x", segment=1, offset_bytes=1)
    _check(Case(report._mutex, lambda: report.add(problem) if step == "add" else report.checked(5)))


@pytest.mark.parametrize("step", ["start", "stop"])
def test_maintenance_is_begun_and_ended_by_one_thread(step: str, store: Store) -> None:
    collector: Any = None
    maintenance = Maintenance(log_core(store), collector)
    _check(Case(maintenance._mutex, getattr(maintenance, step)))
    maintenance.stop()


STEPS: dict[str, Callable[[MemoryDisk, int], object]] = {
    "open": lambda disk, _: disk.open("/m/other", "x"),
    "close": lambda disk, handle: disk.close(handle),
    "pread": lambda disk, handle: disk.pread(handle, 1, 0),
    "pwrite": lambda disk, handle: disk.pwrite(handle, [b"x"], 0),
    "truncate": lambda disk, handle: disk.truncate(handle, 0),
    "lock": lambda disk, handle: disk.lock(handle),
    "unlock": lambda disk, handle: disk.unlock(handle),
    "rename": lambda disk, _: disk.rename("/m/file", "/m/new"),
    "unlink": lambda disk, _: disk.unlink("/m/file"),
    "listdir": lambda disk, _: disk.listdir("/m"),
    "stat": lambda disk, _: disk.stat("/m/file"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_memory_disk_takes_one_step_at_a_time(step: str) -> None:
    disk = MemoryDisk()
    disk.mkdir("/m")
    handle = disk.open("/m/file", "x")
    _check(Case(disk._mutex, lambda: STEPS[step](disk, handle)))


def test_one_connection_in_memory_is_lent_to_one_at_a_time() -> None:
    import holdfast

    with holdfast.open("memory://") as store:
        store.put(b"x")
        pool = log_core(store).catalog._pool
        reader = pool.take()
        thread = _begin(store.count)
        assert thread.is_alive(), "two had the one connection"
        pool.give(reader)
        thread.join(20)
        assert not thread.is_alive()


def test_connections_are_opened_one_after_the_other(store: Store) -> None:
    pool = log_core(store).catalog._pool
    lent = [pool.take() for _ in range(len(pool._idle))]  # none is left: the next is opened
    _check(Case(pool._opening, lambda: pool.give(pool.take())))
    for reader in lent:
        pool.give(reader)


def test_a_close_waits_for_calls_that_run(store: Store) -> None:
    log_core(store).enter()
    thread = _begin(store.close)
    assert thread.is_alive(), "the store was closed under a call"
    log_core(store).leave()
    thread.join(20)
    assert not thread.is_alive()


def test_a_close_waits_for_a_call_that_begins(store: Store) -> None:
    _check(Case(log_core(store)._gate, store.close))


def test_a_call_that_ends_does_so_alone(store: Store) -> None:
    core, inside, go = log_core(store), threading.Event(), threading.Event()

    def call() -> None:
        core.enter()
        inside.set()
        go.wait(20)
        core.leave()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert inside.wait(20)
    with core._gate:
        go.set()
        thread.join(WAIT_SECONDS)
        assert thread.is_alive(), "it did not wait"
    thread.join(20)
    assert not thread.is_alive()


def _check(case: Case) -> None:
    with case.lock:
        thread = _begin(case.step)
        assert thread.is_alive(), "it did not wait"
    thread.join(20)
    assert not thread.is_alive(), "it waits for ever"


def _begin(step: Callable[[], object]) -> threading.Thread:
    def work() -> None:
        with suppress(Exception):
            step()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(WAIT_SECONDS)
    return thread
