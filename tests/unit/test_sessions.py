"""What a session's file says when a signal handler uses the store in the midst of writing it; the collector's lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.backend.log.collector import COLLECTOR_FILE, collecting, is_collecting
from holdfast.backend.log.session import Session, SessionState
from holdfast.store import Store
from holdfast.testing.inside import log_core

CATALOG = bytes(range(16))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store._open(tmp_path / "store", create=True) as store:
        yield store


def read(store: Store, session: Session) -> SessionState:
    return next(one for one in log_core(store).backend.sessions(leases=True) if one.name == session.name)


def interrupt(monkeypatch: pytest.MonkeyPatch, session: Session, handler: Callable[[], None]) -> None:
    """Run it once, in this thread, just before the next write."""
    pwrite = session._disk.pwrite

    def interrupted(*what: Any) -> None:
        monkeypatch.setattr(session._disk, "pwrite", pwrite)
        handler()
        pwrite(*what)

    monkeypatch.setattr(session._disk, "pwrite", interrupted)


def run(work: Callable[[], None]) -> None:
    """Run it in a thread, which is left behind if it waits for itself."""
    failed: list[BaseException] = []

    def caught() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=caught, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("epoch", [7, 8])
@pytest.mark.parametrize("stays", [False, True])
def test_pins_within_pins(store: Store, monkeypatch: pytest.MonkeyPatch, epoch: int, stays: bool) -> None:
    """A handler reads, and may leave something open, while an operation begins or ends."""
    session = Session(log_core(store).backend.disk, log_core(store).backend.root, 1)
    open_pins = []

    def handler() -> None:
        pin = session.begin(CATALOG, epoch)
        if stays:
            open_pins.append(pin)
        else:
            session.end(pin)

    def work() -> None:
        interrupt(monkeypatch, session, handler)
        pin = session.begin(CATALOG, 7)
        state = read(store, session)
        assert (state.pinned, state.catalog_id, state.epoch) == (True, CATALOG, 7)
        for one in open_pins:
            session.end(one)
        open_pins.clear()
        interrupt(monkeypatch, session, handler)
        session.end(pin)
        assert read(store, session).pinned == stays
        for one in open_pins:
            session.end(one)
        assert not read(store, session).pinned
        session.close()

    run(work)


def test_a_pin_that_cannot_be_written_counts_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(log_core(store).backend.disk, log_core(store).backend.root, 1)

    def fail() -> None:
        raise OSError("no")

    interrupt(monkeypatch, session, fail)
    with pytest.raises(OSError, match="no"):
        session.begin(CATALOG, 7)
    session.end(session.begin(CATALOG, 8))
    assert not read(store, session).pinned
    session.close()


def test_leases_within_leases(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(log_core(store).backend.disk, log_core(store).backend.root, 1)
    hashes = [bytes([i]) * 32 for i in range(8)]
    slots: dict[bytes, int] = {}

    def lease(some: list[bytes]) -> None:
        slots.update(zip(some, session.lease(some), strict=True))

    def work() -> None:
        lease(hashes[:2])
        session.release(slots.pop(hashes[0]))
        interrupt(monkeypatch, session, lambda: lease(hashes[2:4]))
        lease(hashes[4:])
        want = sorted((hash_, 0) for hash_ in hashes[1:])
        assert sorted(read(store, session).leases or ()) == want
        session.release(slots[hashes[5]])
        want.remove((hashes[5], 0))
        assert sorted(read(store, session).leases or ()) == want
        session.close()

    run(work)


def test_who_looks_whether_somebody_collects_is_in_nobodys_way(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in that of another who looks, nor in that of who wants to collect just then."""
    disk, root = log_core(store).backend.disk, log_core(store).backend.root
    with collecting(disk, root, "gc"):
        assert is_collecting(disk, root)
    close = disk.close
    looking = [True]

    def close_late(handle: int) -> None:
        """A look ends when somebody else has looked, and when a collector has found it there."""
        if looking:
            looking.clear()
            assert not is_collecting(disk, root)
            lock = disk.lock

            def lock_once(*what: Any) -> bool:
                monkeypatch.undo()
                assert not lock(*what)
                close(handle)
                return False

            monkeypatch.setattr(disk, "lock", lock_once)
            with collecting(disk, root, "compact"):
                assert is_collecting(disk, root)
            return
        close(handle)

    monkeypatch.setattr(disk, "close", close_late)
    assert not is_collecting(disk, root)
    assert not looking
    assert disk.stat(f"{root}/{COLLECTOR_FILE}") is not None
