"""Streams and resumable puts larger than any memory into a bucket, in a process whose memory is watched."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

GIB = int(os.environ.get("HOLDFAST_OBJECT_STREAM_GIB", "20"))
"""The directory takes twice that for a while."""
LIMIT_BYTES = 256 << 20
SPOOL_BYTES = (4 << 30) + (256 << 20)
"""What may wait on the disk, and an outboard."""

CHILD = textwrap.dedent(
    """
    import os, random, resource, sys, tempfile
    from holdfast import _native
    from holdfast.backend.objects.directory import DirectoryBucket
    from holdfast.bao import OutboardBuilder
    from holdfast.bao_stream import encode
    from holdfast.store import Store
    from holdfast.types import Hash

    path, what, size = sys.argv[1], sys.argv[2], int(sys.argv[3]) << 30
    mebi = random.Random(1).randbytes(1 << 20)

    def piece(number):
        return number.to_bytes(8, "little") + mebi[8:]

    def read(offset, length):
        number, at = divmod(offset, 1 << 20)
        return piece(number)[at:at + length]  # the encoder asks for what lies within one MiB

    def pairs(file):
        return lambda offset, length: os.pread(file.fileno(), length, offset)

    bucket = DirectoryBucket(path, create=True)
    with Store._open_objects(bucket, create=True) as store, tempfile.TemporaryFile() as file:
        if what == "upload":
            writer = store.writer("large", resumable=True)
            for number in range(size >> 20):
                writer.write(piece(number))
            assert writer.commit().size_bytes == size
        elif what == "put":
            assert store.put(map(piece, range(size >> 20))).size_bytes == size
        else:
            hasher = _native.BlobHasher()
            with OutboardBuilder() as builder:
                for number in range(size >> 20):
                    hasher.update(piece(number))
                    builder.feed(hasher.take_groups())
                root, rest = hasher.finish()
                builder.feed(rest)
                for part in builder.finish(size):
                    file.write(part)
                file.flush()
            info = store.blobs.decode(Hash(root), encode(size, root, read, pairs(file)))
            assert (info.status, info.size_bytes) == ("complete", size)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
    """
)


def open_bytes(pid: int, directory: str) -> int:
    """Give how much is in the open files of a process that lie, or lay, in a directory."""
    sizes = {}
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith(directory):
                    found = os.stat(f"/proc/{pid}/fd/{name}")
                    sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


@pytest.mark.deep
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("what", ["stream", "upload", "put"])
def test_memory_does_not_grow_with_what_comes(tmp_path: Path, what: str) -> None:
    (tmp_path / "spool").mkdir()
    free, spooled = shutil.disk_usage(tmp_path).free, 0
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "bucket"), what, str(GIB)],
        env={**os.environ, "TMPDIR": str(tmp_path / "spool")},
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        while child.poll() is None:
            spooled = max(spooled, open_bytes(child.pid, str(tmp_path / "spool")))
            time.sleep(0.5)
        assert child.stdout is not None
        resident = int(child.stdout.read() or 0)
    print(
        f"{GIB} GiB as {what}: {resident >> 20} MiB resident and {spooled >> 20} MiB in temporary files at the highest,"
        f" {(free - shutil.disk_usage(tmp_path).free) >> 30} GiB of the disk used at the end"
    )
    assert child.returncode == 0
    assert resident <= LIMIT_BYTES
    assert spooled <= SPOOL_BYTES
