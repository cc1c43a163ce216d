"""All orders in which the requests of two sides can reach a bucket, one after another.

Each side is a function in a thread of its own, which stops before each request until it is its turn; so a step is one
request and what follows until the next, as in models/bucket.pml. Where both wait, both ways are tried in turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final

from holdfast.testing.faulty_bucket import BucketSite

PATIENCE_SECONDS: Final = 60.0


class Sides:
    """One run. `choices` says who goes where both could; behind its end the side goes on that went last."""

    def __init__(self, choices: list[int], is_free: Callable[[BucketSite], bool]) -> None:
        self.taken: list[tuple[int, bool]] = []
        """Who went at each point where both could, and whether that took the turn from the other."""
        self.trace: list[str] = []
        self._choices = choices
        self._is_free = is_free
        self._changed = threading.Condition()
        self._waiting: dict[int, BucketSite] = {}
        self._granted: int | None = None
        self._done: set[int] = set()

    def on_site(self, side: int) -> Callable[[BucketSite], None]:
        """Give what a bucket of this side calls before each request."""

        def wait(site: BucketSite) -> None:
            if self._is_free(site) or side in self._done:
                return
            with self._changed:
                self._waiting[side] = site
                self._changed.notify_all()
                if not self._changed.wait_for(lambda: self._granted == side, PATIENCE_SECONDS):
                    raise TimeoutError(f"side {side} was never let go on at {site}")
                self._granted = None

        return wait

    def run(self, works: list[Callable[[], object]], after_step: Callable[[], None]) -> list[object]:
        """Run both; gives what each gave or raised. `after_step` is called whenever nobody runs."""
        results: list[object] = [None] * len(works)

        def work(side: int) -> None:
            try:
                results[side] = works[side]()
            except BaseException as error:  # noqa: BLE001  # the result
                results[side] = error
            with self._changed:
                self._done.add(side)
                self._changed.notify_all()

        threads = [threading.Thread(target=work, args=(side,), daemon=True) for side in range(len(works))]
        for thread in threads:
            thread.start()
        last = 0
        while True:
            with self._changed:
                still = self._changed.wait_for(
                    lambda: self._granted is None and len(self._waiting.keys() | self._done) == len(works),
                    PATIENCE_SECONDS,
                )
                assert still, f"somebody neither ends nor asks: {self.trace}"
                after_step()
                ready = sorted(self._waiting.keys() - self._done)
                if not ready:
                    break
                last = self._choose(ready, last)
                self.trace.append(f"{last}: {self._waiting.pop(last)}")
                self._granted = last
                self._changed.notify_all()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        return results

    def _choose(self, ready: list[int], last: int) -> int:
        if len(ready) == 1:
            return ready[0]
        at = len(self.taken)
        side = self._choices[at] if at < len(self._choices) else last
        self.taken.append((side, side != last))
        return side


def iter_orders(switches: int | None = None) -> Iterator[tuple[list[int], Callable[[Sides], None]]]:
    """Give the choices of one run after another, and what is to be told of it; until all orders were tried.

    `switches` bounds how often the turn is taken from a side that could go on.
    """
    waiting: list[list[int]] = [[]]
    while waiting:
        choices = waiting.pop()

        def tell(sides: Sides, tried: int = len(choices)) -> None:
            taken = sides.taken
            for at in range(tried, len(taken)):
                used = sum(switched for _, switched in taken[:at])
                if switches is None or used < switches:
                    waiting.append([side for side, _ in taken[:at]] + [1 - taken[at][0]])

        yield choices, tell
