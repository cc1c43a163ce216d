"""The native kernels: official vectors, frozen cuts, what they refuse, which buffers they take."""

import array
import hashlib
import json
import mmap
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3 as oracle
import pytest

from holdfast import _native as native

DATA = Path(__file__).parent / "data"
SIZES = (0, 1, 1023, 1024, 1025, 16_383, 16_384, 16_385, 32_767, 32_768, 32_769, 65_536, 65_537, 3 << 20)


def noise(count: int, seed: str = "holdfast") -> bytes:
    """The same bytes on every machine."""
    return hashlib.shake_128(seed.encode()).digest(count)


def hash_blob(data: bytes) -> tuple[bytes, bytes]:
    hasher = native.BlobHasher()
    hasher.update(data)
    return hasher.finish()


def test_official_vectors() -> None:
    cases = json.loads((DATA / "blake3_vectors.json").read_text())["cases"]
    assert len(cases) == 35
    for case in cases:
        data = (bytes(range(251)) * (case["input_len"] // 251 + 1))[: case["input_len"]]
        expected = bytes.fromhex(case["hash"])
        assert native.blake3(data) == expected
        assert native.blake3_list([data]) == expected
        assert native.blake3_many(data, [len(data)]) == expected
        assert hash_blob(data)[0] == expected


@pytest.mark.parametrize("size", SIZES)
def test_a_blob_hashes_to_its_root_and_its_outboard_gives_the_groups_back(size: int) -> None:
    data = noise(size)
    root, groups = hash_blob(data)
    assert root == oracle.blake3(data).digest()
    if size <= native.BLOCK_BYTES:
        assert groups == b""
        return
    count = -(-size // native.BLOCK_BYTES)
    assert len(groups) == 32 * count
    pairs, top = native.outboard(groups, True)
    assert (len(pairs), top) == (64 * (count - 1), root)
    assert native.leaf_cvs(pairs, count, root, True) == groups
    assert native.verify_groups(data, 0, groups) == -1
    assert native.verify_groups(data[native.BLOCK_BYTES :], 1, groups[32:]) == -1
    assert native.verify_groups(data[native.BLOCK_BYTES :], 2, groups[32:]) == 0


def test_cuts_are_the_golden_ones() -> None:
    """Cuts are part of the format: if they move, equal data is stored twice."""
    for case in json.loads((DATA / "golden_cuts.json").read_text())["cases"]:
        data = noise(case["bytes"], case["seed"])
        if case["letters"]:
            data = data.translate(bytes(b"etaoin shrdlu"[i % 13] for i in range(256)))
        for step in (len(data), 100_003, 4096):
            cutter = native.Cutter(*case["sizes"])
            lengths = []
            for at in range(0, len(data), step):
                lengths += cutter.feed(data[at : at + step])
            assert [*lengths, cutter.finish()] == case["lengths"]


def test_crc32c_of_known_inputs() -> None:
    # RFC 3720, B.4
    assert native.crc32c(b"") == 0
    assert native.crc32c(b"123456789") == 0xE3069283
    assert native.crc32c(bytes(32)) == 0x8A9136AA
    assert native.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert native.crc32c(b"456789", native.crc32c(b"123")) == 0xE3069283


def test_every_kind_of_contiguous_buffer_is_taken() -> None:
    data = noise(5000)
    expected = oracle.blake3(data).digest()
    with mmap.mmap(-1, len(data)) as mapped:
        mapped[:] = data
        assert native.blake3(mapped) == expected
    for buffer in (
        data,
        bytearray(data),
        memoryview(data),
        memoryview(b"x" + data)[1:],
        array.array("B", data),
        memoryview(data).cast("B", (50, 100)),
    ):
        assert native.blake3(buffer) == expected
        assert native.blake3_list((buffer, buffer)) == expected * 2
    assert native.blake3(bytearray()) == native.blake3(memoryview(b"")) == oracle.blake3().digest()


def test_other_buffers_are_refused() -> None:
    for buffer in (memoryview(bytes(100))[::2], memoryview(bytes(100)).cast("I"), array.array("d", [1.0])):
        with pytest.raises(BufferError):
            native.blake3(buffer)
    for thing in ("text", 5, None, [1, 2]):
        with pytest.raises(TypeError):
            native.blake3(thing)  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        native.blake3_list([b"good", memoryview(b"abcd")[::2]])


def framed(**changed: Any) -> tuple[bytes, bytes]:
    arguments: dict[str, Any] = {
        "segment": 1,
        "offset": 0,
        "kinds": b"\1",
        "flags": b"\0",
        "hashes": bytes(32),
        "plain_lengths": [1],
        "payloads": [b"x"],
    }
    return native.frame(**arguments | changed)


ZEROS = bytes(32)
REFUSED: list[tuple[type[Exception], Callable[[], object]]] = [
    (ValueError, lambda: native.blake3_many(b"abc", [1, 1])),
    (ValueError, lambda: native.blake3_many(b"abc", [1, 3])),
    (OverflowError, lambda: native.blake3_many(b"abc", [-1, 4])),
    (ValueError, lambda: native.blake3_many(b"abc", [2**64 - 1, 4])),
    (TypeError, lambda: native.blake3_many(b"abc", ["3"])),  # type: ignore[list-item]
    (OverflowError, lambda: native.crc32c(b"", 2**32)),
    (ValueError, lambda: native.outboard(b"", False)),
    (ValueError, lambda: native.outboard(bytes(33), False)),
    (ValueError, lambda: native.outboard(ZEROS, True)),
    (ValueError, lambda: native.leaf_cvs(b"", 0, ZEROS, False)),
    (ValueError, lambda: native.leaf_cvs(b"", 1, ZEROS, True)),
    (ValueError, lambda: native.leaf_cvs(b"", 2, ZEROS, False)),
    (ValueError, lambda: native.leaf_cvs(bytes(64), 2**58 + 2, ZEROS, False)),
    (ValueError, lambda: native.leaf_cvs(bytes(64), 2, bytes(31), False)),
    (OverflowError, lambda: native.leaf_cvs(bytes(64), -1, ZEROS, False)),
    (ValueError, lambda: native.parent_cv(bytes(31), ZEROS, False)),
    (ValueError, lambda: native.verify_groups(b"x", 0, b"")),
    (ValueError, lambda: native.verify_groups(b"x", 0, bytes(64))),
    (ValueError, lambda: native.verify_groups(b"x", 2**63, ZEROS)),
    (ValueError, lambda: native.verify_many(b"abc", [0], [4], ZEROS)),
    (ValueError, lambda: native.verify_many(b"abc", [4], [0], ZEROS)),
    (ValueError, lambda: native.verify_many(b"abc", [2**64 - 1], [2**64 - 1], ZEROS)),
    (ValueError, lambda: native.verify_many(b"abc", [0, 1], [1], ZEROS)),
    (ValueError, lambda: native.verify_many(b"abc", [0], [1], bytes(31))),
    (ValueError, lambda: framed(kinds=b"")),
    (ValueError, lambda: framed(flags=b"\0\0")),
    (ValueError, lambda: framed(hashes=bytes(31))),
    (ValueError, lambda: framed(plain_lengths=[])),
    (ValueError, lambda: framed(payloads=[])),
    (ValueError, lambda: framed(payloads=[bytes(native.MAX_PAYLOAD_BYTES + 1)])),
    (OverflowError, lambda: framed(offset=2**32)),
    (OverflowError, lambda: framed(offset=-1)),
    (OverflowError, lambda: framed(segment=2**32)),
    (OverflowError, lambda: framed(plain_lengths=[2**32])),
    (OverflowError, lambda: native.scan(b"", 2**32, 0, deep=True)),
    (ValueError, lambda: native.check_payloads(b"", bytes(45), 0)),
    (ValueError, lambda: native.entry_columns(bytes(47))),
    (ValueError, lambda: native.Cutter(62, 256, 1024)),
    (ValueError, lambda: native.Cutter(64, 254, 1024)),
    (ValueError, lambda: native.Cutter(64, 256, 1022)),
    (ValueError, lambda: native.Cutter(65, 256, 1024)),
    (ValueError, lambda: native.Cutter(512, 256, 1024)),
    (ValueError, lambda: native.Cutter(64, 4096, 1024)),
    (ValueError, lambda: native.Cutter(64, 256, (16 << 20) + 2)),
]


@pytest.mark.parametrize(("error", "call"), REFUSED)
def test_wrong_arguments_are_refused(error: type[Exception], call: Callable[[], object]) -> None:
    with pytest.raises(error):
        call()


def test_a_cutter_says_which_sizes_are_allowed() -> None:
    with pytest.raises(ValueError, match=r"min_bytes 64\.\.=1048576, .* got 0, 0, 0"):
        native.Cutter(0, 0, 0)


def test_the_largest_payload_and_the_last_offset_are_framed() -> None:
    assert len(framed(payloads=[bytes(native.MAX_PAYLOAD_BYTES)])[0]) == native.HEADER_BYTES
    headers, _ = framed(offset=2**32 - 1)
    assert struct.unpack_from("<I", headers, 12) == (2**32 - 1,)
    with pytest.raises(OverflowError):
        framed(
            offset=2**32 - 65,
            kinds=b"\1\1",
            flags=bytes(2),
            hashes=bytes(64),
            plain_lengths=[0, 0],
            payloads=[b"ab", b""],
        )


def resealed(header: bytes, at: int, byte: int) -> bytes:
    """The header with another byte at `at`, and a checksum that fits."""
    summed = header[:at] + bytes([byte]) + header[at + 1 : 60]
    return summed + struct.pack("<I", native.crc32c(summed))


def test_later_versions_of_a_record_are_walked_and_version_0_is_none() -> None:
    header, entry = framed(offset=5)
    for at, byte, known in ((6, 0, False), (6, 2, True), (7, 1, True), (3, ord("x"), False)):
        changed = resealed(header, at, byte) + b"x"
        found = native.scan(changed, 1, 5, deep=True)
        assert found == ((entry, 65, "end") if known else (b"", 0, "magic" if at == 3 else "header"))
        assert native.find_header(changed, 1, 5, 0) == (0 if known else -1)
        wrong = native.check_payloads(changed, entry, 5)
        assert wrong == ([(0, "hash")] if known else [(0, "header")])


def test_a_header_that_says_something_else_than_its_entry_is_bad() -> None:
    payload = b"some payload"
    joined, entry = native.frame_joined(
        1, 100, b"\1", b"\0", native.blake3(payload), [len(payload)], [payload]
    )
    assert native.check_payloads(joined, entry, 100) == []
    for at in range(native.ENTRY_BYTES):
        changed = bytearray(entry)
        changed[at] ^= 1
        [(index, wrong)] = native.check_payloads(joined + bytes(1000), changed, 100)
        assert (index, wrong) in {(0, "header"), (0, "short")}


def test_payloads_are_checked_by_hash_unless_compressed() -> None:
    payloads = [b"a" * 100_000, b"b", b"c"]
    hashes = native.blake3_list([payloads[0], b"other", b"other"])
    joined, entries = native.frame_joined(1, 0, b"\1\1\1", b"\0\1\2", hashes, [9, 9, 9], payloads)
    assert native.check_payloads(joined, entries, 0) == [(1, "hash")]
    damaged = bytearray(joined)
    damaged[70_000] ^= 1
    damaged[-1] ^= 1
    assert native.check_payloads(damaged, entries, 0) == [(0, "payload"), (1, "hash"), (2, "payload")]
    assert native.check_payloads(joined[:-1], entries, 0) == [(1, "hash"), (2, "short")]
    assert native.check_payloads(joined[64:], entries, 64) == [(0, "short"), (1, "hash")]


def test_an_object_in_use_by_another_thread_is_refused_not_mixed_up() -> None:
    hasher, data, errors = native.BlobHasher(), bytes(32 << 20), []

    def update() -> None:
        for _ in range(10):
            try:
                hasher.update(data)
            except RuntimeError as error:
                errors.append(error)

    threads = [threading.Thread(target=update) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hasher.size_bytes == (20 - len(errors)) * len(data)


def test_a_finished_hasher_is_finished() -> None:
    hasher = native.BlobHasher()
    hasher.update(b"abc")
    hasher.update(b"")
    assert hasher.size_bytes == 3
    hasher.finish()
    assert hasher.size_bytes == 3
    for call in (lambda: hasher.update(b""), hasher.take_groups, hasher.finish):
        with pytest.raises(ValueError, match="finished"):
            call()


def test_a_wrong_pair_is_named_by_its_offset() -> None:
    root, groups = hash_blob(noise(5 * native.BLOCK_BYTES))
    pairs = bytearray(native.outboard(groups, True)[0])
    pairs[200] ^= 1
    with pytest.raises(ValueError, match="192") as raised:
        native.leaf_cvs(pairs, 5, root, True)
    assert raised.value.args[1] == 192
    with pytest.raises(ValueError, match="byte 0 "):
        native.leaf_cvs(bytes(256), 5, root, True)


def test_a_deep_outboard_is_built_and_verified() -> None:
    groups = noise(32 * 100_001)
    pairs, top = native.outboard(groups, False)
    assert native.leaf_cvs(pairs, 100_001, top, False) == groups


def test_compressible_tells_text_from_noise() -> None:
    text = Path(__file__).read_bytes()
    floats = struct.pack("<4096f", *(((i * 2654435761) % 1000003) / 1000003 for i in range(4096)))
    items = [text, text[:300], floats, bytes(64), noise(64), noise(700), noise(100_000), b"", bytes(63)]
    assert native.compressible(items) == bytes([1, 1, 1, 1, 0, 0, 0, 0, 0])


def test_the_gil_is_released_for_large_work() -> None:
    """Another thread counts while this one hashes. Nothing but a release lets it: nobody is made to switch here.

    On a machine that is busy a round may pass before the other thread gets a core: one that sees it is enough.
    """
    data, count, counting = bytes(64 << 20), 0, True

    def count_up() -> None:
        nonlocal count
        while counting:
            count += 1
            time.sleep(0)

    def counts_meanwhile() -> bool:
        before = count
        native.blake3(data)
        return count > before

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    thread = threading.Thread(target=count_up)
    thread.start()
    try:
        assert any(counts_meanwhile() for _ in range(50))
    finally:
        counting = False
        sys.setswitchinterval(interval)
        thread.join()


def test_a_buffer_that_changes_meanwhile_is_no_fault() -> None:
    payload = bytearray(noise(300_000))
    kinds, flags = b"\1" * 4, bytes(4)
    joined, entries = native.frame_joined(1, 0, kinds, flags, bytes(128), [300_000] * 4, [bytes(payload)] * 4)
    shared, going = bytearray(joined), True

    def scribble() -> None:
        pattern = noise(len(shared))
        while going:
            shared[:] = pattern
            shared[:] = joined

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(100):
            found, consumed, _ = native.scan(shared, 1, 0, deep=True)
            assert entries.startswith(found)
            assert consumed <= len(shared)
            native.check_payloads(shared, entries, 0)
            native.find_header(shared, 1, 0, 1)
            written, _ = native.frame_joined(
                1, 0, b"\1", b"\0", bytes(32), [0], [memoryview(shared)[64:9000]]
            )
            assert native.scan(written, 1, 0, deep=True)[2] == "end"
    finally:
        going = False
        thread.join()
