"""A server that is killed and started again while it is written to: what was acknowledged is there, and whole."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.backend.objects.opening import open_remote
from holdfast.backend.objects.remote import PART_BYTES
from holdfast.errors import Unavailable
from holdfast.servers import LocalServer
from holdfast.store import Store
from holdfast.testing.checks import check_store
from holdfast.testing.contract_base import sample
from holdfast.testing.ledger import Ledger
from tests.crash.world import attempt, piece
from tests.objects.world import open_objects
from tests.servers import S3_SERVERS, need, place_in

WRITERS = 6
KILLS = 4
LARGE = 2 * PART_BYTES + 1


@pytest.mark.parametrize("name", S3_SERVERS)
def test_acknowledged_objects_survive(name: str, tmp_path: Path) -> None:
    need(name)
    with LocalServer(name, tmp_path) as server:
        bucket = open_remote(place_in(server.access, timeout_seconds=5, retry_seconds=30))
        over = threading.Event()
        progress = threading.Semaphore(0)

        def write(writer: int) -> tuple[set[str], set[str]]:
            done: set[str] = set()
            failed: set[str] = set()
            number = 0
            while not over.is_set():
                key = f"blobs/{writer}-{number}/data"
                number += 1
                try:
                    if writer == 0:
                        data = sample(LARGE)
                        bucket.upload(
                            key, (data[at : at + 1_000_000] for at in range(0, LARGE, 1_000_000)), LARGE
                        )
                    else:
                        assert bucket.create(key, key.encode() * 500) is not None
                    done.add(key)
                except Unavailable:
                    failed.add(key)
                progress.release()
            return done, failed

        with ThreadPoolExecutor(WRITERS) as pool:
            writers = [pool.submit(write, number) for number in range(WRITERS)]
            try:
                for _ in range(KILLS):
                    for _ in range(20):
                        assert progress.acquire(timeout=60)
                    server.kill()
                    server.start()
                for _ in range(20):
                    assert progress.acquire(timeout=60)
            finally:
                over.set()
            results = [writer.result() for writer in writers]

        fresh = open_remote(place_in(server.access))
        listed = {meta.key: meta for meta in fresh.list("")}
        assert sum(len(done) for done, _ in results) > KILLS * WRITERS
        for done, failed in results:
            assert done <= listed.keys()
            for key in sorted(
                (done | failed) & listed.keys()
            ):  # what failed may be there, and then it is whole
                wanted = sample(LARGE) if key.startswith("blobs/0-") else key.encode() * 500
                assert listed[key].size_bytes == len(wanted)
                assert fresh.get_range(key, 0, len(wanted)) == wanted
        # small ones are tried again until the server is back
        assert not any(failed for _, failed in results[1:])


@pytest.mark.parametrize("name", S3_SERVERS)
def test_a_store_survives(name: str, tmp_path: Path) -> None:
    """Puts, one in parts among them, names, deletions, collections and rebuilds; then the five checks."""
    need(name)
    ledger = Ledger()
    with LocalServer(name, tmp_path) as server:

        def open_store() -> Store:
            return open_objects(
                open_remote(place_in(server.access, timeout_seconds=5, retry_seconds=30)), None
            )

        open_objects(open_remote(place_in(server.access)), None, create=True).close()
        over = threading.Event()
        progress = threading.Semaphore(0)

        def work() -> None:
            number = 0
            with open_store() as store:
                while not over.is_set():
                    number += 1
                    size = LARGE if number == 2 else 20_000
                    attempt(lambda: ledger.put(store, piece(f"p{number}", size)))  # noqa: B023  # called at once
                    if f"p{number}" in ledger.artifacts:
                        attempt(lambda: ledger.refer(store, f"t{number % 3}", f"p{number}"))  # noqa: B023
                        if number % 3:
                            attempt(lambda: ledger.delete(store, f"p{number}"))  # noqa: B023
                    if number % 4 == 0:
                        attempt(lambda: ledger.collect(store))
                    if number % 5 == 0:
                        attempt(store.rebuild)
                    progress.release()

        with ThreadPoolExecutor(1) as pool:
            worker = pool.submit(work)
            try:
                for _ in range(KILLS):
                    for _ in range(6):
                        assert progress.acquire(timeout=60)
                    server.kill()
                    server.start()
                for _ in range(6):
                    assert progress.acquire(timeout=60)
            finally:
                over.set()
            worker.result()
        assert len(ledger.artifacts) + len(ledger.deleted) > KILLS * 4
        check_store(open_store, ledger)
