"""A bucket that ignores conditions, as some services do: whatever is put takes the place of what was there."""

from __future__ import annotations

from holdfast.backend.objects.bucket import Meta
from holdfast.errors import InvalidConfig
from holdfast.testing.plain_bucket import PlainBucket
from holdfast.types import BytesLike


class LooseBucket(PlainBucket):
    """Ignores conditions, or (`refuses`) answers 501 to them."""

    refuses = False

    def create(self, key: str, data: BytesLike) -> Meta | None:
        return self._put_all_the_same(key, data)

    def replace(self, key: str, data: BytesLike, e_tag: str) -> Meta | None:
        return self._put_all_the_same(key, data)

    def _put_all_the_same(self, key: str, data: BytesLike) -> Meta:
        if self.refuses:
            raise InvalidConfig(f"{self.location}: this service refuses to write (501)", status=501)
        return self.upload(key, [data], len(data))
