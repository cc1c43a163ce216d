"""Looking ahead and back: what a collection would take and why, what keeps something, what a deletion would give."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import chain

from holdfast.backend.log.partial_state import PartialState
from holdfast.catalog import Catalog
from holdfast.catalog import collecting as books
from holdfast.digests import BUCKETS, DigestSet, bucket_range
from holdfast.errors import BlobNotFound, CorruptBlob, FormatError, IntegrityError
from holdfast.facts import FLAG_CONDEMNED, FLAG_UNNAMED
from holdfast.gc.found import MAX_LISTED, expiry_ms, unmarked_bits
from holdfast.gc.marks import Marks, Tracer, blob_pages, data_pages
from holdfast.gc.roots import check_names, iter_direct, iter_held, iter_leases, named_text
from holdfast.log_core import LogCore
from holdfast.partials import look
from holdfast.reports import Chain, Forecast, GcReport
from holdfast.sequences import Unreadable
from holdfast.types import Artifact, Hash, Progress, ProgressCallback, id_text, to_datetime
from holdfast.uploads import iter_held as iter_held_by
from holdfast.wire.upload import parse_upload

MAX_CHAINS = 100
MAX_WAYS = 10
"""How many ways to one blob are gone on with."""


def dry_run(core: LogCore, min_age_seconds: float, progress: ProgressCallback | None) -> GcReport:
    """Say what a collection would take, if nobody did anything meanwhile."""
    started = time.monotonic()
    until_ms = expiry_ms(min_age_seconds)
    with core.backend.operation():
        check_names(core)
        catalog = core.catalog
        tracer = _tracer(core, catalog, progress)
        roots = chain(iter_leases(core), books.iter_names(catalog, until_ms))
        marks = tracer.trace(roots, iter_held(core))
        try:
            return _unmarked(catalog, marks, until_ms, started)
        finally:
            marks.close()


def _unmarked(catalog: Catalog, marks: Marks, until_ms: int, started: float) -> GcReport:
    blobs: list[bytes] = []
    dropped_blobs = dropped_payloads = freed = 0
    for number, low, high in _all_ranges():
        live, payloads = marks.blobs.bucket(number), marks.payloads.bucket(number)
        for page in blob_pages(lambda: catalog, low, high):
            gone = [hash_ for hash_, _, _, _ in page if hash_ not in live]
            dropped_blobs += len(gone)
            freed += sum(stored for hash_, _, stored, _ in page if hash_ not in live)
            freed += books.copies_bytes(catalog, gone, of_blobs=True)
            blobs += gone[: MAX_LISTED - len(blobs)]
        for rows in data_pages(lambda: catalog, low, high):
            bits = [
                (unmarked_bits(hash_, flags, live, payloads), hash_, stored) for hash_, flags, stored in rows
            ]
            gone = [hash_ for one, hash_, _ in bits if one & FLAG_CONDEMNED]
            dropped_payloads += len(gone)
            freed += sum(stored for one, _, stored in bits if one & FLAG_CONDEMNED)
            freed += books.copies_bytes(catalog, gone, of_blobs=False)
            unnamed = [hash_ for one, hash_, _ in bits if one & FLAG_UNNAMED]
            dropped_blobs += len(unnamed)
            blobs += unnamed[: MAX_LISTED - len(blobs)]
    forgotten = 0
    reasons = {hash_.hex(): "nothing names it" for hash_ in blobs}
    for hash_, name in books.iter_deleted_tags(catalog):
        if hash_.hex() in reasons:
            reasons[hash_.hex()] = f"tag {name!r} was deleted"
    for id_, hash_, _ in books.iter_expired(catalog, until_ms):
        forgotten += 1
        if hash_.hex() in reasons:
            reasons[hash_.hex()] = f"artifact {id_text(id_)} was deleted, and its undo window is over"
    return GcReport(
        complete=True,
        dry_run=True,
        forgotten_artifacts=forgotten,
        dropped_blobs=dropped_blobs,
        dropped_payloads=dropped_payloads,
        freed_bytes=freed,
        blobs=tuple(map(Hash, blobs)),
        reasons=reasons,
        seconds=time.monotonic() - started,
    )


def forecast(core: LogCore, refs: Iterable[Artifact | str]) -> Forecast:
    """Say what deleting artifacts would give back. Reads what all others are made of, too: what is shared stays."""
    with core.backend.operation():
        catalog = core.catalog
        entries = {entry.id: entry for entry in map(core.artifact, refs)}
        tracer = _tracer(core, catalog, None)
        requires = books.required_by(catalog, entries)
        doomed = tracer.trace(
            [(entry.hash, entry.format) for entry in entries.values()] + [(hash_, 0) for hash_ in requires]
        )
        try:
            others = chain(iter_leases(core), books.iter_names(catalog, without=entries))
            kept = tracer.trace(others, iter_held(core))
            try:
                freed, shared = _split(catalog, doomed, kept)
            finally:
                kept.close()
        finally:
            doomed.close()
    return Forecast(
        artifacts=len(entries),
        freed_bytes=freed,
        shared_bytes=shared,
        min_age_seconds=core.options.min_age_seconds,
    )


def _split(catalog: Catalog, doomed: Marks, kept: Marks) -> tuple[int, int]:
    """Give the stored bytes of what only the doomed reach, and of what others reach too."""
    freed = shared = 0
    for number, _, _ in _all_ranges():
        blobs = doomed.blobs.bucket(number)
        payloads = doomed.payloads.bucket(number) | blobs
        kept_blobs = kept.blobs.bucket(number)
        kept_payloads = kept.payloads.bucket(number) | kept_blobs
        for hash_, row in catalog.find_data(list(payloads)).items():
            if hash_ in kept_payloads:
                shared += row[1]
            else:
                freed += row[1]
        for hash_, stored in books.blob_records(catalog, list(blobs)):
            if hash_ in kept_blobs:
                shared += stored
            else:
                freed += stored
    return freed, shared


def why(core: LogCore, hash: Hash) -> tuple[Chain, ...]:
    """Give up to 100 chains from a root to a blob or chunk; none: nothing keeps it. `BlobNotFound`: it is not here.

    Reads the manifests of all blobs, the hash seqs that are kept, and what partial blobs and uploads hold.
    """
    with core.backend.operation():
        catalog = core.catalog
        target = hash.digest
        if not catalog.find_data((target,)) and look(core, target) is None:
            raise BlobNotFound(f"there is no blob or chunk {target.hex()}", hash=hash)
        tracer = _tracer(core, catalog, None)
        parents = _parents(core, catalog, tracer, target)
        return tuple(_chains(core, parents, _holders(core, parents), target))


def _parents(core: LogCore, catalog: Catalog, tracer: Tracer, target: bytes) -> dict[bytes, set[bytes]]:
    """Give, for the target and all that holds it, the blobs that hold it directly."""
    parents: dict[bytes, set[bytes]] = {target: set()}
    for number, low, high in _all_ranges():
        del number
        for page in blob_pages(lambda: catalog, low, high):
            for hash_, location, stored, _ in page:
                if hash_ != target and _has(tracer, target, hash_, location, stored):
                    parents[target].add(hash_)
                    parents.setdefault(hash_, set())
    roots = [hash_ for hash_, format_ in chain(iter_leases(core), books.iter_names(catalog)) if format_]
    if not roots:
        return parents
    sequences = DigestSet()
    sequences.add(roots)
    every = {hash_ for hash_, _ in tracer.iter_sequences(sequences)}
    above: dict[bytes, set[bytes]] = {}
    for hash_, words in tracer.iter_sequences(sequences):
        for word in words:
            if word in every or word in parents:
                above.setdefault(word, set()).add(hash_)
    found = list(parents)
    while found:
        word = found.pop()
        for hash_ in above.get(word, ()):
            parents[word].add(hash_)
            if hash_ not in parents:
                parents[hash_] = set()
                found.append(hash_)
    return parents


def _has(tracer: Tracer, target: bytes, hash_: bytes, location: int, stored: int) -> bool:
    """Whether a blob is made of the target, among others; of a damaged one nobody knows."""
    with suppress(Unreadable):
        return any(target in some for some in tracer.pieces_of(hash_, location, stored))
    return False


def _holders(core: LogCore, wanted: Collection[bytes]) -> dict[bytes, list[tuple[str, tuple[Hash, ...]]]]:
    """Give, for what partial blobs and uploads hold, what holds it: its name, and the partial blob if it is one."""
    found: dict[bytes, list[tuple[str, tuple[Hash, ...]]]] = {}
    partials = core.backend.partials
    age_ms = int(core.options.partial_age_seconds * 1000)
    for digest in partials.hashes():
        state = look(core, digest)
        if not isinstance(state, PartialState):
            continue
        name = f"partial blob {digest.hex()} ({_until(state.written_ms + age_ms)})"
        if digest in wanted:
            found.setdefault(digest, []).append((name, ()))
        with suppress(CorruptBlob, FileNotFoundError):  # damaged: it holds nothing; gone: it is complete
            held = {one for hashes in partials.chunks(digest) for one in hashes if one in wanted}
            for one in held:
                found.setdefault(one, []).append((name, (Hash(digest),)))
    for raw in core.catalog.iter_open_uploads():
        upload = parse_upload(raw)
        name = f"upload {upload.token.hex()} ({_until(upload.expires_ms)})"
        with suppress(IntegrityError, FormatError):  # a collection says so
            for one in {one for one in iter_held_by(upload, core.backend.payloads.load) if one in wanted}:
                found.setdefault(one, []).append((name, ()))
    return found


def _until(time_ms: int) -> str:
    return f"until {to_datetime(time_ms):%Y-%m-%d %H:%M} UTC, or longer if more comes"


def _chains(
    core: LogCore,
    parents: dict[bytes, set[bytes]],
    holders: dict[bytes, list[tuple[str, tuple[Hash, ...]]]],
    target: bytes,
) -> Iterator[Chain]:
    """Walk up from the target; shortest chains first. A hash seq counts as a parent only where it is followed."""
    waiting: deque[tuple[bytes, ...]] = deque([(target,)])
    ways: Counter[bytes] = Counter()
    given = 0
    while waiting:
        path = waiting.popleft()
        names = ((named_text(named), ()) for named in iter_direct(core, path[0]))
        for name, above in chain(names, holders.get(path[0], ())):
            if given == MAX_CHAINS:
                return
            given += 1
            yield Chain(root=name, path=(*above, *map(Hash, path)))
        ways[path[0]] += 1
        if ways[path[0]] <= MAX_WAYS:  # there may be more ways than anybody can walk
            waiting.extend((up, *path) for up in sorted(parents[path[0]]) if up not in path)


def _tracer(core: LogCore, catalog: Catalog, progress: ProgressCallback | None) -> Tracer:
    done = 0

    def watch(count: int) -> None:
        nonlocal done
        done += count
        core.check()
        if progress is not None:
            progress(Progress(phase="mark", done_items=done))

    return Tracer(core, lambda: catalog, watch)


def _all_ranges() -> Iterator[tuple[int, bytes, bytes]]:
    for number in range(BUCKETS):
        yield number, *bucket_range(number)
