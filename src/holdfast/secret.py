"""A secret that does not show itself: a text, or where to find it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from holdfast.errors import InvalidConfig

MASK: Final = "**********"


class Secret:
    """A secret, or where it is to be found: a variable or a file. It never shows in `repr` or `str`."""

    __slots__ = ("_from", "_value")

    def __init__(self, value: str | None = None, *, env: str | None = None, file: str | None = None) -> None:
        if (value is not None) + (env is not None) + (file is not None) != 1:
            raise InvalidConfig("a secret is a string, { env = … } or { file = … }")
        self._value = value
        self._from = ("env", env) if env is not None else ("file", file) if file is not None else None

    def reveal(self, environ: Mapping[str, str] = os.environ) -> str:
        """Give the secret; `InvalidConfig` when the variable or file is not there."""
        if self._from is None:
            return self._value or ""
        kind, name = self._from
        if kind == "env":
            if not environ.get(name):
                raise InvalidConfig(f"the variable {name}, which holds a secret, is not set", env=name)
            return environ[name]
        try:
            return Path(name).expanduser().read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8"
            raise InvalidConfig(
                f"the file {name}, which holds a secret, cannot be read: {why}", path=name
            ) from error

    def shown(self) -> str | dict[str, str]:
        """Give what may be shown: where it comes from, or stars."""
        return MASK if self._from is None else {self._from[0]: self._from[1]}

    def __repr__(self) -> str:
        return f"Secret({self.shown()!r})"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and (self._value, self._from) == (other._value, other._from)

    def __hash__(self) -> int:
        return hash((self._value, self._from))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def parse(value: Any) -> Secret:
            if isinstance(value, Secret):
                return value
            if isinstance(value, str) and value:
                return cls(value)
            if isinstance(value, dict) and len(value) == 1:
                key, name = next(iter(value.items()))
                if key in ("env", "file") and isinstance(name, str) and name:
                    return cls(**{key: name})
            raise PydanticCustomError("secret", "must be a string, { env = … } or { file = … }")

        return core_schema.no_info_plain_validator_function(parse)
