"""Working on a full disk: what makes room takes the reserve, and what is to be collected later borrows a part of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from holdfast.errors import HoldfastError, NoSpace

if TYPE_CHECKING:
    from holdfast.log_core import LogCore

T = TypeVar("T")


def making_room(core: LogCore, work: Callable[[], T]) -> T:
    """Do what frees room; where there is too little to begin with, give the reserve back and do it once more.

    What it takes of the reserve is kept again afterwards, as far as there is room. `NoSpace` that says how much is
    missing (`needed_bytes`) has seen the reserve used already.
    """
    try:
        return work()
    except NoSpace as error:
        if "needed_bytes" in error.evidence:
            raise
    reserve = core.backend.reserve
    held = reserve.release()
    try:
        shorten_log(core)
        return work()
    except NoSpace as error:
        if "needed_bytes" in error.evidence:
            raise
        free = core.backend.disk.free_bytes(core.backend.root)
        raise NoSpace(
            f"{error}. The reserve ({held:,} bytes) was used for it, and {free:,} bytes are free now: make room"
            " elsewhere on this disk, then run it again",
            **{**error.evidence, "free_bytes": free, "reserve_bytes": held},
        ) from error
    finally:
        with suppress(HoldfastError):  # as far as there is room: `health` says what is missing
            reserve.fill()


def deleting(core: LogCore, work: Callable[[], None]) -> None:
    """Do what lets room be freed later, and takes little: on a full disk it borrows from the reserve.

    Half of the reserve stays for the compaction that is to follow, which also fills it up again.
    """
    done = False
    while not done:
        try:
            work()
            done = True
        except NoSpace as error:
            if not core.backend.reserve.lend():
                raise NoSpace(
                    f"{error}. What was deleted before makes room once it is collected: `holdfast gc` (--min-age 0"
                    " for all of it) and `holdfast compact` may use what is kept in reserve. Or make room elsewhere"
                    " on this disk",
                    **error.evidence,
                ) from error
            if error.evidence.get("durable"):  # said already: only the catalog had no room for it
                work = core.backend.committer.apply


def shorten_log(core: LogCore) -> None:
    """Move the catalog's log into the catalog, so that it takes no room beside it; as far as that works now."""
    with suppress(HoldfastError):
        core.catalog.checkpoint()
