"""The real command, killed at a random moment: what it said was stored is there, the rest whole or absent."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from holdfast.store import Store
from holdfast.testing.checks import dump_catalog
from tests.crash.world import SEED, figure, replay

KILLS = figure(20, 500)
COMMAND = [sys.executable, "-m", "holdfast.cli"]


def start(store: Path, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    """Start the command on a store, with variables of the environment."""
    environment = {**os.environ, "HOLDFAST_STORE": str(store), "HOME": str(store.parent), **settings}
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=store.parent,
    )


class Killer:
    """Kills at a random moment between the begin of a command's work and a bit after its usual end."""

    def __init__(self, store: Path, rng: random.Random) -> None:
        self.killed = 0
        self._sessions = store / "sessions"
        self._rng = rng
        self._usual_seconds = 0.0

    def run(self, process: subprocess.Popen[str]) -> tuple[bool, str]:
        """Give whether it came to its end, and what it said."""
        while not os.listdir(self._sessions) and process.poll() is None:
            time.sleep(0.001)
        started = time.monotonic()
        if self._usual_seconds:
            time.sleep(self._rng.uniform(0, self._usual_seconds))
            process.send_signal(signal.SIGKILL)
        said, complaint = process.communicate(timeout=60)
        if not self._usual_seconds:
            self._usual_seconds = time.monotonic() - started
        assert process.returncode in (0, -signal.SIGKILL), complaint
        self.killed += process.returncode != 0
        return process.returncode == 0, said


def _tree(path: Path, rng: random.Random) -> dict[str, bytes]:
    sizes = [rng.choice((100, 3_000, 20_000)) for _ in range(250)] + [6_000_000]
    files = {f"{i % 7}/{i}": rng.randbytes(size) for i, size in enumerate(sizes)}
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return files


def test_a_put_of_a_tree_is_killed(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    path = tmp_path / "store"
    Store._open(path, create=True).close()
    killer = Killer(path, rng)
    acknowledged: dict[str, str] = {}
    with replay("tests/crash/test_command.py::test_a_put_of_a_tree_is_killed"):
        for turn in range(KILLS + 1):
            name = f"tree-{turn}"
            files = _tree(tmp_path / name, rng)
            ended, said = killer.run(start(path, "-q", "put", "-r", name))
            assert not ended or said.strip()
            with Store._open(path) as store:
                live = {artifact.filename: artifact for artifact in store.find()}
                if said.endswith("\n"):
                    acknowledged[name] = said.split()[-1]
                    assert name in live, f"{name} was acknowledged and is gone"
                for known, artifact_id in acknowledged.items():
                    assert artifact_id in live[known].id, f"{known} was acknowledged and is gone"
                assert set(live) <= {f"tree-{i}" for i in range(turn + 1)}
                if name in live:
                    target = tmp_path / f"out-{turn}"
                    store.export(live[name], target)
                    for file, content in files.items():
                        assert (target / file).read_bytes() == content
                if turn % 10 == 9:
                    _sound(store)
        with Store._open(path) as store:
            _sound(store)
        print(f"{killer.killed} killed, {len(live)} whole, {len(acknowledged)} of them acknowledged")
        assert killer.killed >= KILLS // 3


def test_a_rebuild_is_killed(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    path = tmp_path / "store"
    with Store._open(path, create=True) as store:
        for _ in range(5):
            store.put_many([rng.randbytes(200) for _ in range(1_500)])
        store.put(rng.randbytes(3_000_000))
    with Store._open(path) as store:
        before = dump_catalog(store)
    names = sorted(os.listdir(path))
    killer = Killer(path, rng)
    with replay("tests/crash/test_command.py::test_a_rebuild_is_killed"):
        for turn in range(KILLS + 1):
            if turn % 3 == 2:
                _remove_catalog(path)
            killer.run(start(path, "-q", "rebuild"))
            with Store._open(path) as store:
                assert dump_catalog(store) == before
        with Store._open(path) as store:
            store.rebuild()
            _sound(store)
        assert sorted(os.listdir(path)) == names, "a killed rebuild left something for ever"
        print(f"{killer.killed} killed")
        assert killer.killed >= KILLS // 3


def test_a_collection_is_killed(tmp_path: Path) -> None:
    """What is not deleted is there after each; and in the end nothing of what was deleted is."""
    rng = random.Random(SEED)
    path = tmp_path / "store"
    Store._open(path, create=True).close()
    killer = Killer(path, rng)
    kept: dict[str, bytes] = {}
    with replay("tests/crash/test_command.py::test_a_collection_is_killed"):
        for turn in range(KILLS + 1):
            with Store._open(path) as store:
                contents = [rng.randbytes(rng.choice((100, 20_000))) for _ in range(200)]
                artifacts = store.put_many(contents)
                kept |= {a.id: c for a, c in zip(artifacts[::4], contents[::4], strict=True)}
                store.delete(*(a for number, a in enumerate(artifacts) if number % 4))
            killer.run(start(path, "-q", "gc", "--min-age", "0"))
            with Store._open(path) as store:
                assert {artifact.id for artifact in store.find()} == kept.keys()
                for key in rng.sample(sorted(kept), 20):
                    assert store.read(key) == kept[key]
                if turn % 10 == 9:
                    assert store.scrub().ok
        with Store._open(path) as store:
            store.gc(min_age_seconds=0)
            assert not list(store.find(deleted=True))
            assert all(store.read(key) == content for key, content in kept.items())
            assert store.scrub().ok
        print(f"{killer.killed} killed")
        assert killer.killed >= KILLS // 3


def _remove_catalog(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (path / f"catalog.db{suffix}").unlink(missing_ok=True)


def _sound(store: Store) -> None:
    assert store.scrub().ok
    before = dump_catalog(store)
    assert not store.rebuild().damaged
    assert dump_catalog(store) == before
