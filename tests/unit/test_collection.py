"""Collections: bytes computed by hand from docs/protocol.md, and hostile ones."""

from __future__ import annotations

import pytest

from holdfast.errors import FormatError, TooLarge
from holdfast.wire import collection
from holdfast.wire.collection import TreeExtras, iter_hashes, iter_names, parse_extras

HEAD = b"CollectionV0."
SEQ = bytes(range(32))


@pytest.mark.parametrize(
    ("names", "golden"),
    [
        ([], "436f6c6c656374696f6e56302e 00"),
        (["a"], "436f6c6c656374696f6e56302e 01 01 61"),
        (["a.txt", "d/ö"], "436f6c6c656374696f6e56302e 02 05 612e747874 04 642fc3b6"),
        (["", "x" * 128], "436f6c6c656374696f6e56302e 02 00 8001" + "78" * 128),
        (["n" * 300] * 130, "436f6c6c656374696f6e56302e 8201" + ("ac02" + "6e" * 300) * 130),
    ],
)
def test_golden_bytes(names: list[str], golden: str) -> None:
    data = bytes.fromhex(golden)
    assert collection.encode_meta(names) == data
    for step in (1, 2, 7, len(data)):
        pieces = [data[i : i + step] for i in range(0, len(data), step)]
        assert list(iter_names(pieces, len(names))) == names


@pytest.mark.parametrize(
    ("value", "golden"),
    [(0, "00"), (127, "7f"), (128, "8001"), (16_384, "808001"), ((1 << 64) - 1, "ffffffffffffffffff01")],
)
def test_varints(value: int, golden: str) -> None:
    assert collection.encode_varint(value) == bytes.fromhex(golden)


@pytest.mark.parametrize(
    ("data", "count", "says"),
    [
        (b"", 0, "does not begin"),
        (HEAD[:-1], 0, "does not begin"),
        (b"CollectionV1.\0", 0, "does not begin"),
        (HEAD, 0, "cut off"),
        (HEAD + b"\x80", 0, "cut off"),
        (HEAD + b"\x80" * 11 + b"\0", 0, "too long"),
        (HEAD + b"\xff" * 9 + b"\x7f", 0, "too long"),  # above 64 bits
        (HEAD + b"\xff" * 9 + b"\x01", 1, "claims 18446744073709551615 names for 1 files"),
        (HEAD + b"\x02\x01a\x01b", 1, "claims 2 names for 1"),
        (HEAD + b"\x01\x01a", 2, "claims 1 names for 2"),
        (HEAD + b"\x01", 1, "cut off"),
        (HEAD + b"\x01\x02a", 1, "name 0 is cut off"),
        (HEAD + b"\x01\x80", 1, "cut off"),
        (HEAD + b"\x01\xff\xff\xff\xff\x0fa", 1, "at most 65535"),
        (HEAD + b"\x02\x01a\x02\xff\xfe", 2, "name 1 is not UTF-8"),
        (HEAD + b"\x01\x03\xed\xa0\x80", 1, "not UTF-8"),  # a lone surrogate
        (HEAD + b"\x01\x01a\0", 1, "follows"),
    ],
)
def test_hostile_names(data: bytes, count: int, says: str) -> None:
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        with pytest.raises(FormatError, match=says) as caught:
            list(iter_names(pieces, count))
        assert 0 <= caught.value.offset_bytes <= len(data)


def test_names_are_streamed() -> None:
    def pieces() -> object:
        yield HEAD + b"\xe8\x07"
        yield b"\x01a" * 999
        raise ZeroDivisionError

    names = iter_names(pieces(), 1_000)  # type: ignore[arg-type]
    assert [next(names) for _ in range(999)] == ["a"] * 999
    with pytest.raises(ZeroDivisionError):
        next(names)


def test_a_name_that_is_too_long_is_not_written() -> None:
    assert len(collection.encode_name("x" * 65_535)) == 65_538
    with pytest.raises(TooLarge):
        collection.encode_name("x" * 65_536)


def test_hash_seqs() -> None:
    data = SEQ * 5
    for step in (1, 31, 32, 33, 160):
        assert list(iter_hashes(data[i : i + step] for i in range(0, 160, step))) == [SEQ] * 5
    assert collection.file_count(160) == 4
    for size in (0, 31, 33):
        with pytest.raises(FormatError):
            collection.file_count(size)
    with pytest.raises(FormatError):
        list(iter_hashes([data, b"x"]))


EXTRAS = TreeExtras(
    version=1,
    collection=SEQ.hex(),
    executable=[0, 1, 4, 7],
    symlinks={"l": "/etc", "d/ö": "../x"},
    directories=["empty"],
)


def test_extras_have_these_bytes() -> None:
    golden = (
        f'{{"holdfast_tree":1,"collection":"{SEQ.hex()}","executable":[0,1,4,7],'
        '"symlinks":{"l":"/etc","d/ö":"../x"},"directories":["empty"]}'
    ).encode()
    assert EXTRAS.encode() == golden
    assert golden.startswith(collection.EXTRAS_PREFIX)
    assert parse_extras(golden, SEQ) == EXTRAS
    assert EXTRAS.is_executable(7) == bytearray([1, 0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    "old_new",
    [
        (b'"holdfast_tree":1', b'"holdfast_tree":2'),
        (b'"holdfast_tree":1,', b""),
        (b'"executable":[0', b'"executable":["0"'),
        (b'"executable":[0', b'"executable":[0.5'),
        (b'"symlinks":{', b'"symlinks":["'),
        (b'"/etc"', b"null"),
        (b'"directories"', b'"more":1,"directories"'),
        (b'"empty"', b'"\\ud800"'),
        (b'"empty"', b'"\xff"'),
        (b"000102", b"010102"),
        (b"}", b""),
    ],
)
def test_hostile_extras(old_new: tuple[bytes, bytes]) -> None:
    data = EXTRAS.encode()
    assert old_new[0] in data
    with pytest.raises(FormatError):
        parse_extras(data.replace(*old_new), SEQ)


def test_documents_that_are_no_extras() -> None:
    for data in (b"", b"null", b"[" * 100_000, b"{}", EXTRAS.encode() + b"x"):
        with pytest.raises(FormatError):
            parse_extras(data, SEQ)


@pytest.mark.parametrize("runs", [[0], [0, 0], [1, 0], [0, 2, 1, 3], [-1, 1], [0, 8], [0, 2, 2, 3]])
def test_runs_that_do_not_fit(runs: list[int]) -> None:
    with pytest.raises(FormatError):
        TreeExtras(version=1, collection="", executable=runs).is_executable(7)
