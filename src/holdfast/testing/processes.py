"""Children that work on one store and are killed, stopped and continued at random moments.

Each child keeps a ledger and tells its parent over a pipe: what it begins before it begins it, and what was
acknowledged as soon as it was. The moments come from a seed; what the kernel makes of them does not, so a
replay repeats the plan and not the race.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, NamedTuple

from holdfast.errors import ArtifactNotFound, BlobNotFound, Locked
from holdfast.testing.ledger import CheckFailed, Event, Ledger, Piece

_SIZES: Final = (9, 900, 5_000, 16_384, 16_385, 40_000, 70_000, 150_000)
_CONTEXT: Final = multiprocessing.get_context("forkserver")


class Figures(NamedTuple):
    """What happened so far: kills, stops, operations acknowledged or read, segments compacted away, collections."""

    kills: int
    stops: int
    acknowledged: int
    reads: int
    compacted: int
    collected: int


class Torturer:
    """Writers, readers and collectors over one store, restarted as often as they are killed.

    `options` go to `Store._open` of each child (segment size and so on). `ledger` knows all their work.
    """

    def __init__(
        self,
        path: Path,
        seed: int,
        *,
        writers: int = 1,
        readers: int = 0,
        collectors: int = 0,
        compactors: int = 0,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.ledger = Ledger()
        self._path = path
        self._rng = random.Random(seed)
        self._options = options or {}
        self._roles = ["write"] * writers + ["read"] * readers
        self._roles += ["collect"] * collectors + ["compact"] * compactors
        self._children: dict[Connection, _Child] = {}
        self._born = 0
        self._kills = self._stops = self._acknowledged = self._reads = self._compacted = self._collected = 0
        _CONTEXT.set_forkserver_preload(["holdfast.testing.processes", "holdfast.store"])

    def run(
        self,
        *,
        kills: int | None = None,
        seconds: float = 3600.0,
        pause_seconds: tuple[float, float] = (0.0, 0.08),
        stop_share: float = 0.0,
        keep: bool = False,
    ) -> Figures:
        """Keep all roles filled, and kill or stop somebody after each pause, until so many kills or seconds.

        Everybody is dead when it returns, killed as hard as the rest, unless `keep` says that a next run takes
        them over.
        """
        deadline = time.monotonic() + seconds
        target = None if kills is None else self._kills + kills
        stopped: list[tuple[float, _Child]] = []
        try:
            for role in [] if self._children else self._roles:
                self._spawn(role)
            while time.monotonic() < deadline and (target is None or self._kills < target):
                self._listen(self._rng.uniform(*pause_seconds))
                for until, child in stopped[:]:
                    if time.monotonic() >= until:
                        stopped.remove((until, child))
                        child.signal(signal.SIGCONT)
                busy = [child for child in self._children.values() if child.is_working]
                if not busy:
                    continue
                victim = self._rng.choice(busy)
                if self._rng.random() < stop_share:
                    if all(child is not victim for _, child in stopped):
                        victim.signal(signal.SIGSTOP)
                        stopped.append((time.monotonic() + self._rng.uniform(0, 0.3), victim))
                        self._stops += 1
                    continue
                stopped = [(until, child) for until, child in stopped if child is not victim]
                self._kill(victim)
                if target is None or self._kills < target:
                    self._spawn(victim.role)
            for _, child in stopped:
                child.signal(signal.SIGCONT)
        except BaseException:
            keep = False
            raise
        finally:
            for child in [] if keep else list(self._children.values()):
                self._kill(child)
        return Figures(
            self._kills, self._stops, self._acknowledged, self._reads, self._compacted, self._collected
        )

    def _spawn(self, role: str) -> None:
        self._born += 1
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(
            target=_work,
            args=(theirs, role, str(self._path), self._born, self._rng.getrandbits(32), self._options),
            daemon=True,
        )
        process.start()
        theirs.close()
        self._children[ours] = _Child(ours, process, role, self._born)

    def _listen(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            ready = wait(list(self._children), max(0.0, left))
            for connection in ready:
                assert isinstance(connection, Connection)
                child = self._children.get(connection)
                if child is not None and not self._hear(child):
                    child.process.join()
                    code = child.process.exitcode
                    self._bury(child)
                    raise CheckFailed(f"{child.role} {child.number} ended by itself, with {code}")
            if left <= 0:
                return

    def _hear(self, child: _Child) -> bool:
        try:
            event: Event = child.connection.recv()
        except (EOFError, OSError):
            return False
        if event[0] == "wrong":
            raise CheckFailed(f"{child.role} {child.number}: {event[1]}")
        child.is_working = True
        if event[0] == "read":
            self._reads += 1
        elif event[0] == "compacted":
            self._compacted += event[1]
        elif event[0] != "open":
            self._acknowledged += event[0] == "done"
            self._collected += event[0] == "done" and child.role == "collect"
            self.ledger.hear((event[0], child.number * 1_000_000 + event[1], *event[2:]))
        return True

    def _kill(self, child: _Child) -> None:
        child.signal(signal.SIGKILL)
        self._kills += 1
        self._bury(child)

    def _bury(self, child: _Child) -> None:
        """Hear what the child said before it died."""
        child.process.join()
        while child.connection.poll() and self._hear(child):
            pass
        del self._children[child.connection]
        child.connection.close()
        child.process.close()


class _Child:
    def __init__(self, connection: Connection, process: Any, role: str, number: int) -> None:
        self.connection = connection
        self.process = process
        self.role = role
        self.number = number
        self.is_working = False

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)


def _work(
    connection: Connection, role: str, path: str, number: int, seed: int, options: dict[str, Any]
) -> None:
    from holdfast.store import Store

    try:
        with Store._open(path, **options) as store:
            connection.send(("open",))
            work = {"write": _write, "read": _read, "collect": _collect, "compact": _compact}[role]
            work(connection, store, number, random.Random(seed))
    except BrokenPipeError:
        return  # the parent is gone
    except BaseException:
        connection.send(("wrong", traceback.format_exc()))
        raise


def _write(connection: Connection, store: Any, number: int, rng: random.Random) -> None:
    ledger = Ledger(connection.send)
    count = 0

    def piece() -> Piece:
        nonlocal count
        count += 1
        seed = number << 20 | count
        return Piece(f"{number}-{count}", seed, rng.choice(_SIZES), rng.randrange(3), rng.choice((0, 30_000)))

    while True:
        choice = rng.random()
        if choice < 0.55:
            ledger.put(store, piece())
        elif choice < 0.7:
            ledger.put_many(store, [piece() for _ in range(rng.randint(2, 6))])
        elif choice < 0.8:
            ledger.put_blobs(store, [piece() for _ in range(rng.randint(1, 4))])
        elif choice < 0.92 and ledger.artifacts:
            ledger.delete(store, rng.choice(sorted(ledger.artifacts)))
        elif ledger.deleted:
            name = rng.choice(sorted(ledger.deleted))
            try:
                ledger.restore(store, name)
            except ArtifactNotFound:  # it was collected
                del ledger.deleted[name]


def _collect(connection: Connection, store: Any, number: int, rng: random.Random) -> None:
    """Collect without an undo window, in parts and whole."""
    ledger = Ledger(connection.send)
    while True:
        with suppress(Locked):
            ledger.collect(store, max_batches=rng.choice((None, 1, 3)))
        time.sleep(rng.uniform(0, 0.1))


def _compact(connection: Connection, store: Any, number: int, rng: random.Random) -> None:
    """Give artifacts new revisions, so that old ones are dead, and give their room back."""
    while True:
        for artifact in list(store.find(limit=rng.randint(1, 8))):
            with suppress(ArtifactNotFound):
                store.update(artifact, created_by="x" * rng.randrange(1, 4_000))
        with suppress(Locked):
            report = store.compact(rng.choice((0.0, 0.02, 0.2)))
            if report.problems:
                connection.send(("wrong", f"compactor {number}: {report.problems}"))
            connection.send(("compacted", len(report.segments)))


def _is_live(store: Any, artifact_id: str) -> bool:
    try:
        store.info(artifact_id)
    except ArtifactNotFound:
        return False
    return True


def _read(connection: Connection, store: Any, number: int, rng: random.Random) -> None:
    """Read what is there and hold it against its hash; being deleted meanwhile is no fault.

    An artifact that is live after its blob was missed was live before: what was collected is never restored.
    """
    from holdfast import _native

    while True:
        for artifact in store.find(limit=rng.randint(1, 30)):
            try:
                content = store.read(artifact.id)
                start = rng.randrange(artifact.size_bytes)
                part = store.read(artifact.hash, start, min(1000, artifact.size_bytes - start))
            except ArtifactNotFound:
                continue
            except BlobNotFound as error:
                if _is_live(store, artifact.id):
                    connection.send(
                        ("wrong", f"reader {number}: {artifact} is live, and its blob is not: {error!r}")
                    )
                continue
            if _native.blake3(content) != artifact.hash.digest or part != content[start : start + len(part)]:
                connection.send(("wrong", f"reader {number}: {artifact} reads wrong"))
            connection.send(("read",))
        time.sleep(0.002)
