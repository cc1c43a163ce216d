"""Run the command that was typed, and turn whatever ends it into one line and an exit code."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import TypeGuard

import click

from holdfast.cli.app import cli
from holdfast.cli.interrupts import heard, is_of_interrupt
from holdfast.cli.output import State, escape, flush, note, stdout_failed
from holdfast.errors import BackendError, HoldfastError, PermissionDenied, StoreNotFound, exit_code

BROKEN_PIPE = 141
"""What a shell shows for a filter that SIGPIPE ended."""
COMPLETE = "_HOLDFAST_COMPLETE"


def run(arguments: Sequence[str]) -> int:
    """Run a command and give its exit code; nothing but answers goes to standard output."""
    state = State()
    try:
        # a name that is not UTF-8 must not break the line that speaks of it
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        if sys.stdout is None:
            state.json = "--json" in arguments
            raise BackendError("standard output is closed; > /dev/null throws answers away")
        with heard():
            code = _invoke(arguments, state)
        flush()
        _tell_cost(state)
        return code
    except BrokenPipeError:
        _debug()
        _forget_stdout()
        return BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        _debug()
        note("interrupted")
        return 130
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        _debug()
        return _usage(error, state)
    except Exception as error:  # noqa: BLE001  # the last place that can say anything
        _debug()
        if is_of_interrupt(error):
            note("interrupted")
            return 130
        if _is_of_stdout(error):
            error = stdout_failed(error)
        _report(error, state)
        _flush_or_forget()
        return exit_code(error)


def _invoke(arguments: Sequence[str], state: State) -> int:
    """Do what `click.Command.main` does, without its own answers to interrupts, pipes and errors."""
    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "holdfast", COMPLETE, instruction)
    with cli.make_context("holdfast", list(arguments), obj=state) as context:
        code = cli.invoke(context)
    return code if isinstance(code, int) else 0


def _tell_cost(state: State) -> None:
    """For programs: what the command asked of the bucket, as the last line on standard error."""
    if state.json and state.opened is not None and (requests := state.opened.requests):
        note(json.dumps({"requests": dict(requests)}), plain=True)


def _is_of_stdout(error: Exception) -> TypeGuard[OSError]:
    """Whether click could not write its own answer, such as a help text: ours say what failed, files have names."""
    if not isinstance(error, OSError) or isinstance(error, HoldfastError):
        return False
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _flush_or_forget() -> None:
    """Bring out what was answered before an error; what cannot be brought out is not tried again at the end."""
    try:
        if sys.stdout is not None:
            flush()
    except OSError:
        _forget_stdout()


def _forget_stdout() -> None:
    """Point standard output to nowhere, so that the interpreter's own flush at the end stays quiet."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass


def _debug() -> None:
    if os.environ.get("HOLDFAST_DEBUG"):
        import traceback

        traceback.print_exc()


def _usage(error: click.ClickException, state: State) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        note(error.format_message(), plain=True)
        return error.exit_code
    if state.json:
        _write_json({"kind": "usage", "message": error.format_message()})
        return error.exit_code
    note(error.format_message())
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        note(f"  {context.get_usage().strip()}", plain=True)
        note(f"  {context.command_path} --help has an example", plain=True)
    return error.exit_code


def _report(error: Exception, state: State) -> None:
    if state.json:
        if isinstance(error, HoldfastError):
            _write_json(error.to_dict())
        else:
            _write_json({"kind": "unexpected", "message": _unexpected(error)})
        return
    if isinstance(error, HoldfastError):
        note(*(escape(line) for line in str(error).splitlines() or [error.kind]))
        hint = _hint(error, state)
        if hint:
            note(f"  {hint}", plain=True)
    else:
        note(_unexpected(error))


def _unexpected(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{escape(str(error.filename))}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    said = escape(" ".join(str(error).split()))[:500]
    return f"unexpected {type(error).__name__}: {said} (HOLDFAST_DEBUG=1 shows where)"


def _hint(error: HoldfastError, state: State) -> str | None:
    if (
        isinstance(error, StoreNotFound) and "status" not in error.evidence
    ):  # else the bucket itself is not there
        return f"to make one: holdfast init {escape(str(state.location or 'LOCATION'))}"
    if isinstance(error, PermissionDenied) and state.location:
        return f"the store is {escape(state.location)}"
    return None


def _write_json(error: dict[str, object]) -> None:
    note(json.dumps({"error": error}, ensure_ascii=False, default=str), plain=True)
