"""A stream larger than any memory, through hasher, cutter and pager, in a process whose memory is watched."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

GIB = int(os.environ.get("HOLDFAST_STREAM_GIB", "100"))
LIMIT_BYTES = 256 << 20

# What was written is given back to the file system but for both ends of each segment (the header, the index):
# so 100 GiB pass through the whole store and take a few. The newest segments are left alone.
CHILD = textwrap.dedent(
    """
    import os, resource, subprocess, sys, threading
    import holdfast

    store_path, gib = sys.argv[1], int(sys.argv[2])
    done = threading.Event()

    def punch() -> None:
        seen = set()
        while not done.wait(1):
            for name in sorted(os.listdir(f"{store_path}/segments"))[:-3]:
                path = f"{store_path}/segments/{name}"
                if name not in seen and (size := os.stat(path).st_size) > 16 << 20:
                    subprocess.run(["fallocate", "-p", "-o", "1MiB", "-l", str(size - (5 << 20)), path], check=True)
                    seen.add(name)

    def memory() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    with holdfast.open(store_path, create=True) as store:
        store.put(b"everything is imported and warm")
        before = memory()
        threading.Thread(target=punch, daemon=True).start()
        artifact = store.put(os.urandom(1 << 20) for _ in range(gib << 10))
        done.set()
        assert artifact.size_bytes == gib << 30, artifact
        print(memory() - before, artifact.chunk_count)
    """
)


@pytest.mark.deep
def test_memory_does_not_grow_with_the_blob(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "store"), str(GIB)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    grown, chunks = map(int, found.stdout.split())
    print(f"{GIB} GiB in {chunks:,} chunks: {grown >> 20} MiB above the interpreter")
    assert chunks > GIB << 10
    assert grown < LIMIT_BYTES
