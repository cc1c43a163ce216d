"""Get the servers that the tests use, from the cache or by building them: `make services`."""

import sys
import time
from typing import Final

from holdfast.errors import HoldfastError
from holdfast.servers import KINDS, build_binary, find_binary

OPTIONAL: Final = ("azurite",)


def main() -> int:
    failed = 0
    for name in sorted(KINDS, reverse=True):  # the quick one first
        begun = time.monotonic()
        if find_binary(name) is None:
            print(f"building {name} (minutes, once for this machine)", flush=True)
        try:
            where = build_binary(name)
        except HoldfastError as error:
            print(error, file=sys.stderr)
            failed |= name not in OPTIONAL
        else:
            print(f"{name}: {where} ({time.monotonic() - begun:.0f} s)", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
