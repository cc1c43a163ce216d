"""Types of configured values that know how pydantic is to check them, without importing it."""

from __future__ import annotations

from typing import Any


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
