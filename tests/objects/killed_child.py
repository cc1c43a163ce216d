"""Processes that kill themselves before each of their requests: `killed_child.py SCRIPT DIRECTORY [STRIDE]`.

`DIRECTORY/base` gets the store before the script, with its books; `DIRECTORY/N` what the process left that was killed
before its Nth request, with what it was told. Each is a fork of this one, which has no threads and no store.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from holdfast.testing.faulty_bucket import BucketSite, FaultyBucket
from holdfast.testing.ledger import Ledger
from tests.objects.world import OBJECT_SCRIPTS, ObjectWorld


def main(script: str, directory: str, stride: int = 1) -> None:
    place = Path(directory)
    base = place / "base"
    base.mkdir(parents=True)
    if _forked(lambda: _prepare(script, base)):
        sys.exit("it could not be prepared")
    number = 1
    while True:
        case = place / str(number)
        shutil.copytree(base, case)
        status = _forked(lambda number=number, case=case: _work(script, case, number))  # type: ignore[misc]
        if status == 0:
            shutil.rmtree(case)
            return
        if status != signal.SIGKILL:
            sys.exit(f"the child of {number} ended by itself: {status}")
        number += stride


def _forked(work: Callable[[], None]) -> int:
    """Run in a child; gives its status: a signal's number, or the code times 256."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def _prepare(script: str, base: Path) -> None:
    world = ObjectWorld(base, is_real=True)
    world.open(create=True).close()
    OBJECT_SCRIPTS[script].prepare(world)
    (base / "ledger").write_bytes(pickle.dumps(world.ledger))


def _work(script: str, case: Path, number: int) -> None:
    world = ObjectWorld(case, is_real=True)
    ledger: Ledger = pickle.loads((case / "ledger").read_bytes())

    def die(site: BucketSite) -> None:
        if site.number == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with open(case / "log", "w", buffering=1) as lines:
        ledger._tell = lambda event: print(event, file=lines)
        world.ledger = ledger
        OBJECT_SCRIPTS[script].run(world, FaultyBucket(world.bucket(), on_site=die))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
