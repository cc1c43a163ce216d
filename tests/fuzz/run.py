"""Fuzz the targets of `targets.py`: `python -m tests.fuzz.run [NAMES] --seconds 60`, or `make fuzz`.

Each target has these seconds, in a process of its own with a limit to its memory, as many at a time as there are
cores; guided by coverage where atheris can be imported, blindly where not. An input that fails is written to `--found`
and named; it belongs into `corpora/NAME/` with the fix, where `test_corpora.py` replays it for ever.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
CORPORA = HERE / "corpora"
FOUND = HERE.parents[1] / "native" / "target" / "fuzz" / "python"
MEMORY_BYTES = 2 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the parsers.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60, help="for each target (60)")
    parser.add_argument("--found", type=Path, default=FOUND, help="where new inputs go")
    parser.add_argument("--one", action="store_true", help="(each process calls itself with this)")
    parser.add_argument("--seed", type=int, default=20261121)
    given = parser.parse_args()
    if given.one:
        return _one(given.names[0], given.seconds, given.found, given.seed)
    from tests.fuzz.targets import TARGETS

    names = given.names or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))} (there are {', '.join(TARGETS)})")

    def fuzz(name: str) -> bool:
        started = time.monotonic()
        given.found.joinpath(name).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.fuzz.run", "--one", name, "--seed", str(given.seed)]
        command += ["--seconds", str(given.seconds), "--found", str(given.found)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        took = time.monotonic() - started
        runs = next((line for line in done.stderr.splitlines()[::-1] if " runs in " in line), "")
        result = "failed" if done.returncode else "ok"
        said = f"\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}" if done.returncode else ""
        print(f"{name:14}{result:8}{took:6.1f} s  {runs}  {TARGETS[name].about}{said}", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(fuzz, names)).count(False)


def _one(name: str, seconds: float, found: Path, seed: int) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if find_spec("atheris") is None:
        return _blindly(name, seconds, found, seed)
    import atheris

    with atheris.instrument_imports(include=["holdfast"]):
        from tests.fuzz.targets import TARGETS
    row = TARGETS[name]
    options = [
        sys.argv[0],
        str(found / name),
        str(CORPORA / name),
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={row.max_bytes}",
        f"-artifact_prefix={found / name}/",
        f"-seed={seed}",
        "-rss_limit_mb=1024",
        "-timeout=10",
        "-print_final_stats=0",
    ]
    atheris.Setup(options, row.run)
    atheris.Fuzz()
    return 0


def _blindly(name: str, seconds: float, found: Path, seed: int) -> int:
    """Break inputs of the corpus at random, and join them."""
    from tests.fuzz.targets import TARGETS

    row = TARGETS[name]
    seeds = [path.read_bytes() for path in sorted((CORPORA / name).iterdir())] or [b""]
    rng = random.Random(seed)
    stop, runs = time.monotonic() + seconds, 0
    while time.monotonic() < stop:
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(data) + 1)
            kind = rng.randrange(5)
            if kind == 0 and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1 and at < len(data):
                data[at] = rng.choice((0, 1, 127, 128, 255))
            elif kind == 2:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            elif kind == 3:
                del data[at : at + rng.randint(1, 16)]
            else:
                other = rng.choice(seeds)
                data[at:] = other[rng.randrange(len(other) + 1) :]
        del data[row.max_bytes :]
        runs += 1
        try:
            row.run(bytes(data))
        except BaseException:
            (found / name / f"crash-{runs}").write_bytes(data)
            print(f"{found / name / f'crash-{runs}'}", file=sys.stderr)
            raise
    print(f"Done {runs} runs in {seconds:.0f} second(s)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
