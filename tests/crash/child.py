"""What a child does that somebody else breaks: works on a store, and says on its standard output what was acknowledged.

`python -m tests.crash.child work STORE SEED [TURNS]` works for a while; each line is an event, or a refusal.
`python -m tests.crash.child fill STORE` works until the disk is full, makes room, and checks everything itself.
"""

from __future__ import annotations

import json
import os
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError, NoSpace
from holdfast.store import Store
from holdfast.testing.checks import check_store
from holdfast.testing.ledger import Event, Ledger
from tests.crash.world import CHUNKING, SEGMENT_BYTES, attempt, piece

OPTIONS: dict[str, Any] = {"chunking": CHUNKING, "segment_bytes": SEGMENT_BYTES}


def say(event: Event | list[Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def events(output: str) -> list[Event]:
    """Read what a child said, its last line perhaps cut off; refusals are left out."""
    found: list[Event] = []
    for line in output.splitlines(keepends=True):
        if line.endswith("\n"):
            event = json.loads(line)
            if event[0] == "begin":
                subject = tuple(tuple(s) if isinstance(s, list) else s for s in event[3])
                found.append(("begin", event[1], event[2], subject))
            elif event[0] == "done":
                found.append(tuple(event))
    return found


def work(path: str, seed: int, turns: int = 2) -> None:
    """Do each kind of work; go on after refusals, with the store opened anew where it was not to be had."""
    ledger = Ledger(say)
    rng = random.Random(seed)
    for turn in range(turns):
        try:
            store = Store._open(path, **OPTIONS)
        except HoldfastError as error:
            say(["refused", error.kind])
            continue

        def tell(error: HoldfastError | None) -> None:
            if error is not None:
                say(["refused", error.kind])

        for i in range(2):
            name = f"{turn}-{i}"
            tell(attempt(lambda: ledger.put(store, piece(f"one-{name}", rng.randint(1, 40_000)))))  # noqa: B023
            many = [piece(f"many-{name}-{n}", rng.randint(1, 30_000)) for n in range(4)]
            tell(attempt(lambda: ledger.put_many(store, many)))  # noqa: B023
            live = sorted(set(ledger.artifacts) - ledger.unsure())
            if live:
                tell(attempt(lambda: ledger.delete(store, live[0])))  # noqa: B023
        tell(attempt(store.close))


def fill_up(path: str) -> None:
    """Put until nothing fits, three times, each time with room made again; the catalog is on the same disk."""
    ledger = Ledger()
    refused = 0
    ballast = [Path(path).parent / f"ballast-{turn}" for turn in range(3)]
    for file in ballast:
        file.write_bytes(bytes(1_000_000))
    Store._open(path, create=True, **OPTIONS).close()
    rng = random.Random(7)
    for turn in range(3):
        before = refused
        store = Store._open(path, **OPTIONS)
        try:
            for i in range(2_000):
                small = [piece(f"{turn}-{i}-{n}", rng.choice((10, 3_000, 60_000))) for n in range(3)]
                put = (
                    partial(ledger.put_many, store, small) if i % 2 else partial(ledger.put, store, small[0])
                )
                error = attempt(put)
                if error is not None:
                    assert isinstance(error, NoSpace), repr(error)
                    refused += 1
                    if refused - before > 5:
                        break
            for name in sorted(set(ledger.artifacts) - ledger.unsure()):
                assert store.read(ledger.ids[name]) == ledger.content(name)
        finally:
            attempt(store.close)  # may say that the catalog has no room for the last facts
        attempt(lambda: Store._open(path, **OPTIONS).close())  # while it is full: opens, or says why not
        ballast[turn].unlink()
        check_store(lambda: Store._open(path, **OPTIONS), ledger)
        with Store._open(path, **OPTIONS) as store:
            for name in sorted(set(ledger.artifacts) - ledger.unsure()):
                assert store.read(ledger.ids[name]) == ledger.content(name)
    say(["full", refused, len(ledger.artifacts)])


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(sys.argv[2], int(sys.argv[3]), *map(int, sys.argv[4:]))
    else:
        fill_up(os.path.abspath(sys.argv[2]))
