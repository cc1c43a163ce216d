"""Looking after a store in a bucket: scrub, verify, health. Everything is checked by reading it from the bucket.

A *pass* goes through the keys in their order: artifacts, blobs, commits, tags. How far it is stands in the catalog as a
hint. What is damaged is remembered there (`catalog.objects.Bad`) until it is repaired.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Final, NamedTuple, TypeVar

import msgspec

from holdfast.backend.objects.backend import Generations
from holdfast.backend.objects.ends import list_whole, make_ends
from holdfast.backend.objects.layout import ARTIFACTS, BLOBS, COMMITS, TAGS, is_names_key
from holdfast.backend.objects.names import read_named
from holdfast.care.report import Report, problem_of
from holdfast.care.scrub import Done, Pace
from holdfast.catalog.collecting import COLLECTED
from holdfast.catalog.objects import (
    HIDDEN_COUNT,
    LACKING_COUNT,
    Bad,
    drop_blobs,
    hide,
    iter_lacking,
    known_bad,
    note_bad,
)
from holdfast.core import MENDABLE
from holdfast.errors import (
    BackendError,
    CorruptBlob,
    CorruptObject,
    HoldfastError,
    MissingChunk,
)
from holdfast.facts import Facts
from holdfast.object_checks import BlobCheck, Finding
from holdfast.object_core import ObjectCore
from holdfast.object_listing import Listed, Tally, iter_blobs
from holdfast.object_refresh import missing_names
from holdfast.reading import Reading
from holdfast.reports import Ailment, Health, Problem, ScrubReport, VerifyReport
from holdfast.types import BLOCK_BYTES, Hash, ProgressCallback, Ref, now_ms, to_datetime

FLYING: Final = 64
FLYING_BYTES: Final = 64 << 20
SLOW_FLYING_BYTES: Final = 8 << 20
"""With a limit of bytes a second."""
MAX_LOOKS: Final = 10_000
SECTIONS: Final = (ARTIFACTS, BLOBS, COMMITS, TAGS)
POSITION: Final = "scrub_position"
DONE: Final = "scrub_done"
FROM_A_COPY: Final = "`holdfast repair SOURCE`, with a copy of the store or of the files"
T = TypeVar("T", bound=msgspec.Struct)


class Place(msgspec.Struct):
    """How far a pass is: all keys up to `after`, and of the blob `blob` (hex), which comes next, `offset` bytes."""

    after: str = ""
    blob: str = ""
    offset: int = 0
    bytes: int = 0
    problems: int = 0
    started_ms: int = 0


class _Task(NamedTuple):
    """Something that is being checked. `after`, `blob`, `offset`: where the pass is once it is done."""

    after: str
    blob: str
    offset: int
    size_bytes: int
    ends_blob: bool
    future: Future[list[Finding]]


class Scrub:
    """One call: a pass, or a part of one."""

    def __init__(
        self, core: ObjectCore, report: Report, max_bytes: int | None, bytes_per_second: float | None
    ) -> None:
        self._core = core
        self._backend = core.backend
        self._report = report
        self._max_bytes = max_bytes
        self._pace = Pace(max_bytes, bytes_per_second)
        self._flying_bytes = FLYING_BYTES if bytes_per_second is None else SLOW_FLYING_BYTES
        self._planned = 0
        self._is_cut = False
        self.position = Place(started_ms=now_ms())
        self.noted = 0
        self.tally = Tally()

    def run(self) -> bool:
        """Go on from the position; False when the budget was spent before the pass was through."""
        self._report.bytes_before = self.position.bytes
        self._report.total_bytes = self._core.catalog.ask("SELECT ifnull(sum(stored), 0) FROM blobs")[0][0]
        flying: deque[_Task] = deque()
        held = 0
        try:
            for task in self._tasks():
                flying.append(task)
                held += task.size_bytes
                while len(flying) >= FLYING or held > self._flying_bytes:
                    held -= flying[0].size_bytes
                    self._land(flying.popleft())
            while flying:
                self._land(flying.popleft())
        finally:
            for task in flying:
                if not task.future.cancel():
                    task.future.exception()
        if self._is_cut:
            return False
        self._look_for_lost()
        self._look_for_lost_names()
        return True

    def _land(self, task: _Task) -> None:
        found = task.future.result()
        at = self.position
        at.after, at.blob, at.offset = task.after, task.blob, task.offset  # first: the caller may raise
        for one in found:
            self._report.add(
                Problem(
                    kind=CorruptBlob.kind if one.hash else CorruptObject.kind,
                    message=one.reason if not one.hash else f"the object is damaged ({one.reason})",
                    hash=Hash(one.hash) if one.hash else None,
                    offset_bytes=one.offset,
                    path=one.key,
                )
            )
        if not self._core.read_only:
            self.noted += note_bad(self._core.catalog, (Bad(f.key, f.hash, f.reason) for f in found))
        for _ in self._pace.took(task.size_bytes):
            self._report.checked(0)
        self._report.checked(task.size_bytes, 1, int(task.ends_blob))

    def _tasks(self) -> Iterator[_Task]:
        """Begin to check one thing after another, until the budget is spent."""
        for section in SECTIONS:
            if self.position.after > section and not self.position.after.startswith(section):
                continue
            after = self.position.after if self.position.after.startswith(section) else ""
            for task in self._blobs(after) if section == BLOBS else self._names(section, after):
                yield task
                self._planned += task.size_bytes
                if self._max_bytes is not None and self._planned >= self._max_bytes:
                    self._is_cut = True
                    return

    def _names(self, section: str, after: str) -> Iterator[_Task]:
        for meta in filter(
            lambda one: is_names_key(one.key), list_whole(self._backend.bucket, section, after=after)
        ):
            future = self._backend.pool.submit(self._check_name, meta.key)
            yield _Task(meta.key, "", 0, meta.size_bytes, False, future)

    def _check_name(self, key: str) -> list[Finding]:
        try:
            read_named(self._backend.bucket, key)
        except CorruptObject as error:
            return [Finding(key, b"", None, error.message)]
        return []

    def _blobs(self, after: str) -> Iterator[_Task]:
        resumed, offset = self.position.blob, self.position.offset
        after = after or BLOBS
        for listed in self._watched(iter_blobs(self._backend, self.tally, after), after):
            start = offset if listed.hash.hex() == resumed else 0
            check = BlobCheck(
                self._backend, listed.hash, listed.size_bytes, has_outboard=not listed.lacks_outboard
            )
            for first, stop in check.windows(start):
                is_last = stop == listed.size_bytes
                future = self._backend.pool.submit(check.check, first, stop)
                size = stop - first
                if is_last:
                    yield _Task(listed.last_key, "", 0, size, True, future)
                    after = listed.last_key
                else:
                    yield _Task(after, listed.hash.hex(), stop, size, False, future)

    def _watched(self, blobs: Iterator[Listed], after: str) -> Iterator[Listed]:
        """Hold the catalog against the listing: rows of which there is nothing are looked at, and dropped."""
        first = after.removeprefix(BLOBS)[:64]
        try:
            rows = self._core.catalog.iter_blobs(bytes.fromhex(first) if first else None)
        except ValueError:  # in the middle of keys in base32
            rows = iter(())
        known = next(rows, None)
        for listed in blobs:
            if not listed.found.name:
                while known is not None and known.hash < listed.hash:
                    self._drop_if_gone(known.hash)
                    known = next(rows, None)
                if known is not None and known.hash == listed.hash:
                    known = next(rows, None)
            yield listed
        while known is not None:
            self._drop_if_gone(known.hash)
            known = next(rows, None)

    def _drop_if_gone(self, hash_: bytes) -> None:
        if self._backend.find(hash_).best is None and not self._core.read_only:
            drop_blobs(self._core.catalog, [hash_])

    def _look_for_lost(self) -> None:
        """Report what is named and not in the bucket; what was never acknowledged is hidden."""
        core = self._core
        unacknowledged: list[bytes] = []
        for hash_, found in self._lacking():
            if found.best is not None:
                if not core.read_only:
                    core.catalog.apply(Facts(blobs=[Listed.of(hash_, found).row()]))
            elif found.was_collected:
                unacknowledged.append(hash_)
            else:
                message = "it is named, and the bucket has nothing of it"
                self._report.add(Problem(kind=MissingChunk.kind, message=message, hash=Hash(hash_)))
        if not core.read_only:
            hide(core.catalog, unacknowledged)

    def _look_for_lost_names(self) -> None:
        """Report objects of names that are gone, and known to this catalog alone: `repair` writes them again."""
        core, message = self._core, "the object is gone, and what it named is known to this catalog alone"
        keys = missing_names(self._backend, core.catalog)
        for key in keys:
            self._report.add(Problem(kind=CorruptObject.kind, message=message, path=key))
        if not core.read_only:
            self.noted += note_bad(core.catalog, (Bad(key, b"", message) for key in keys))

    def _lacking(self) -> Iterator[tuple[bytes, Generations]]:
        hashes = list(islice(iter_lacking(self._core.catalog), MAX_LOOKS))
        yield from zip(hashes, self._backend.pool.map(self._backend.find, hashes), strict=True)


def scrub(
    core: ObjectCore,
    progress: ProgressCallback | None,
    *,
    resume: bool = False,
    max_bytes: int | None = None,
    bytes_per_second: float | None = None,
) -> ScrubReport:
    """Check what is in the bucket: a whole pass, or with a budget a part of one; `resume` goes on where one ended."""
    core.write_down_damage()
    report = Report("scrub", progress)
    work = Scrub(core, report, max_bytes, bytes_per_second)
    if resume and (kept := read_hint(core, POSITION, Place)) is not None:
        work.position = kept
    elif not core.backend.read_only:
        make_ends(core.backend.bucket)  # then what was removed along with one is missed below
    whole = False
    try:
        whole = work.run()
    finally:  # interrupted: the next call goes on here
        _keep(core, work.position, report, whole=whole)
    position = work.position
    return ScrubReport(
        ok=not position.problems + report.count,
        **report.fields(),
        complete=whole,
        pass_bytes=position.bytes + report.bytes,
        pass_problems=position.problems + report.count,
        total_bytes=max(report.total_bytes or 0, position.bytes + report.bytes if whole else 0),
        quarantined=work.noted,
    )


def _keep(core: ObjectCore, at: Place, report: Report, *, whole: bool) -> None:
    if core.read_only:
        return
    problems, total = at.problems + report.count, at.bytes + report.bytes
    if whole:
        done = Done(finished_ms=now_ms(), problems=problems, bytes=total)
        core.catalog.set_meta(DONE, msgspec.json.encode(done))
        core.catalog.set_meta(POSITION, None)
    else:
        kept = msgspec.structs.replace(at, bytes=total, problems=problems)
        core.catalog.set_meta(POSITION, msgspec.json.encode(kept))


def read_hint(core: ObjectCore, key: str, kind: type[T]) -> T | None:
    """Give what an earlier call kept in the catalog; None when there is nothing, or nothing that can be read."""
    raw = core.catalog.get_meta(key)
    try:
        return msgspec.json.decode(raw, type=kind) if isinstance(raw, bytes) else None
    except msgspec.MsgspecError:
        return None


def verify(core: ObjectCore, ref: Ref, progress: ProgressCallback | None) -> VerifyReport:
    """Read all of a blob against its hash, and its outboard; of a tree all its files."""
    report = Report("verify", progress)
    hashes = [core.resolve(ref).hash]
    if not isinstance(ref, Hash):
        entry = core.artifact(ref)
        if entry.format:
            try:
                files = dict.fromkeys(hash_ for _, hash_ in Reading(core).iter_collection(entry.hash))
                hashes += [one for one in files if one != entry.hash]
            except MENDABLE:
                raise
            except HoldfastError as error:
                report.add(problem_of(error))
    for hash_ in hashes:
        try:
            _verify_blob(core, hash_, report)
        except (BackendError, *MENDABLE):
            raise
        except HoldfastError as error:
            report.add(problem_of(error, hash=Hash(hash_)))
        report.blobs += 1
    return report.finish()


def _verify_blob(core: ObjectCore, hash_: bytes, report: Report) -> None:
    size = core.blob(hash_).size
    found = core.backend.find(hash_)
    if found.best is None:
        raise core.backend.absent(hash_, core.backend.data_key(hash_), found)
    has_outboard = size <= BLOCK_BYTES or found.best in found.outboards
    check = BlobCheck(core.backend, hash_, size, has_outboard=has_outboard)
    flying: deque[tuple[int, Future[list[Finding]]]] = deque()

    def land() -> None:
        length, future = flying.popleft()
        for one in future.result():
            core.backend.note_damage(one.key, hash_, one.reason)
            report.add(
                Problem(
                    kind=CorruptBlob.kind,
                    message=f"the object is damaged ({one.reason})",
                    hash=Hash(hash_),
                    offset_bytes=one.offset,
                    path=one.key,
                )
            )
        report.checked(length)

    try:
        for start, stop in check.windows():
            flying.append((stop - start, core.backend.pool.submit(check.check, start, stop)))
            if len(flying) >= 8:
                land()
        while flying:
            land()
    finally:
        for _, future in flying:
            if not future.cancel():
                future.exception()


def health(core: ObjectCore) -> Health:
    """Say how the store is, from the catalog: no request is made but those that its look-ups make."""
    core.write_down_damage()
    catalog = core.catalog
    ((missing,),) = catalog.ask(LACKING_COUNT)
    ((hidden,),) = catalog.ask(HIDDEN_COUNT)
    bad = known_bad(catalog)
    listing = core.keeper.listing()
    done = read_hint(core, DONE, Done)
    collected = catalog.get_meta(COLLECTED)
    ailments: list[Ailment] = []

    def ail(what: str, advice: str) -> None:
        ailments.append(Ailment(what=what, advice=advice))

    if bad:
        ail(f"{len(bad)} objects are damaged", FROM_A_COPY)
    if missing:
        ail(
            f"{missing} blobs are named and not in the bucket",
            f"{FROM_A_COPY}; or put their bytes again: the names find them",
        )
    return Health(
        ok=not ailments,
        ailments=tuple(ailments),
        checked_at=to_datetime(now_ms()),
        scrubbed_at=to_datetime(done.finished_ms) if done is not None else None,
        scrub_problems=done.problems if done is not None else 0,
        scrub_under_way=read_hint(core, POSITION, Place) is not None,
        collected_at=to_datetime(int(collected)) if collected else None,
        quarantined=len(bad),
        missing_blobs=missing,
        bad_outboards=core.backend.remade_outboards,
        missing_outboards=listing.without_outboard,
        foreign_objects=listing.foreign,
        unacknowledged=hidden,
        listed_at=to_datetime(listing.listed_ms) if listing.listed_ms else None,
    )
