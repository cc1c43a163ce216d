"""Patterns for what a tree leaves out: those of a `.gitignore`, without its comments. Pure.

* A pattern without `/` (but at its end) matches a name at any depth; one with `/` counts from the tree's
root. * `*` is any run of characters but `/`, `?` any one, `[a-z]` and `[!a-z]` one of a set. * `**/` at the
start and `/**/` inside stand for any number of directories; `/**` at the end for all that is inside. * A `/`
at the end: directories alone. A `!` at the start takes back what an earlier pattern left out. * `\\` takes
the next character as it is. The last pattern that matches decides. What lies in a directory that
  is left out is never looked at, so nothing in it can be taken back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from holdfast.errors import InvalidInput

_Rule: TypeAlias = tuple[Callable[[str], Any], bool, bool]


class Excludes:
    """Compiled patterns; InvalidInput, with the pattern, when one makes no sense."""

    def __init__(self, patterns: Iterable[str]) -> None:
        if isinstance(patterns, str) or not hasattr(patterns, "__iter__"):
            raise InvalidInput(f"exclude takes a list of patterns, not {patterns!r:.100}", pattern=patterns)
        self._rules = [_compile(pattern) for pattern in patterns][::-1]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def matches(self, path: str, is_dir: bool) -> bool:
        """Say whether `path`, relative to the root of the tree, is left out."""
        for match, negated, dir_only in self._rules:
            if (is_dir or not dir_only) and match(path):
                return not negated
        return False


def _compile(pattern: str) -> _Rule:
    if not isinstance(pattern, str):
        raise InvalidInput(f"an exclude pattern is text, not {type(pattern).__name__}", pattern=pattern)
    rest = pattern.removeprefix("!")
    negated = rest != pattern
    body = rest.rstrip("/")
    if not body or "\0" in body:
        raise InvalidInput(f"an exclude pattern that is empty or not a name: {pattern!r}", pattern=pattern)
    anchored = "/" in body
    body = body.removeprefix("/")
    try:
        regex = re.compile(("" if anchored else "(?:.*/)?") + _translate(body), re.DOTALL)
    except (re.error, ValueError) as error:
        raise InvalidInput(
            f"the exclude pattern {pattern!r} cannot be read: {error}", pattern=pattern
        ) from None
    return regex.fullmatch, negated, body != rest.removeprefix("/")


def _translate(body: str) -> str:
    body = re.sub(r"(?<![^/])\*{3,}(?![^/])", "**", body)  # as git takes them
    if body == "**":
        return ".+"
    out, i = "", 0
    if body.startswith("**/"):
        out, i = "(?:.*/)?", 3
    while i < len(body):
        if body.startswith("/**/", i):
            out += "/(?:.*/)?"
            i += 4
        elif body.startswith("/**", i) and i + 3 == len(body):
            out += "/.+"
            i += 3
        elif body[i] == "*":
            while body[i : i + 1] == "*":  # two stars that stand for no directories are one
                i += 1
            out += "[^/]*"
        elif body[i] == "?":
            out += "[^/]"
            i += 1
        elif body[i] == "[":
            part, i = _translate_set(body, i + 1)
            out += part
        else:
            if body[i] == "\\":
                i += 1
                if i == len(body):
                    raise ValueError("a backslash at its end")
            out += re.escape(body[i])
            i += 1
    return out


def _translate_set(body: str, i: int) -> tuple[str, int]:
    negated = body[i : i + 1] in ("!", "^")
    i += negated
    part, first = "", True
    while True:
        char = body[i : i + 1]
        if not char:
            raise ValueError("a [ without its ]")
        if char == "]" and not first:
            break
        if body.startswith(("[:", "[.", "[="), i):
            raise ValueError("classes such as [:alpha:] are not known here")
        if char == "\\":
            i += 1
            char = body[i : i + 1]
            if not char:
                raise ValueError("a [ without its ]")
            part += re.escape(char)
        else:
            part += char if char == "-" else re.escape(char)
        i, first = i + 1, False
    return f"(?!/)[{'^' if negated else ''}{part}]", i + 1
