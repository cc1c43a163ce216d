"""Several machines, as processes with catalogs of their own, on one directory of objects: they write, read, collect.

They are stopped at any time and let go on later. Nothing acknowledged is lost, nothing that is named is unreadable.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from holdfast import _native
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.store import Store
from holdfast.types import Artifact, Durability
from tests.crash.world import DEEP, SEED, figure, replay
from tests.objects.bucket_child import CONTENTS, acknowledged

CHILD = Path(__file__).with_name("bucket_child.py")
SECONDS = figure(6, 60)
ROLES = ("write", "write", "read", "collect", "collect")
STARTED_SECONDS = 60.0


@pytest.mark.timeout(0 if DEEP else 240)
def test_writers_readers_and_collectors_share_a_bucket(tmp_path: Path) -> None:
    root = str(tmp_path / "bucket")
    with Store._open_objects(DirectoryBucket(root, create=True), create=True) as store:
        kept = [store.put(content, filename=str(n), tags=["kept"]) for n, content in enumerate(CONTENTS)]
    with replay("tests/objects/test_processes.py::test_writers_readers_and_collectors_share_a_bucket"):
        _share(tmp_path, root, kept)


def _share(tmp_path: Path, root: str, kept: list[Artifact]) -> None:
    chance = random.Random(SEED)
    stop = tmp_path / "stop"
    logs = [tmp_path / f"{number}-{role}.log" for number, role in enumerate(ROLES)]
    stack = ExitStack()
    children = [
        subprocess.Popen(
            [sys.executable, str(CHILD), role, root, str(SEED * 100 + number), str(logs[number]), str(stop)],
            stderr=stack.enter_context((tmp_path / f"{number}.err").open("wb")),
        )
        for number, role in enumerate(ROLES)
    ]
    try:
        started = time.monotonic()
        while not all(log.exists() and log.read_text() for log in logs):
            assert time.monotonic() - started < STARTED_SECONDS
            assert all(child.poll() is None for child in children), _errors(tmp_path)
            time.sleep(0.05)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            child = chance.choice(children)
            os.kill(child.pid, signal.SIGSTOP)
            time.sleep(chance.uniform(0.0, 0.3))
            os.kill(child.pid, signal.SIGCONT)
            time.sleep(chance.uniform(0.0, 0.02))
        stop.touch()
        for child in children:
            assert child.wait(120) == 0, _errors(tmp_path)
    finally:
        stack.close()
        for child in children:
            if child.poll() is None:
                os.kill(child.pid, signal.SIGCONT)
                child.kill()
                child.wait()
    counts = dict.fromkeys(ROLES, 0)
    for role, log in zip(ROLES, logs, strict=True):
        counts[role] += len(log.read_text().splitlines())  # of two collectors one may wait all the time
    assert all(count > 2 for count in counts.values()), counts
    artifacts, tags = acknowledged(logs)
    with Store._open_objects(DirectoryBucket(root), durability=Durability.FSYNCED) as store:
        for _ in range(2):
            for artifact in kept:
                assert store.read(artifact.id) == CONTENTS[int(artifact.filename or "0")]
            for id_, hash_ in artifacts.items():
                assert _native.blake3(store.read(id_)) == hash_.digest, id_
            for name, hash_ in tags.items():
                assert store.tags.get(name).hash == hash_, name
                assert _native.blake3(store.read(hash_)) == hash_.digest, name
            for artifact in store.find():
                assert _native.blake3(store.read(artifact)) == artifact.hash.digest, artifact.id
            assert store.health().missing_blobs == 0
            store.gc(min_age_seconds=0)
    print(f"{counts}, {len(artifacts)} artifacts and {len(tags)} tags acknowledged at the end")


@pytest.mark.parametrize("work", ["put", "collect"])
def test_a_process_that_is_stopped_before_any_of_its_requests_loses_nothing(
    tmp_path: Path, work: str
) -> None:
    """One is stopped by SIGSTOP, the other does its work whole, the first goes on."""
    content = CONTENTS[3]
    hash_ = _native.blake3(content)
    step = 1 if DEEP or work == "put" else 5
    for number in range(1, 100, step):
        root, log = str(tmp_path / f"{number}"), tmp_path / f"{number}.log"
        with Store._open_objects(DirectoryBucket(root, create=True), create=True) as store:
            store.delete(store.put(content))
        command = [sys.executable, str(CHILD), "stopped", root, str(number), str(log), work]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
            _, status = os.waitpid(child.pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):  # it had fewer requests than that
                child.returncode = os.waitstatus_to_exitcode(status)
                assert child.returncode == 0, child.stderr and child.stderr.read()
                break
            with Store._open_objects(DirectoryBucket(root)) as store:
                if work == "put":
                    store.gc(min_age_seconds=0)
                else:
                    artifact = store.put(content)
                    log.write_text(f"put {artifact.id} {artifact.hash}\n")
            os.kill(child.pid, signal.SIGCONT)
            errors = child.communicate(timeout=60)[1]
            assert child.returncode == 0, errors
        artifacts, _ = acknowledged([log])
        assert len(artifacts) == 1
        with Store._open_objects(DirectoryBucket(root)) as store:
            for _ in range(2):
                for id_ in artifacts:
                    assert _native.blake3(store.read(id_)) == hash_, number
                store.gc(min_age_seconds=0)
    assert number > 3


def _errors(directory: Path) -> str:
    return "\n".join(path.read_text()[-2_000:] for path in sorted(directory.glob("*.err")))
