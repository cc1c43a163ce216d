"""The command line: a door without logic of its own, kept light: start-up time is felt at each call."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (see `holdfast.errors.EXIT_CODES`)."""
    try:
        usual = signal.getsignal(signal.SIGINT)
        try:
            # Nothing was started, so there is nothing to end in order; an import that is interrupted may say anything.
            if usual is signal.default_int_handler:
                signal.signal(signal.SIGINT, lambda *_: os._exit(130))
            from holdfast.cli.run import run
        finally:
            if usual is signal.default_int_handler:
                signal.signal(signal.SIGINT, usual)
        return run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return 130
