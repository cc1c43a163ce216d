"""Types of configured values that know how pydantic is to check them, without importing it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import InvalidConfig

MASK = "**********"


class Between:
    """Annotates a number with the range that is allowed, ends included."""

    __slots__ = ("high", "low")

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def check(value: float) -> float:
            if not self.low <= value <= self.high:  # also refuses NaN
                raise PydanticCustomError("range", "must be {allowed}", {"allowed": str(self)})
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __str__(self) -> str:
        return f"{_number(self.low)} to {_number(self.high)}"


def _number(value: float) -> str:
    """Write 65536 as `65536 (64 KiB)`, so that the limit can be copied and be read."""
    if isinstance(value, int) and value >= 1024 and value & (value - 1) == 0:
        for power, unit in ((50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
            if value % (1 << power) == 0:
                return f"{value} ({value >> power} {unit})"
    return f"{value}"


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
