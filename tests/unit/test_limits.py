"""`max_artifacts` where several processes put at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import holdfast
from holdfast.core import Options
from holdfast.store import Store
from holdfast.testing.inside import log_core

PUT = """
import sys
from holdfast.core import Options
from holdfast.errors import TooLarge
from holdfast.store import Store
with Store._open(sys.argv[1], options=Options(max_artifacts=25)) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    done = 0
    for number in range(20):
        try:
            store.put(f"{sys.argv[2]} {number}".encode())
            done += 1
        except TooLarge:
            pass
    print(done)
"""


def test_the_limit_is_exact_with_several_processes(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store._open(str(path), create=True) as store:
        store.put_many([b"1", b"2", b"3"])  # by one who has no limit, before anybody counts
        command = [sys.executable, "-c", PUT, str(path)]
        running = [
            subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for n in range(3)
        ]
        for one in running:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        done = [one.communicate("go\n", timeout=60)[0] for one in running]
        assert sum(map(int, done)) == 22
        assert store.count() == 25
        store.put(b"no limit here")
        assert store.count() == log_core(store).catalog.live_artifacts() == 26


def test_who_has_a_limit_counts_what_others_put_and_delete(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with holdfast.create(path) as free, Store._open(str(path), options=Options(max_artifacts=2)) as limited:
        first = limited.put(b"1")
        free.put(b"2")
        free.delete(first)
        limited.put(b"3")
        assert limited.count() == log_core(limited).catalog.live_artifacts() == 2
