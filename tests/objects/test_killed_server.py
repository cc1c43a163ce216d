"""A server that is killed and started again while objects are put: what was acknowledged is there, and whole."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.backend.objects.opening import open_remote
from holdfast.backend.objects.remote import PART_BYTES
from holdfast.errors import Unavailable
from holdfast.servers import LocalServer
from holdfast.testing.contract_base import sample
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
