"""Who keeps what: leases of living processes, and names for people to read."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from typing import Final

import apsw

from holdfast import _native, uploads
from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.payloads import OFFSET_MASK
from holdfast.backend.log.segment import read_index
from holdfast.backend.log.session import SessionState
from holdfast.catalog.collecting import Named, names_of
from holdfast.errors import UnreadableRoot
from holdfast.gc.marks import Root
from holdfast.importing import iter_roots as iter_partial_roots
from holdfast.log_core import LogCore
from holdfast.sequences import Unreadable
from holdfast.types import Hash, id_text
from holdfast.wire.record import HEADER_BYTES, Kind, iter_entries

_NAMES: Final = {"artifacts": Kind.ARTIFACT, "tags": Kind.TAG, "uploads": Kind.UPLOAD}
READABLE_SECONDS: Final = 1.0
"""How long a session may take to be written: it is made under the store's lock, so only a broken one takes longer."""


def iter_leases(core: LogCore) -> Iterator[Root]:
    """Give what living processes lease; `UnreadableRoot` where one's session cannot be read."""
    for session in read_leases(core):
        yield from session.leases or ()


def check_names(core: LogCore) -> None:
    """Raise `UnreadableRoot` where damage hides what may be a name, and the catalog never read it: repair may."""
    catalog = core.catalog
    places = core.keeper.unread()
    if not places:
        return
    asked = (apsw.carray(array("q", places)),)
    for table in _NAMES:
        sql = f"SELECT location FROM {table} WHERE location IN (SELECT value FROM carray(?))"
        places.difference_update(place for (place,) in catalog.ask(sql, asked))
    known = catalog.segments()
    for segment in sorted({place >> 32 for place in places} & known.keys()):
        applied, _ = known[segment]  # what a power cut tore lies beyond: nobody was told of it
        here = {place & OFFSET_MASK for place in places if place >> 32 == segment}
        sought = {at for at in here if at < applied} - catalog.repaired(segment)
        offset = _hidden_name(core, segment, sought)
        if offset is not None:
            raise UnreadableRoot(
                f"nothing is collected: in segment {segment}, at offset {offset}, a damaged record may be a name, and"
                " nobody knows what it keeps. `holdfast scrub`, then repair it, or let it go with `repair --give-up`",
                root=f"segment {segment}, offset {offset}",
                segment=segment,
                offset_bytes=offset,
            )


def _hidden_name(core: LogCore, segment: int, offsets: set[int]) -> int | None:
    """Give the first of these places at which nothing can be read that may be a name."""
    disk, path = core.backend.disk, segment_path(core.backend.root, segment)
    try:
        handle = disk.open(path, "r")
    except FileNotFoundError:
        return None
    try:
        index = read_index(disk, handle, segment, path)
        torn = offsets.intersection(problem.offset_bytes or 0 for problem in index.problems)
        for entry in iter_entries(index.entries):
            if entry.offset in offsets and entry.kind in _NAMES.values():
                payload = disk.pread(handle, entry.stored_bytes, entry.offset + HEADER_BYTES)
                if _native.blake3(payload) != entry.hash:
                    torn.add(entry.offset)
        return min(torn, default=None)
    finally:
        disk.close(handle)


def iter_held(core: LogCore) -> Iterator[bytes]:
    """Give the payloads that uploads and partial blobs keep.

    They are read after names and leases: who completes a partial blob claims and leases the blob before it goes.
    """
    yield from uploads.iter_roots(core)
    for hashes in iter_partial_roots(core):
        yield from hashes


def read_leases(core: LogCore) -> list[SessionState]:
    """Give the sessions of living processes with their leases; all can be read."""
    deadline = time.monotonic() + READABLE_SECONDS
    while True:
        sessions = core.backend.sessions(leases=True)
        bad = [one.name for one in sessions if one.leases is None]
        if not bad:
            return sessions
        if time.monotonic() > deadline:
            raise UnreadableRoot(
                f"nothing is collected: the session {bad[0]} of a process that lives cannot be read, so nobody knows"
                " what it leases. Close the store in that process (it may be a newer version's)",
                root=f"session {bad[0]}",
            )
        time.sleep(0.02)


def named_text(named: Named) -> str:
    """Say what keeps something."""
    if named.kind in ("artifact", "deleted artifact"):
        return f"{named.kind} {id_text(named.key)}"
    if named.kind == "requires":
        return f"artifact {id_text(named.key)} (requires it)"
    if named.kind == "tag":
        return f"tag {named.key.decode(errors='replace')!r}"
    if named.kind == "lease":
        return f"the lease {named.key.decode()}"
    return f"{named.kind} {named.key.hex()}"


def iter_direct(core: LogCore, hash_: bytes) -> Iterator[Named]:
    """Give what names exactly this hash: artifacts, requirements, tags, leases."""
    yield from names_of(core.catalog, hash_)
    for session in core.backend.sessions(leases=True):
        for leased, format_ in session.leases or ():
            if leased == hash_:
                yield Named("lease", f"of process {session.pid} on {session.host}".encode(), format_)


def root_text(core: LogCore, hash_: bytes) -> str:
    """Name a blob by what keeps it, where that is quickly found."""
    named = next(iter_direct(core, hash_), None)
    blob = f"blob {hash_.hex()}"
    return blob if named is None else f"{named_text(named)}, {blob},"


def refusal(core: LogCore, error: Unreadable) -> UnreadableRoot:
    """Give the error for people, which names what cannot be read and what keeps it."""
    root, cause = root_text(core, error.hash), error.cause
    evidence = {**cause.evidence, "hash": Hash(error.hash), "root": root}
    return UnreadableRoot(
        f"nothing is collected: {root} cannot be read, so nobody knows what it keeps ({cause})."
        " Repair it, or delete it on purpose",
        **evidence,
    )
