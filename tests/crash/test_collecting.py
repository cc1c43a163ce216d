"""Real processes around a collection: one that is stopped, one that is killed, and all of them at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from holdfast.gc import cycle
from holdfast.store import Store
from holdfast.testing.checks import check_store
from holdfast.testing.processes import Torturer
from holdfast.types import Hash
from tests.crash.world import CHUNKING, DEEP, SEED, SEGMENT_BYTES, figure, replay

OPTIONS: dict[str, Any] = {"chunking": CHUNKING, "segment_bytes": SEGMENT_BYTES}
DATA = random.Random(1).randbytes(60_000)

_STOPPED = """
import os, signal, sys, random
from holdfast.chunking import Chunking
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.words import Words, describe
store = Store._open(sys.argv[1], segment_bytes=65536)
with log_core(store).adding() as (group, ingest):
    (stored,) = ingest.add_many([random.Random(1).randbytes(60_000)])
    assert group.is_empty, "all of it is there"
    print("looked up", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    store._artifacts.acknowledge(group, [(stored, describe(log_core(store), Words(filename="late")), 0)])
store.close()
"""
_LEASING = """
import sys, time
from holdfast.store import Store
store = Store._open(sys.argv[1], segment_bytes=65536)
lease = store.blobs.put(b"leased" * 1000)
print(lease.hash, flush=True)
time.sleep(600)
"""


@contextmanager
def child(code: str, path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run code beside us; gives it with its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(cycle, "WAIT_SECONDS", 0.2)
    with Store._open(str(tmp_path / "store"), create=True, **OPTIONS) as store:
        yield store


def test_a_process_that_is_stopped_between_look_up_and_commit_is_waited_for(store: Store) -> None:
    store.blobs.put(DATA).release()
    with child(_STOPPED, Path(store.location)) as (process, line):
        assert line == "looked up"
        report = store.gc(min_age_seconds=0)
        assert not report.complete
        assert [waiting.pid for waiting in report.waits_for] == [process.pid]
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0
    assert store.gc(min_age_seconds=0).complete
    (artifact,) = store.find()
    assert artifact.filename == "late"
    assert store.read(artifact) == DATA
    assert store.scrub().ok


def test_the_lease_of_a_killed_process_holds_nothing(store: Store) -> None:
    with child(_LEASING, Path(store.location)) as (process, line):
        hash_ = Hash.parse(line)
        assert store.gc(min_age_seconds=0).complete
        assert store.read(hash_) == b"leased" * 1000
        process.send_signal(signal.SIGSTOP)  # a laptop that sleeps loses nothing
        assert store.gc(min_age_seconds=0).complete
        assert store.exists(hash_)
        process.kill()
        process.wait(60)
        assert store.gc(min_age_seconds=0).complete
        assert not store.exists(hash_)


@pytest.mark.timeout(0 if DEEP else 400)
def test_four_write_and_two_read_while_others_collect_and_compact(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store._open(str(path), create=True, **OPTIONS).close()
    with replay(
        "tests/crash/test_collecting.py::test_four_write_and_two_read_while_others_collect_and_compact"
    ):
        torturer = Torturer(path, SEED, writers=4, readers=2, collectors=1, compactors=1, options=OPTIONS)
        turns = figure(6, 180)
        for turn in range(turns + 25):  # some more where a busy machine lets no collection come to its end
            torturer.run(seconds=5, pause_seconds=(0.02, 0.2), stop_share=0.4, keep=True)
            figures = torturer.run(seconds=5, pause_seconds=(0.5, 2.0), stop_share=0.4, keep=True)
            if turn >= turns - 1 and min(figures.collected, figures.compacted) > 3:
                break
        figures = torturer.run(kills=1)
        print(figures)
        assert figures.kills > 30
        assert figures.stops > 20
        assert figures.acknowledged > 20
        assert figures.reads > 20
        assert figures.compacted > 3
        assert figures.collected > 3
        check_store(lambda: Store._open(str(path), **OPTIONS), torturer.ledger)
