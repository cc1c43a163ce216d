"""What every command is made of: the global options, also behind the command's name, and an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from holdfast.cli.output import State

SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "Store and read": ("init", "put", "ls", "info", "cat", "get", "rm", "restore"),
    "Find and change": ("find", "count", "edit"),
    "The layer below": ("blob", "tag", "encode", "decode"),
    "Care": ("verify", "scrub", "repair", "health", "gc", "why", "compact", "refresh", "rebuild", "stats"),
    "Help": ("config", "dev", "completion"),
}


def global_options(*, hidden: bool) -> list[click.Option]:
    """Make the global options; hidden ones are taken after a command's name, where people type them too."""

    def keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value == "":
            raise click.BadParameter("it is empty (a variable that is not set?)", ctx, parameter)
        if value and parameter.name is not None:
            setattr(ctx.ensure_object(State), parameter.name, value)

    def make(*names: str, help: str, **more: Any) -> click.Option:
        return click.Option(list(names), expose_value=False, callback=keep, hidden=hidden, help=help, **more)

    return [
        make("--store", metavar="LOCATION", help="The store: a directory, or dir://, s3://, gs://, az://."),
        make("--config", "config_file", metavar="FILE", help="Read this file in place of holdfast.toml."),
        make(
            "--json", is_flag=True, is_eager=True, help="Answer in JSON: a document, or one a line for lists."
        ),
        make("-q", "--quiet", "quiet", is_flag=True, help="Ids or hashes alone, no progress."),
    ]


class Command(click.Command):
    """A command that also takes the global options after its name."""

    def __init__(self, name: str | None, *, example: str = "", **more: Any) -> None:
        lines = "".join(f"  {line.strip()}\n" for line in example.strip().splitlines())
        super().__init__(name, epilog=f"\b\nExample:\n{lines}" if lines else None, **more)
        self.params.extend(global_options(hidden=True))


def command(name: str, *, example: str) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function that takes the `State` first."""

    def decorate(function: Callable[..., Any]) -> Command:
        return click.command(name, cls=Command, example=example)(click.pass_obj(function))

    return decorate


def group(name: str, *, example: str) -> Callable[[Callable[..., Any]], click.Group]:
    """Make a group of commands of a function that does nothing."""
    lines = "".join(f"  {line.strip()}\n" for line in example.strip().splitlines())
    return click.group(
        name,
        epilog=f"\b\nExample:\n{lines}",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def metadata(pairs: tuple[str, ...]) -> dict[str, str]:
    """Read `KEY=VALUE` pairs."""
    from holdfast.errors import InvalidInput

    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidInput(f"--meta {pair!r:.80}: KEY=VALUE is expected")
        if found.get(key, value) != value:
            raise InvalidInput(f"--meta {key!r:.80} is given twice, with two values")
        found[key] = value
    return found


class Time(click.ParamType[Any]):
    """A date, a date with a time (both in the local zone, unless one is named), or how long ago: `90s`, `2d`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        import re
        from datetime import UTC, datetime, timedelta

        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        if match := re.fullmatch(r"(\d{1,7})([smhdw])", text):
            seconds = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[match[2]]
            return datetime.now(UTC) - timedelta(seconds=min(seconds, 10**10))
        try:
            return datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{text!r:.80} is no time: 2026-11-21, 2026-11-21T12:30, or 2d for two days ago", param, ctx
            )


def parse_size(text: str) -> int:
    """Read `65536`, `64KiB` or `64k` (powers of 1024)."""
    import re

    match = re.fullmatch(r"\s*(\d+)\s*(?:([kmgt])(?:i?b)?|b)?\s*", text, re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is no size (65536, 64KiB, 1MiB)")
    return int(match[1]) << (10 * (" kmgt".index(match[2].lower()) if match[2] else 0))


class Size(click.ParamType[int]):
    """A number of bytes, with or without a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_size(value)


class ByteRange(click.ParamType[tuple[int, int | None]]):
    """`START..STOP`, half-open; either may be left out."""

    name = "range"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int | None]:
        if isinstance(value, tuple):
            return value
        from holdfast.errors import InvalidRange

        start, dots, stop = str(value).partition("..")
        digits = [part.strip() for part in (start, stop)]
        if not dots or not all(part == "" or (part.isascii() and part.isdigit()) for part in digits):
            raise InvalidRange(
                f"{value!r:.80} is no range: START..STOP, half-open, as in 0..4096 or 4096..", text=value
            )
        first, last = int(digits[0] or 0), int(digits[1]) if digits[1] else None
        if last is not None and last < first:
            raise InvalidRange(f"the range {value} ends before it begins", text=value)
        return first, last
