"""Searches over artifacts: newest first, in pages, so that no statement and no transaction outlives one.

A search by tags or links goes down the `labels` of the rarest of them and looks each artifact up; any other
goes down the artifacts. Conditions on what stands in an artifact's document are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, cast

import apsw

from holdfast.catalog.labels import LIVE_COUNT, Label
from holdfast.catalog.queries import HIGHEST, PAGE_ROWS, Reader
from holdfast.catalog.rows import ArtifactEntry

MAX_LABELS: Final = 64
"""The most labels of one group: each is a stream of its own that is merged."""
_ESTIMATE_ROWS: Final = 10_000

Bounds: TypeAlias = tuple[int | None, int | None]
"""low (included), high (left out)"""
Read: TypeAlias = Callable[[Callable[[Reader], Any]], Any]

_COLUMNS: Final = ", ".join("a." + name for name in ArtifactEntry._fields)
_ONE: Final = "SELECT id FROM labels WHERE kind = ? AND name = ? AND id < ? AND id >= ?"


class Search(NamedTuple):
    """What the catalog can tell by itself. `groups`: an artifact has at least one label of each (live ones only).

    `lowest`: no id below it can match, so that the walk ends there.
    """

    groups: tuple[tuple[Label, ...], ...] = ()
    hash: bytes | None = None
    created_ms: Bounds = (None, None)
    modified_ms: Bounds = (None, None)
    size: Bounds = (None, None)
    deleted: bool = False
    after: bytes | None = None
    lowest: bytes = b""


def iter_found(read: Read, search: Search, limit: int | None) -> Iterator[ArtifactEntry]:
    """Stream what matches, newest id first. Each page sees the catalog as it is then."""
    if limit == 0 or not all(search.groups):
        return
    driver: tuple[Label, ...] = read(partial(_choose, groups=search.groups))
    where, values = _conditions(search, driver)
    before = HIGHEST if search.after is None else search.after
    filtered = driver and " AND " in where
    while True:
        size = PAGE_ROWS if limit is None or filtered else min(limit, PAGE_ROWS)
        page, seen, last = read(partial(_page, driver, where, values, before, search.lowest, size))
        for row in page:
            yield ArtifactEntry._make(row)
            if limit is not None:
                limit -= 1
                if not limit:
                    return
        if seen < size:
            return
        before = last


def count_found(read: Read, search: Search) -> int:
    """Count what matches. By one tag or link alone: its rows. Without any: a scan, 0.1 s for a million artifacts."""
    if not all(search.groups):
        return 0
    if not search.groups:
        where, values = _conditions(search, ())
        sql = f"SELECT count(*) FROM artifacts AS a {where} AND a.id < ? AND a.id >= ?"
        before = HIGHEST if search.after is None else search.after
        return int(read(lambda reader: reader.all(sql, (*values, before, search.lowest)))[0][0])
    if len(search.groups) == len(search.groups[0]) == 1 and search == Search(groups=search.groups):
        sql = "SELECT count(*) FROM labels WHERE kind = ? AND name = ?"
        return int(read(lambda reader: reader.all(sql, search.groups[0][0]))[0][0])
    return sum(1 for _ in iter_found(read, search, None))


def _choose(reader: Reader, *, groups: tuple[tuple[Label, ...], ...]) -> tuple[Label, ...]:
    """Give the group with the fewest rows, as far as a bounded look can tell."""
    if len(groups) < 2:
        return groups[0] if groups else ()
    sql = f"SELECT count(*) FROM (SELECT 1 FROM labels WHERE kind = ? AND name = ? LIMIT {_ESTIMATE_ROWS})"
    return min(groups, key=lambda group: sum(reader.all(sql, label)[0][0] for label in group))


def _page(
    driver: tuple[Label, ...],
    where: str,
    values: list[Any],
    before: bytes,
    lowest: bytes,
    size: int,
    reader: Reader,
) -> tuple[list[tuple[Any, ...]], int, bytes]:
    """Give (rows that match, how many were looked at, the last of those) of the next page."""
    if not driver:
        sql = f"SELECT {_COLUMNS} FROM artifacts AS a {where} AND a.id < ? AND a.id >= ? ORDER BY a.id DESC LIMIT ?"
        page = reader.all(sql, (*values, before, lowest, size))
        return page, len(page), page[-1][0] if page else b""
    # SQLite merges the streams of several labels, and stops at the limit
    sql = " UNION ".join([_ONE] * len(driver)) + " ORDER BY id DESC LIMIT ?"
    bounds = [value for kind, name in driver for value in (kind, name, before, lowest)]
    keys = tuple([id_ for (id_,) in reader.all(sql, (*bounds, size))])
    if not keys:
        return [], 0, b""
    sql = f"SELECT {_COLUMNS} FROM carray(?) AS keys CROSS JOIN artifacts AS a ON a.id = keys.value {where}"
    return reader.all(sql, (apsw.carray(keys), *values)), len(keys), keys[-1]


def _conditions(search: Search, driver: tuple[Label, ...]) -> tuple[str, list[Any]]:
    parts = [f"a.deleted_ms IS {'NOT ' if search.deleted else ''}NULL"]
    values: list[Any] = []
    if search.hash is not None:
        parts.append("a.hash = ?")
        values.append(search.hash)
    for column, (low, high) in (
        ("created_ms", search.created_ms),
        ("modified_ms", search.modified_ms),
        ("size", search.size),
    ):
        for sign, bound in ((">=", low), ("<", high)):
            if bound is not None:
                parts.append(f"a.{column} {sign} ?")
                values.append(bound)
    for group in search.groups:
        if group is not driver:
            each = " OR ".join(["(kind = ? AND name = ? AND id = a.id)"] * len(group))
            parts.append(f"EXISTS(SELECT 1 FROM labels WHERE {each})")
            values += [value for label in group for value in label]
    return "WHERE " + " AND ".join(parts), values


def names_page(
    reader: Reader, kind: int, low: str, high: str | None, after: str | None, limit: int
) -> list[tuple[str, int]]:
    """Give names from `low` to below `high`, above `after`, with how many artifacts bear them."""
    where, values = "kind = ? AND name >= ?", [kind, low]
    if after is not None:
        where, values = "kind = ? AND name > ?", [kind, after]
    if high is not None:
        where += " AND name < ?"
        values.append(high)
    sql = f"SELECT name, count(*) FROM labels WHERE {where} GROUP BY name ORDER BY name LIMIT ?"
    return cast("list[tuple[str, int]]", reader.all(sql, (*values, limit)))


def distinct_names(reader: Reader, kind: int, low: str, high: str | None, limit: int) -> list[str]:
    """Give up to `limit` names from `low` to below `high`; one seek for each, however many bear it."""
    found: list[str] = []
    at, sign = low, ">="
    while len(found) < limit:
        bound = "" if high is None else "AND name < ?"
        values = (kind, at) if high is None else (kind, at, high)
        sql = f"SELECT name FROM labels WHERE kind = ? AND name {sign} ? {bound} ORDER BY name LIMIT 1"
        rows = reader.all(sql, values)
        if not rows:
            break
        at, sign = rows[0][0], ">"
        found.append(at)
    return found


def prefix_end(prefix: str) -> str | None:
    """Give the text above all that begin with a prefix (in the order of code points); None: there is none."""
    for end in range(len(prefix), 0, -1):
        code = ord(prefix[end - 1])
        if code < 0x10FFFF:
            return prefix[: end - 1] + chr(0xE000 if code == 0xD7FF else code + 1)
    return None


def holders(reader: Reader, key: bytes, limit: int) -> list[bytes]:
    """Give the ids of live artifacts that require a blob (its hash) or an artifact (its id)."""
    sql = """
    SELECT r.id FROM requires AS r CROSS JOIN artifacts AS a ON a.id = r.id
    WHERE r.name = ? AND a.deleted_ms IS NULL ORDER BY r.id LIMIT ?"""
    return [id_ for (id_,) in reader.all(sql, (key, limit))]


def begin_count(cursor: apsw.Cursor) -> None:
    """Count the live artifacts, to be kept up by every transaction from this one on."""
    count = "SELECT count(*) FROM artifacts WHERE deleted_ms IS NULL"
    cursor.execute(f"INSERT INTO meta SELECT ?, ({count}) WHERE true ON CONFLICT DO NOTHING", (LIVE_COUNT,))
