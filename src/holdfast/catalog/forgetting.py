"""What one catalog knows and another does not: before it takes the place of the first."""

from __future__ import annotations

from typing import Final

import apsw

from holdfast.catalog.catalog import Catalog
from holdfast.catalog.queries import PAGE_ROWS, Reader
from holdfast.catalog.unusable import CatalogUnusable

_LIVE: Final = (
    "SELECT id FROM artifacts WHERE id > ? AND deleted_ms IS NULL ORDER BY id LIMIT ?",
    "SELECT name FROM tags WHERE name > ? AND NOT deleted ORDER BY name LIMIT ?",
)
_UNKNOWN: Final = (
    """SELECT count(*) FROM carray(?) AS keys WHERE NOT EXISTS(SELECT 1 FROM artifacts WHERE id = value)
    AND NOT EXISTS(SELECT 1 FROM tombstones WHERE id = value)""",
    "SELECT count(*) FROM carray(?) AS keys WHERE NOT EXISTS(SELECT 1 FROM tags WHERE name = value)",
)


def count_forgotten(old: Catalog, new: Catalog) -> int:
    """Count the live artifacts and tags of `old` of which `new` knows nothing; none where `old` cannot be read."""
    lost = 0
    try:
        for live, unknown, after in zip(_LIVE, _UNKNOWN, (b"", ""), strict=True):
            while True:
                page = old._read(Reader.all, live, (after, PAGE_ROWS))
                if not page:
                    break
                keys = apsw.carray(tuple(key for (key,) in page))
                ((count,),) = new._read(Reader.all, unknown, (keys,))
                lost += int(count)
                ((after,),) = page[-1:]
    except CatalogUnusable:
        return 0
    return lost
