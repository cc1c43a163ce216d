"""One collection: mark, condemn, wait, mark again, pardon, drop (docs/design.md, "Collection"). How far it has come
stands in the catalog, so it may end after any step and go on later, in whichever process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Final, NoReturn

import msgspec

from holdfast.catalog import Catalog
from holdfast.catalog import collecting as books
from holdfast.catalog.collecting import Cycle, Touch
from holdfast.digests import BUCKETS, bucket_range
from holdfast.facts import FLAG_CONDEMNED, FLAG_UNNAMED
from holdfast.gc.found import MAX_LISTED, Found, expiry_ms, is_behind, unmarked_bits, waiting_for
from holdfast.gc.marks import Marks, Root, Tracer, blob_pages, data_pages, pages_of
from holdfast.gc.roots import check_names, iter_held, iter_leases, refusal
from holdfast.log_core import LogCore
from holdfast.sequences import Unreadable
from holdfast.types import Hash, Progress, ProgressCallback, now_ms

log = logging.getLogger("holdfast")

TRANSACTION_ROWS: Final = 500
"""Others write between two transactions; one of this many rows takes a few milliseconds."""
LONGEST_PAUSE_SECONDS: Final = 0.05
WAIT_SECONDS: Final = 5.0
"""How long one call waits for operations that began before; the next call goes on."""
RESTARTS: Final = 3
_BOTH: Final = FLAG_CONDEMNED | FLAG_UNNAMED


class Replaced(Exception):
    """The catalog was lost or rebuilt: with it went what was condemned, and the cycle ends."""


class Enough(Exception):
    """The batches that this call may do are done, or it is to stop."""


class Collection:
    """One call's part of a collection. The caller holds the collector's lock.

    `old` are marks of an earlier call that broke off while it condemned; `marks` are left for the next one.
    """

    def __init__(
        self,
        core: LogCore,
        *,
        min_age_seconds: float,
        max_batches: int | None,
        progress: ProgressCallback | None,
        stop: Callable[[], bool],
        old: Marks | None = None,
    ) -> None:
        self.found = Found()
        self.marks = old
        self._core = core
        self._min_age_seconds = min_age_seconds
        self._batches = max_batches
        self._batch_rows = core.options.gc_batch_size
        self._rows = 0
        self._progress = progress
        self.stop = stop
        self._of: Catalog | None = None
        """The catalog that all of this is about."""
        self._done_items = 0

    def run(self) -> None:
        """Do what there is to do: to the end of what was under way and then a whole cycle, or `max_batches`."""
        try:
            for _ in range(RESTARTS):
                with suppress(Replaced):
                    self._run()
                    return
                self._forget_marks()
        except Enough:
            return
        except Unreadable as error:
            raise refusal(self._core, error) from error.cause
        finally:
            if self.found.complete:
                self._forget_marks()

    def _run(self) -> None:
        catalog = self._of = self._core.catalog
        cycle = books.read_cycle(catalog)
        if cycle is not None:
            self._go_on(cycle)
            if self._batches is not None or not self.found.complete:
                return
            self.found.complete = False
            self._forget_marks()
        self._go_on(None)

    def _go_on(self, cycle: Cycle | None) -> None:
        if cycle is None:
            self._take_over()  # what came to light once it is forgotten would come back
            self._forget_expired()
            cycle = Cycle("condemn blobs", started_ms=now_ms())
        if cycle.phase in ("condemn blobs", "condemn data"):
            condemned = self._condemn(cycle)
            if condemned is None:
                self.found.complete = True
                return
            cycle = condemned
        if cycle.phase == "wait":
            if not self._wait(cycle.epoch):
                return
            self._take_over()
            self._mark_again()
            cycle = msgspec.structs.replace(cycle, phase="drop blobs", done=b"")
            books.write_cycle(self._catalog(), cycle)
        self._drop(cycle)
        books.end_cycle(self._catalog(), now_ms())
        self.found.complete = True

    # -- undo windows

    def _forget_expired(self) -> None:
        until_ms = expiry_ms(self._min_age_seconds)
        while forgotten := books.forget_expired(self._catalog(), until_ms, TRANSACTION_ROWS):
            self.found.artifacts += len(forgotten)
            self._spend(len(forgotten))

    # -- condemning

    def _condemn(self, cycle: Cycle) -> Cycle | None:
        """Condemn what is not marked. The mark may be old: whatever it got wrong, the second one pardons."""
        marks = self.marks
        if marks is None:
            marks = self.marks = self._trace(self._roots())
        if cycle.phase == "condemn blobs":
            for rows in self._unmarked_blobs(marks, cycle.done):
                self._condemn_rows(rows, "condemn blobs", cycle)
            cycle = msgspec.structs.replace(cycle, phase="condemn data", done=b"")
        for rows in self._unmarked_data(marks, cycle.done):
            self._condemn_rows(rows, "condemn data", cycle)
        self._forget_marks()
        catalog = self._catalog()
        if not catalog.is_collecting:
            books.end_cycle(catalog, now_ms())
            return None
        return books.advance_epoch(catalog, cycle)

    def _condemn_rows(
        self, page: tuple[list[tuple[int, bytes]], int, bytes], phase: str, cycle: Cycle
    ) -> None:
        doomed, seen, last = page
        for start in range(0, len(doomed), TRANSACTION_ROWS):
            part = doomed[start : start + TRANSACTION_ROWS]
            at: Cycle = msgspec.structs.replace(cycle, phase=phase, done=part[-1][1])
            began = time.monotonic()
            if phase == "condemn blobs":
                books.condemn(self._catalog(), [hash_ for _, hash_ in part], (), at)
            else:
                books.condemn(self._catalog(), (), part, at)
            self._breathe(began)
        self.found.condemned += len(doomed)
        at = msgspec.structs.replace(cycle, phase=phase, done=last)
        self._spend(seen, lambda: books.write_cycle(self._catalog(), at))

    def _unmarked_blobs(
        self, marks: Marks, done: bytes
    ) -> Iterator[tuple[list[tuple[int, bytes]], int, bytes]]:
        for number, after, below in _ranges(done):
            live = marks.blobs.bucket(number)
            for page in blob_pages(self._catalog, after, below):
                doomed = [
                    (0, hash_) for hash_, _, _, condemned in page if hash_ not in live and not condemned
                ]
                yield doomed, len(page), page[-1][0]

    def _unmarked_data(
        self, marks: Marks, done: bytes
    ) -> Iterator[tuple[list[tuple[int, bytes]], int, bytes]]:
        for number, after, below in _ranges(done):
            blobs = marks.blobs.bucket(number)
            payloads = marks.payloads.bucket(number)
            for page in data_pages(self._catalog, after, below):
                doomed = []
                for hash_, flags, _ in page:
                    bits = unmarked_bits(hash_, flags, blobs, payloads)
                    if bits & ~flags:
                        doomed.append((bits, hash_))
                yield doomed, len(page), page[-1][0]

    # -- waiting

    def _wait(self, epoch: int) -> bool:
        """Wait until whatever began before the condemning has ended; True when it has. Holds no lock while it waits."""
        deadline = time.monotonic() + WAIT_SECONDS
        pause = 0.001
        while True:
            self._core.backend.end_pins()
            catalog = self._catalog()
            behind = [one for one in self._core.backend.sessions() if is_behind(one, catalog.id, epoch)]
            self.found.waits_for = tuple(map(waiting_for, behind))
            if not behind:
                return True
            if self.stop():
                raise Enough
            if time.monotonic() > deadline:
                return False
            self._tell("wait", 0)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)

    def _take_over(self) -> None:
        """Bring in what dead writers left: it may rely on what is condemned, and nobody else speaks for it."""
        backend = self._core.backend
        with backend.lock():
            self._core.keeper.catch_up()
        backend.end_pins()
        self._catalog()

    # -- the second mark

    def _mark_again(self) -> None:
        """Pardon what is reached now. A blob that is not condemned counts as well: a put may rely on it, unasked."""
        marks = self._trace(self._roots(), also=self._uncondemned_blobs())
        try:
            self._pardon(marks)
        finally:
            marks.close()

    def _uncondemned_blobs(self) -> Iterator[bytes]:
        for _, low, high in _ranges(b""):
            for page in blob_pages(self._catalog, low, high):
                yield from (hash_ for hash_, _, _, condemned in page if not condemned)

    def _pardon(self, marks: Marks) -> None:
        for number, low, high in _ranges(b""):
            blobs, payloads = marks.blobs.bucket(number), marks.payloads.bucket(number)
            for page in blob_pages(self._catalog, low, high):
                reached = [hash_ for hash_, _, _, condemned in page if condemned and hash_ in blobs]
                self._pardon_rows(reached, [])
            for rows in data_pages(self._catalog, low, high):
                pardoned = []
                for hash_, flags, _ in rows:
                    bits = flags & _BOTH
                    if bits and (bits := bits & ~unmarked_bits(hash_, flags, blobs, payloads)):
                        pardoned.append((bits, hash_))
                self._pardon_rows([], pardoned)

    def _pardon_rows(self, blobs: list[bytes], data: list[tuple[int, bytes]]) -> None:
        for start in range(0, max(len(blobs), len(data)), TRANSACTION_ROWS):
            began = time.monotonic()
            stop = start + TRANSACTION_ROWS
            books.pardon(self._catalog(), blobs[start:stop], data[start:stop])
            self._breathe(began)
        self.found.pardoned += len(blobs) + len(data)

    # -- dropping

    def _drop(self, cycle: Cycle) -> None:
        """Drop what is condemned still: blobs first, so that none is ever found whose pieces are gone."""
        if cycle.phase == "drop blobs":
            self._drop_rows("blobs", cycle)
            cycle = msgspec.structs.replace(cycle, phase="drop data", done=b"")
        self._drop_rows("data", cycle)

    def _drop_rows(self, table: str, cycle: Cycle) -> None:
        drop = books.drop_blobs if table == "blobs" else books.drop_data
        phase = f"drop {table}"
        after = cycle.done
        while page := books.condemned_page(self._catalog(), table, after, TRANSACTION_ROWS):
            hashes = [hash_ for hash_, _ in page]
            at: Cycle = msgspec.structs.replace(cycle, phase=phase, done=hashes[-1])
            began = time.monotonic()
            dropped = drop(self._catalog(), hashes, at)
            if dropped is None:
                self._settle_touched()
                continue
            self._breathe(began)
            after = hashes[-1]
            self.found.freed_bytes += dropped.freed_bytes
            if table == "blobs":
                self.found.blobs += len(dropped.hashes)
                room = MAX_LISTED - len(self.found.hashes)
                self.found.hashes += map(Hash, dropped.hashes[:room])
            else:
                self.found.payloads += len(dropped.hashes)
            self._spend(len(page))

    def _settle_touched(self) -> None:
        """Pardon whatever those need who came to rely on something meanwhile."""
        touches = books.touched(self._catalog())
        try:
            marks = self._trace((), touches=touches)
        except Unreadable as error:
            # What a reader looks at need not be sound. Nothing is lost by beginning anew, without what it touched.
            log.warning("the collection begins anew: %s", error.cause)
            self._give_up()
        try:
            for _, blobs in marks.blobs.buckets():
                self._pardon_rows(list(blobs), [(_BOTH, hash_) for hash_ in blobs])
            for _, payloads in marks.payloads.buckets():
                self._pardon_rows([], [(FLAG_CONDEMNED, hash_) for hash_ in payloads])
        finally:
            marks.close()
        books.untouch(self._catalog(), touches)

    def _give_up(self) -> NoReturn:
        catalog = self._catalog()
        for table in ("blobs", "data"):
            for page in self._condemned(table):
                hashes = [hash_ for hash_, _ in page]
                self._pardon_rows(hashes, [(_BOTH, hash_) for hash_ in hashes])
        books.end_cycle(catalog, now_ms())
        raise Enough

    def _condemned(self, table: str) -> Iterator[list[tuple[bytes, int]]]:
        return pages_of(lambda a: books.condemned_page(self._catalog(), table, a, TRANSACTION_ROWS), b"")

    # -- what all share

    def _catalog(self) -> Catalog:
        catalog = self._core.catalog
        if catalog is not self._of:  # not by its id: an older copy that was put back has the same
            raise Replaced
        return catalog

    def _roots(self) -> Iterator[Root]:
        """Give what is kept by a name or a lease. Leases first: who releases one has named its blob by then."""
        check_names(self._core)
        return chain(iter_leases(self._core), books.iter_names(self._catalog()))

    def _trace(
        self, roots: Iterable[Root], *, also: Iterable[bytes] = (), touches: Iterable[Touch] | None = None
    ) -> Marks:
        tracer = Tracer(self._core, self._catalog, lambda count: self._tell("mark", count))
        if touches is not None:
            return tracer.trace(touches)
        return tracer.trace(roots, iter_held(self._core), also)

    def _forget_marks(self) -> None:
        marks, self.marks = self.marks, None
        if marks is not None:
            marks.close()

    def _tell(self, phase: str, more: int) -> None:
        if self.stop():
            raise Enough
        self._done_items += more
        if self._progress is not None:
            self._progress(Progress(phase=phase, done_items=self._done_items))

    def _spend(self, rows: int, save: Callable[[], None] | None = None) -> None:
        """Count rows that were looked at; at the end of the last batch of this call, note how far it came."""
        self._rows += rows
        self._tell("collect", rows)
        if self._batches is None or self._rows < self._batch_rows:
            return
        self._batches -= self._rows // self._batch_rows
        self._rows %= self._batch_rows
        if self._batches <= 0:
            if save is not None:
                save()
            raise Enough

    def _breathe(self, began: float) -> None:
        """Let others write as long as this transaction took."""
        time.sleep(min(time.monotonic() - began, LONGEST_PAUSE_SECONDS))


def _ranges(done: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Give (number, after, below) of each bucket from `done` on."""
    for number in range(done[0] if done else 0, BUCKETS):
        low, high = bucket_range(number)
        yield number, max(low, done), high
