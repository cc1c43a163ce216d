"""What a lock between threads is replaced by when it is taken away: it has all the methods, and keeps nobody out."""

from __future__ import annotations

import time


class Lawless:
    """A lock, or a condition, that is none. A wait ends at once, so that nobody hangs for want of a notice."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        time.sleep(0)  # as a lock that is contended: others may run
        return True

    def release(self) -> None: ...

    def wait(self, timeout: float | None = None) -> bool:
        time.sleep(0.0005)
        return True

    def wait_for(self, predicate: object, timeout: float | None = None) -> bool:
        return True

    def notify(self, n: int = 1) -> None: ...

    def notify_all(self) -> None: ...

    def __enter__(self) -> Lawless:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None: ...
