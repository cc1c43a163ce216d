"""kill -9 of a real process before each of its requests, on a real directory of objects; then the five checks."""

from __future__ import annotations

import ast
import os
import pickle
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from holdfast.testing.ledger import Ledger
from tests.crash.scripts import _tree
from tests.crash.world import DEEP, ONLY_SITE, SEED, replay
from tests.objects.world import OBJECT_SCRIPTS, QUICK, ObjectWorld

TOP = Path(__file__).parents[2]
STRIDES = {"put": 1, "names": 1, "import_on": 1, "collect": 2}
"""Each so-many-th request is tried everyday; each fourth of the other scripts'."""


@pytest.mark.parametrize("name", OBJECT_SCRIPTS)
def test_kill_at_every_request(name: str) -> None:
    stride = 1 if DEEP else STRIDES.get(name, 4)
    with tempfile.TemporaryDirectory(dir=QUICK) as directory:
        command = [
            sys.executable,
            "-m",
            "tests.objects.killed_child",
            name,
            f"{directory}/cases",
            str(stride),
        ]
        path = os.pathsep.join([str(TOP), *filter(None, sys.path)])
        subprocess.run(command, check=True, cwd=TOP, env={**os.environ, "PYTHONPATH": path})
        cases = sorted(Path(directory, "cases").iterdir())
        assert len(cases) > 2
        for case in cases:
            if case.name == "base" or ONLY_SITE not in (None, case.name):
                continue
            world = ObjectWorld(case, is_real=True)
            world.ledger = heard(case)
            with replay(
                f"tests/objects/test_killed_clients.py::test_kill_at_every_request[{name}]",
                site=int(case.name),
            ):
                world.check_all(random.Random(f"{SEED} {name} {case.name}"))
        print(f"{name}: {len(cases) - 1} kills")


def heard(case: Path) -> Ledger:
    """Give the books: those from before, and what the process told before it died."""
    ledger: Ledger = pickle.loads((case / "ledger").read_bytes())
    for line in (case / "log").read_text().splitlines():
        ledger.hear(ast.literal_eval(line))
    if "tree" in ledger.pieces:  # its content follows from its files
        ledger._contents["tree"] = _tree().content
    return ledger
