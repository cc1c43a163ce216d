"""A power cut of a real file system: an ext4 image is copied in the middle of work, mounted elsewhere, and checked."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from holdfast.store import Store
from holdfast.testing.checks import check_store
from holdfast.testing.ledger import Ledger
from tests.crash.child import OPTIONS, events
from tests.crash.test_kernel import TOP, _environment
from tests.crash.world import DEEP, SEED, figure, replay

CUTS = figure(4, 100)
IMAGE_BYTES = 96 << 20


def _run(*command: str | Path) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[None]:
    """Mount an image while the block runs."""
    place.mkdir(exist_ok=True)
    assert _run("mount", "-o", "loop", image, place), f"{image.name} cannot be mounted"
    try:
        yield
    finally:
        for _ in range(50):
            if _run("umount", place):
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"{image.name} stays busy: who closed the store holds a file of it")


def _may_mount(image: Path, place: Path) -> bool:
    """Whether this machine lets us mount an image at all; later ones that are refused are failures."""
    place.mkdir(exist_ok=True)
    return _run("mount", "-o", "loop", image, place) and _run("umount", place)


@contextmanager
def working(store: Path, output: Path, seed: int) -> Iterator[subprocess.Popen[bytes]]:
    """Let a child work, which says in `output` what was acknowledged; it is killed at the end."""
    child = [sys.executable, "-m", "tests.crash.child", "work", str(store), str(seed), "1000"]
    with output.open("wb") as out:
        process = subprocess.Popen(child, stdout=out, stderr=subprocess.DEVNULL, env=_environment(), cwd=TOP)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _settled(process: subprocess.Popen[bytes]) -> None:
    """Stop a process, and wait until it stands still."""
    process.send_signal(signal.SIGSTOP)
    status = Path(f"/proc/{process.pid}/stat")
    for _ in range(1000):
        if status.read_text().rsplit(")", 1)[1].split()[0] in "TZ":
            break
        time.sleep(0.001)


@pytest.mark.timeout(0 if DEEP else 180)
def test_an_image_that_is_copied_in_the_middle_of_work(tmp_path: Path) -> None:
    """What the copy has is what the device had been told: no cache of the kernel goes with it."""
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    if not _run("mkfs.ext4", "-q", "-F", image):
        pytest.skip("there is no mkfs.ext4 here")
    if not _may_mount(image, place):
        pytest.skip("this machine does not let us mount an image")
    rng = random.Random(SEED)
    with replay("tests/crash/test_image.py::test_an_image_that_is_copied_in_the_middle_of_work"):
        output = tmp_path / "said"
        copies: list[tuple[Path, str]] = []
        with mounted(image, place):
            Store._open(place / "store", create=True, **OPTIONS).close()
            with working(place / "store", output, SEED) as process:
                for number in range(CUTS):
                    time.sleep(rng.uniform(0.1, 0.6))
                    assert process.poll() is None, "the child has ended, or died"
                    _settled(process)
                    copy = tmp_path / f"copy-{number}.img"
                    assert _run("cp", "--sparse=always", "--reflink=never", image, copy)
                    copies.append((copy, output.read_text()))
                    process.send_signal(signal.SIGCONT)
        acknowledged = 0
        for copy, said in copies:
            ledger = Ledger()
            for event in events(said):
                ledger.hear(event)
            with mounted(copy, tmp_path / "again"):
                check_store(partial(Store._open, tmp_path / "again" / "store", **OPTIONS), ledger)
            acknowledged = max(acknowledged, len(ledger.ids))
            with suppress(OSError):
                os.unlink(copy)
        print(f"{len(copies)} power cuts, {acknowledged} artifacts acknowledged by the last")
        assert acknowledged > 3
