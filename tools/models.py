#!/usr/bin/env python3
"""Check the models with Spin and hold the outcome of each case against what is expected.

    tools/models.py              the small cases (`make models`)
    tools/models.py --all        all of them: about half an hour on two cores, up to 8 GiB
    tools/models.py names.pml    the cases of one file, all sizes
    tools/models.py -t …         with the shortest trace, in words, of each case that breaks

Needs spin and gcc (`apt-get install spin gcc`). Exit 1 when a case comes out other than expected.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parents[1] / "models"
DEPTH = 6000


class Case(NamedTuple):
    """A model with flags, what is to come of it, and what that says."""

    file: str
    flags: list[str]
    expected: str
    size: str
    meaning: str


def cases() -> list[Case]:
    """Read cases.txt."""
    found = []
    for line in (HERE / "cases.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            file, flags, expected, size, meaning = (part.strip() for part in line.split("|"))
            found.append(Case(file, [f"-D{flag}" for flag in flags.split()], expected, size, meaning))
    return found


def check(case: Case, trace: bool) -> tuple[str, str, str]:
    """Give the outcome (holds, breaks, or what went wrong), the states that were stored, and the trace."""
    with tempfile.TemporaryDirectory(prefix="holdfast-model-") as directory:
        shutil.copy(HERE / case.file, f"{directory}/m.pml")

        def run(*command: str, seconds: int = 1200) -> str:
            done = subprocess.run(
                command, cwd=directory, capture_output=True, text=True, timeout=seconds, check=False
            )
            return done.stdout + done.stderr

        run("spin", *case.flags, "-a", "m.pml")
        shortest = ["-DBFS"] if case.expected == "breaks" else []
        options = ["-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048", *shortest]
        run("gcc", *options, "-o", "pan", "pan.c")
        try:
            said = run("./pan", f"-m{DEPTH}", "-w24")
        except FileNotFoundError:
            return "does not compile", "", ""
        except subprocess.TimeoutExpired:
            return "not finished", "", ""
        errors = re.search(r"errors: (\d+)", said)
        states = re.search(r"(\d+) states, stored", said)
        if errors is None or "max search depth too small" in said or "out of memory" in said:
            return "not finished", "", said[-500:]
        outcome = "holds" if errors[1] == "0" else "breaks"
        told = ""
        if trace and outcome == "breaks":
            steps = run("spin", *case.flags, "-t", "m.pml").splitlines()
            noise = re.compile(r"^(spin:|#processes| *\d+:)|^\s*$| = |processes created")
            told = "\n".join("      " + step.strip() for step in steps if not noise.search(step))
        return outcome, states[1] if states else "?", told


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("-t", "--traces", action="store_true")
    arguments = parser.parse_args()
    if shutil.which("spin") is None or shutil.which("gcc") is None:
        print("spin or gcc is missing: apt-get install spin gcc")
        return 3
    wrong = run = 0
    for case in cases():
        if (
            case.file not in arguments.files
            if arguments.files
            else not (arguments.all or case.size == "small")
        ):
            continue
        outcome, states, told = check(case, arguments.traces)
        run += 1
        mark = "ok" if outcome == case.expected else f"EXPECTED: {case.expected}"
        wrong += outcome != case.expected
        flags = " ".join(flag.removeprefix("-D") for flag in case.flags)
        print(f"{case.file:13} {flags:58} {outcome:8} {states:>9} states  {mark}", flush=True)
        if told:
            print(told)
    print(f"{run} cases, {wrong} not as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
