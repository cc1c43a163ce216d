"""What Holdfast does, shown on real files: the standard library of the Python that runs this.

    make demo                    in a temporary directory, which is removed afterwards
    make demo ARGS="--keep DIR"  in DIR, which stays, so that you can look around

Only the public API is used; the damage is done to the store's files from outside.
"""

from __future__ import annotations

import argparse
import filecmp
import logging
import os
import shutil
import sys
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import holdfast
from holdfast.cli.output import plural, size

T = TypeVar("T")
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
CHANGED = "json/encoder.py"
SKIPPED = ("__pycache__", "site-packages", "dist-packages", "lib-dynload", "config-*")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keep", metavar="DIR", type=Path, help="work in DIR and leave everything there")
    keep: Path | None = parser.parse_args().keep
    logging.basicConfig(format="    %(message)s", stream=sys.stdout)
    begun = time.perf_counter()
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=False)
        run(keep.absolute())
        command = Path(sys.executable).with_name("holdfast")
        say(f"\nThe store is still there:  {command} --store {keep.absolute() / 'store'} ls")
    else:
        with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as scratch:
            run(Path(scratch))
    say(f"\n{style('All of it held', 'green')}, in {time.perf_counter() - begun:.1f} s.")
    return 0


def run(place: Path) -> None:
    source, location = place / "stdlib", place / "store"
    stdlib = Path(sysconfig.get_path("stdlib"))
    # real files, but our own copy of them, because one is about to change
    shutil.copytree(stdlib, source, ignore=shutil.ignore_patterns(*SKIPPED), symlinks=True)
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.stat().st_size)
    total = sum(path.stat().st_size for path in files)
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    say(f"\nHoldfast, shown on the standard library of {python}")
    say(style(f"{plural(len(files), 'file')}, {size(total)}, from {stdlib}", "dim"))

    with holdfast.create(location) as store:
        heading("Store them")
        items = [holdfast.PutItem(path, filename=str(path.relative_to(source))) for path in files]
        with clock() as took:
            artifacts = store.put_many(items, tags=["stdlib"], metadata={"python": python})
        before = store.stats()
        line("stored, hashed and fsynced", f"{took():.2f} s", f"{len(files) / took():,.0f} files/s")
        line("one acknowledgement", artifacts[0].durability, "all of them, or none")
        line("on disk", size(before.disk_bytes), f"of {size(total)}, in {plural(before.segments, 'segment')}")

        heading("List them, newest first")
        with clock() as took:
            listed = list(store.find())
        check(len(listed) == len(files), "everything that was stored is listed")
        for artifact in listed[:3]:
            say(f"    {artifact.id}  {size(artifact.size_bytes):>10}  {artifact.filename}")
        line("listed", f"{took() * 1000:.0f} ms", plural(len(listed), "artifact"))

        heading("Read a range of the largest")
        largest = max(artifacts, key=lambda artifact: artifact.size_bytes)
        middle = largest.size_bytes // 2
        with clock() as took:
            piece = store.read(largest.id, offset_bytes=middle, length_bytes=60)
        check(
            piece == (source / str(largest.filename)).read_bytes()[middle : middle + 60],
            "the bytes are the file's",
        )
        line(
            f"bytes {middle:,}..{middle + 60:,} of {size(largest.size_bytes)}",
            f"{took() * 1000:.1f} ms",
            "verified",
        )
        say(style(f"    {largest.filename}: {piece!r}"[:110], "dim"))

        heading("Store the directory again, with one file changed")
        with (source / CHANGED).open("a") as file:
            file.write("\n# one line more\n")
        with clock() as took:
            tree = store.put_tree(source)
        after = store.stats()
        grown = after.stored_bytes - before.stored_bytes
        line("stored as a tree", f"{took():.2f} s", f"{len(files) / took():,.0f} files/s")
        line("brought", size(total), plural(len(files), "file"))
        line("new in the store", size(grown), f"{100 * (1 - grown / total):.2f} % was there already")
        with clock() as took:
            store.export(tree.id, place / "copy")
        same, different = compare(source, place / "copy")
        check(not different, f"the exported tree equals the directory: {different[:3]}")
        line("written out and compared", f"{took():.2f} s", f"{plural(same, 'file')} equal")

        heading("Delete one, and bring it back")
        victim = next(artifact for artifact in artifacts if artifact.filename == "this.py")
        store.delete(victim.id)
        check(not store.exists(victim.id), "what was deleted is gone from every answer")
        line("deleted", str(victim.filename), f"exists: {store.exists(victim.id)}")
        store.restore(victim.id)
        check(store.read(victim.id) == (source / "this.py").read_bytes(), "what was restored reads as before")
        line("restored", str(victim.filename), f"exists: {store.exists(victim.id)}")
        facts = {artifact.id: artifact.hash for artifact in store.find()}

    segment, offset, hit = flip_one_bit(location, source, artifacts)
    with holdfast.open(location) as store:
        heading("Flip one bit on the disk")
        line("damaged", segment.name, f"byte {offset:,}: {hit.filename}")
        try:
            store.read(hit.id)
        except holdfast.IntegrityError as error:
            line("read it", "refused", type(error).__name__)
            say(style(f"    {error}"[:200], "dim"))
        else:
            raise AssertionError("a damaged blob was given out")
        with clock() as took:
            report = store.scrub()
        check(not report.ok, "the scrub finds it")
        rate = f"{size(int(report.checked_bytes / took()))}/s"
        line("scrub everything", f"{plural(report.problem_count or len(report.problems), 'problem')}", rate)
        check(any(p.hash == hit.hash for p in report.problems if p.hash), "and names the blob")
        others = next(artifact for artifact in artifacts if artifact.hash != hit.hash)
        check(bool(store.read(others.id)), "the others still read")
    flip(segment, offset)  # as a repair from a copy would

    heading("Lose the catalog")
    catalog = list(location.glob("catalog.db*"))
    lost = sum(path.stat().st_size for path in catalog)
    for path in catalog:
        path.unlink()
    line("deleted", "catalog.db", size(lost))
    with clock() as took, holdfast.open(location) as store:
        stats = store.stats()
        opened = took()
        back = {artifact.id: artifact.hash for artifact in store.find()}
        line("opened, and rebuilt from storage", f"{opened:.2f} s", plural(stats.artifacts, "artifact"))
        check(back == facts, "every artifact is back, and nothing else")
        line("compared with before", "equal", "ids and hashes")
        report = store.scrub()
        check(report.ok, "everything verifies again")
        line("scrub everything", "sound", f"{size(report.checked_bytes)} in {report.seconds:.2f} s")


