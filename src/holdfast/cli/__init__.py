"""The command line: a door without logic of its own, kept light: start-up time is felt at each call."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (see `holdfast.errors.EXIT_CODES`)."""
    try:
        from holdfast.cli.run import run

        return run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # before anything was started
        return 130
