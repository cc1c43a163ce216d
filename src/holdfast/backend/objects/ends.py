"""The ends of listings: an object behind all others of each prefix, without which a listing was cut off.

Some clients take a page that something else answers with (a proxy's, with status 200) for the end of a listing, or
for an empty one. Whoever concludes from a listing what is not there, must have seen its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.layout import ARTIFACTS, BLOBS, COMMITS, PARTS, TAGS, UPLOADS
from holdfast.errors import Unavailable

ENDS: Final = {prefix: f"{prefix}{'z' * 53}" for prefix in (BLOBS, COMMITS, ARTIFACTS, TAGS, PARTS, UPLOADS)}
"""By prefix: a key that sorts behind every hash (52 letters in base32), id and token. Foreign ones may follow."""

TRIES: Final = 3


def make_ends(bucket: Bucket) -> None:
    """Make the ends that are not there. In a new store they come before its identity."""
    for key in ENDS.values():
        bucket.create(key, b"end of list\n")


def list_whole(bucket: Bucket, prefix: str, *, after: str = "") -> Iterator[Meta]:
    """Give what `Bucket.list` does, but for the end. It goes on where it was cut off; `Unavailable` if none comes."""
    end, ended = ENDS[prefix], False
    for _ in range(TRIES):
        for meta in bucket.list(prefix, after=after):
            after = meta.key
            if meta.key == end:
                ended = True
            else:
                yield meta
        if ended:
            return
    raise Unavailable(
        f"{bucket.location}: the listing of {prefix} has no end: something cuts it off, or {end} was removed"
        " (`holdfast rebuild` makes it again). Nothing was concluded from it: try again",
        path=bucket.location,
        key=end,
    )