def flip_one_bit(
    location: Path, source: Path, artifacts: list[holdfast.Artifact]
) -> tuple[Path, int, holdfast.Artifact]:
    """Damage the stored bytes of some file, found by what they say; give where, and whose they are.

    What compresses well does not lie there as it is, so files that do not are tried first.
    """

    def sample(artifact: holdfast.Artifact) -> tuple[float, bytes]:
        with (source / str(artifact.filename)).open("rb") as file:
            file.seek(artifact.size_bytes // 2)
            piece = file.read(512)
        return len(zlib.compress(piece)) / len(piece) if len(piece) > 32 else 0.0, piece

    segments = sorted(path for path in (location / "segments").iterdir() if path.is_file())
    images = {path: path.read_bytes() for path in segments}
    candidates = [artifact for artifact in artifacts if artifact.filename != CHANGED]
    for artifact in sorted(candidates, key=lambda a: sample(a)[0], reverse=True):
        piece = sample(artifact)[1]
        for path, image in images.items():
            at = image.find(piece)
            if at >= 0:
                flip(path, at + 16)
                return path, at + 16, artifact
    raise AssertionError("no stored file was found in the segments as it is")


def flip(path: Path, offset: int) -> None:
    """Turn one bit over."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def compare(left: Path, right: Path) -> tuple[int, list[str]]:
    """Give how many files are equal, and which are not."""
    names = {str(path.relative_to(left)) for path in left.rglob("*") if path.is_file()}
    there = {str(path.relative_to(right)) for path in right.rglob("*") if path.is_file()}
    equal, *different = filecmp.cmpfiles(left, right, sorted(names & there), shallow=False)
    return len(equal), sorted(names ^ there) + [name for group in different for name in group]


@contextmanager
def clock() -> Iterator[Callable[[], float]]:
    """Give a function that says how long the block took, or has taken so far."""
    begun, ended = time.perf_counter(), 0.0
    yield lambda: (ended or time.perf_counter()) - begun
    ended = time.perf_counter()


def check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(f"does not hold: {what}")


def style(text: str, kind: str) -> str:
    codes = {"bold": 1, "dim": 2, "green": 32, "cyan": 36}
    return f"\x1b[{codes[kind]}m{text}\x1b[0m" if COLOUR else text


def say(text: str) -> None:
    print(text, flush=True)


def heading(text: str) -> None:
    say(f"\n{style(text, 'bold')}")


def line(what: str, figure: str, more: str = "") -> None:
    say(f"    {what:<36}{style(f'{figure:>14}', 'cyan')}   {more}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
