"""What callers hand over, looked at: `InvalidInput` says what is expected, and what came instead."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from holdfast.errors import InvalidInput

T = TypeVar("T")


def path_of(what: str, value: Any) -> str:
    """Give a path as text; a path of bytes is read as the file system does."""
    try:
        text = os.fsdecode(value)
        os.fsencode(text)
    except TypeError:
        raise InvalidInput(f"{what} is a path, not {type(value).__name__}") from None
    except UnicodeError:
        text = ""
    if not text or "\0" in text:
        raise InvalidInput(f"{what} is no path: {value!r:.200}")
    return text


def items_of(what: str, value: Iterable[T]) -> Iterable[T]:
    """Give what can be gone through, and is not one text or a piece of bytes."""
    given: Any = value
    if isinstance(given, (str, bytes, bytearray, memoryview)) or not hasattr(given, "__iter__"):
        raise InvalidInput(f"{what} is a list or an iterable, not {type(given).__name__}: {given!r:.100}")
    return value


def mapping_of(what: str, value: Mapping[str, T]) -> Mapping[str, T]:
    """Give a mapping."""
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{what} is a mapping of keys to values, not {type(value).__name__}")
    return value


def whole_number(what: str, value: Any, low: int = 0) -> int:
    """Give a whole number from `low` on."""
    try:
        number = operator.index(value)
        if isinstance(value, bool):
            raise TypeError
    except TypeError:
        raise InvalidInput(f"{what} is a whole number, not {type(value).__name__}: {value!r:.100}") from None
    if number < low:
        raise InvalidInput(f"{what} is {number}; it cannot be less than {low}")
    return number


def number(what: str, value: Any, low: float, high: float = float("inf")) -> float:
    """Give a number between two others."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        limits = f"from {low:g} to {high:g}" if high < float("inf") else f"from {low:g} on"
        raise InvalidInput(f"{what} is {value!r:.100}; a number {limits} is expected")
    return value


def check_callable(what: str, value: Any) -> None:
    """Refuse what cannot be called; None is no callback."""
    if value is not None and not callable(value):
        raise InvalidInput(f"{what} is a function that gets a report, not {type(value).__name__}")
