"""Mixed work with faults, for as long as it is told, on a bounded disk (`make soak MINUTES=30`).

Rounds of some seconds each. In a round four processes write, two read, one collects and one compacts, and somebody is
killed or stopped all the time; in some, the catalog is taken away under them. After each round everything is checked
(holdfast.testing.check_store), and some rounds end with flipped bits, which a second store repairs. Then most of it
is deleted and collected, so that the room stays bounded. Ends with exit 1 at the first promise that is broken, keeps
the store, and prints the seed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from holdfast.chunking import Chunking
from holdfast.errors import FormatError, HoldfastError
from holdfast.store import Store
from holdfast.testing.checks import check_store
from holdfast.testing.ledger import CheckFailed
from holdfast.testing.processes import Figures, Torturer

OPTIONS: dict[str, Any] = {"chunking": Chunking.choose("fastcdc", 4096), "segment_bytes": 256 << 10}


class Soak:
    """One run; the counts are what it prints."""

    def __init__(self, place: Path, seed: int, limit_bytes: int) -> None:
        self.place = place
        self.rng = random.Random(seed)
        self.limit_bytes = limit_bytes
        self.rounds = self.checks = self.flips = self.repaired = self.lost_catalogs = 0
        self.figures = Figures(0, 0, 0, 0, 0, 0)
        self.most_bytes = 0

    def run(self, seconds: float) -> None:
        """Work until the time is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.rounds += 1
            path = self.place / f"store-{self.rounds}"
            Store._open(str(path), create=True, **OPTIONS).close()
            seed = self.rng.getrandbits(32)
            torturer = Torturer(path, seed, writers=4, readers=2, collectors=1, compactors=1, options=OPTIONS)
            try:
                self._round(path, torturer, min(15.0, max(3.0, deadline - time.monotonic())))
            except BaseException as error:
                error.add_note(f"round {self.rounds}, seed {seed}, store {path}")
                raise
            self._tell()
            shutil.rmtree(path)

    def _round(self, path: Path, torturer: Torturer, seconds: float) -> None:
        stop = time.monotonic() + seconds
        loses = self.rng.random() < 0.3
        while time.monotonic() < stop and self._bytes(path) < self.limit_bytes:
            figures = torturer.run(
                seconds=2.0, pause_seconds=(0.02, 0.2), stop_share=0.3, keep=time.monotonic() + 2 < stop
            )
            if loses and self.rng.random() < 0.5:
                self.lost_catalogs += 1
                for suffix in ("", "-wal", "-shm"):
                    (path / f"catalog.db{suffix}").unlink(missing_ok=True)
        torturer.run(seconds=0.0)
        self.figures = Figures(*(a + b for a, b in zip(self.figures, figures, strict=True)))
        self.most_bytes = max(self.most_bytes, self._bytes(path))
        check_store(partial(Store._open, str(path), **OPTIONS), torturer.ledger)
        self.checks += 1
        if self.rng.random() < 0.5:
            self._rot(path)
        with Store._open(str(path), **OPTIONS) as store:
            for artifact in list(store.find()):
                if self.rng.random() < 0.9:
                    store.delete(artifact)
            store.gc(min_age_seconds=0)
            if not store.scrub().ok:
                raise CheckFailed(f"2: damage after a collection: {store.scrub().problems}")

    def _rot(self, path: Path) -> None:
        """Flip bits in a copy: what reads is right; what was found is repaired from the store itself."""
        copy = path.with_name(path.name + "-copy")
        shutil.copytree(path, copy)
        segments = sorted((copy / "segments").iterdir())
        for _ in range(self.rng.randint(1, 5)):
            file = self.rng.choice(segments)
            data = bytearray(file.read_bytes())
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
            file.write_bytes(data)
            self.flips += 1
        with Store._open(str(path), **OPTIONS) as sound:
            contents = {artifact.id: sound.read(artifact) for artifact in sound.find()}
            try:
                with Store._open(str(copy), **OPTIONS) as store:
                    for key, content in contents.items():
                        try:
                            if store.read(key) != content:
                                raise CheckFailed(f"2: {key} reads wrong after a flip")
                        except HoldfastError:
                            continue
                    store.scrub()
                    report = store.repair([sound])
                    self.repaired += report.repaired_count
                    for key, content in contents.items():
                        if report.ok and store.read(key) != content:
                            raise CheckFailed(f"2: {key} reads wrong after a repair")
            except FormatError:
                pass  # a flip in what says which version this is
        shutil.rmtree(copy)

    @staticmethod
    def _bytes(path: Path) -> int:
        return sum(file.stat().st_size for file in (path / "segments").iterdir() if file.exists())

    def _tell(self) -> None:
        f = self.figures
        print(
            f"{self.rounds} rounds: {f.acknowledged} acknowledged, {f.reads} read, {f.kills} kills, {f.stops} stops,"
            f" {f.compacted} segments compacted, {self.lost_catalogs} catalogs lost, {self.flips} bits flipped,"
            f" {self.repaired} repaired, {self.checks} checks, at most {self.most_bytes >> 20} MiB",
            flush=True,
        )


def main() -> int:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--limit-mib", type=int, default=512, help="a round ends when its store has so much")
    parser.add_argument("--place", type=Path, help="a directory on the disk to use")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="holdfast-soak-", dir=arguments.place))
    soak = Soak(place, arguments.seed, arguments.limit_mib << 20)
    started = time.monotonic()
    try:
        soak.run(arguments.minutes * 60)
    except CheckFailed as error:
        print(f"{error}\n{' '.join(getattr(error, '__notes__', ()))}; the store is kept", flush=True)
        return 1
    seconds = time.monotonic() - started
    rate = soak.figures.acknowledged / seconds
    print(f"{seconds / 60:.1f} minutes, {rate:.0f} acknowledged a second, nothing lost, nothing wrong")
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
