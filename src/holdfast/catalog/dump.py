"""The canonical dump: every fact of a catalog as text, equal for a rebuilt one, line by line.

Not in it: where things lie (compaction moves them, a rebuild may prefer another copy), how far segments are
applied, the epoch, and hints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from holdfast.catalog.queries import Reader
from holdfast.facts import FLAG_BLOB

_STATEMENTS: Final[tuple[tuple[str, str], ...]] = (
    (
        "blob",
        f"""SELECT hash, ifnull(plain, stored) AS size, created_ms FROM data WHERE flags & {FLAG_BLOB}
        UNION SELECT hash, size, created_ms FROM blobs ORDER BY hash, size, created_ms""",
    ),
    ("payload", "SELECT hash, ifnull(plain, stored) FROM data ORDER BY hash"),
    (
        "artifact",
        """SELECT id, revision, hash, size, format, created_ms, modified_ms, chunks, doc, deleted_ms
        FROM artifacts ORDER BY id""",
    ),
    ("label", "SELECT kind, name, id FROM labels ORDER BY kind, name, id"),
    ("requires", "SELECT name, id FROM requires ORDER BY name, id"),
    ("tombstone", "SELECT id, revision, deleted_ms FROM tombstones ORDER BY id"),
    ("tag", "SELECT name, hash, format, revision, modified_ms, deleted FROM tags ORDER BY name"),
    ("quarantine", "SELECT hash, reason FROM quarantine ORDER BY hash, reason"),
    ("upload", "SELECT token, revision, state, expires_ms, doc FROM uploads ORDER BY token"),
)


def iter_dump(reader: Reader) -> Iterator[str]:
    """Stream the lines. All statements should see one state: the caller opens the transaction."""
    for kind, sql in _STATEMENTS:
        for row in reader.rows(sql):
            yield "\t".join((kind, *map(_text, row)))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bytes):
        return "x" + value.hex()
    return repr(value)
