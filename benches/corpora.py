"""The corpora of the benchmarks, made anywhere: in $HOLDFAST_BENCH_DIR, or ~/.cache/holdfast-bench.

    python -m benches.corpora      make all of them now (about 4 GB, a few minutes, apt-get and pip)

What is random here is not: blocks of BLAKE3's output stream, the same on every machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from blake3 import blake3

SMALL_FILES: Final = 100_000
PACKAGE: Final = "sphinx"
VERSIONS: Final = (
    *(
        "5.0.0",
        "5.1.0",
        "5.2.0",
        "5.3.0",
        "6.0.0",
        "6.1.0",
        "6.2.0",
        "7.0.0",
        "7.0.1",
        "7.1.0",
        "7.1.1",
        "7.1.2",
    ),
    *("7.2.0", "7.2.1", "7.2.2", "7.2.3", "7.2.4", "7.2.5", "7.2.6", "7.3.0", "7.3.7", "7.4.0", "7.4.7"),
    *("8.0.0", "8.0.2", "8.1.0", "8.1.2", "8.1.3"),
)
"""28 releases of a package whose source is text (code, documents, translations) and needs nothing built."""
_BLOCK_BYTES: Final = 4 << 20


def place() -> Path:
    """Give the directory of the corpora, outside the repository."""
    root = os.environ.get("HOLDFAST_BENCH_DIR")
    path = Path(root) if root else Path.home() / ".cache" / "holdfast-bench"
    path.mkdir(parents=True, exist_ok=True)
    return path


def noise(seed: str, size_bytes: int, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """Give incompressible bytes that no other seed gives, in blocks, at about 2 GB/s."""
    stream = blake3(seed.encode())
    for start in range(0, size_bytes, block_bytes):
        yield stream.digest(length=min(block_bytes, size_bytes - start), seek=start)


def incompressible(size_bytes: int = 1 << 30) -> Path:
    """Give a file of incompressible bytes."""
    path = place() / f"noise-{size_bytes}"

    def make(part: Path) -> None:
        with part.open("wb") as file:
            file.writelines(noise("incompressible", size_bytes))

    return _made(path, make)


def small_sizes(count: int = SMALL_FILES) -> list[int]:
    """Give the sizes of the small files: 1 to 16 KiB, evenly spread."""
    draws = b"".join(noise("sizes", 4 * count))
    return [
        1024 + int.from_bytes(draws[i : i + 4], "little") % (15 * 1024 + 1) for i in range(0, 4 * count, 4)
    ]


def small_files(count: int = SMALL_FILES) -> Path:
    """Give a directory of `count` files of 1 to 16 KiB, a thousand a directory, all different."""

    def make(part: Path) -> None:
        contents = pieces("small", small_sizes(count))
        for first in range(0, count, 1_000):
            directory = part / f"{first // 1_000:03}"
            directory.mkdir(parents=True)
            for number in range(min(1_000, count - first)):
                (directory / f"{number:03}").write_bytes(next(contents))

    return _made(place() / f"small-{count}", make)


def pieces(seed: str, sizes: list[int]) -> Iterator[bytes]:
    """Give incompressible blobs of these sizes, cut from one stream, so that few are held at a time."""
    blocks = noise(seed, sum(sizes))
    block, at = b"", 0
    for size in sizes:
        if at + size > len(block):
            block, at = block[at:] + next(blocks), 0
        yield block[at : at + size]
        at += size


def source_tree() -> tuple[Path, str]:
    """Give a directory of source text, and what it is: Debian's `linux-source`, installed by apt-get if need be.

    Where that is not possible: the standard library and packages of this Python, which is said.
    """
    for path in sorted(place().glob("linux-source-*")):
        if path.is_dir():
            return path, f"Debian's {path.name}"
    packed = _find_linux_source()
    if packed is None and shutil.which("apt-get") and os.geteuid() == 0:
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "linux-source"]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        packed = _find_linux_source()
    if packed is not None:
        name = packed.name.removesuffix(".tar.xz")

        def unpack(part: Path) -> None:
            part.mkdir()
            subprocess.run(["tar", "-xf", str(packed), "-C", str(part), "--strip-components=1"], check=True)

        return _made(place() / name, unpack), f"Debian's {name}"
    print(
        "no linux-source (it needs Debian, and root for apt-get): the source tree is this Python's own files"
    )

    def copy(part: Path) -> None:
        shutil.copytree(sysconfig.get_path("stdlib"), part, ignore=shutil.ignore_patterns("*.pyc"))

    return _made(place() / "python-library", copy), "the library of this Python, for want of linux-source"


def versions() -> list[Path]:
    """Give the unpacked source of each release, by `pip download`; what cannot be had is left out, and said."""
    found = []
    for version in VERSIONS:
        try:
            found.append(_made(place() / "versions" / f"{PACKAGE}-{version}", _fetch(version)))
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{PACKAGE} {version} cannot be had: {error}")
    return found


def _fetch(version: str) -> Callable[[Path], None]:
    def fetch(part: Path) -> None:
        part.mkdir(parents=True)
        packed = part / "packed"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        command += ["--no-binary", PACKAGE, "--dest", str(packed), f"{PACKAGE}=={version}"]
        subprocess.run(command, check=True)
        (archive,) = packed.iterdir()
        with tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")
        shutil.rmtree(packed)

    return fetch


def _find_linux_source() -> Path | None:
    found = sorted(Path("/usr/src").glob("linux-source-*.tar.xz"))
    return found[-1] if found else None


def _made(path: Path, make: Callable[[Path], None]) -> Path:
    """Make a corpus aside, so that one that was interrupted is never taken for whole."""
    if not path.exists():
        print(f"making {path}")
        part = path.with_name(path.name + ".part")
        if part.is_dir():
            shutil.rmtree(part)
        part.parent.mkdir(parents=True, exist_ok=True)
        make(part)
        part.rename(path)
    return path


if __name__ == "__main__":
    for corpus in (incompressible(), small_files(), source_tree()[0], *versions()):
        print(corpus)
