"""A damaged file, or one that is not text, gives one message with the place; never a part of its text."""

import gzip
import itertools
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt.data.sources.documents import read_segment, segments
from glassgpt.data.sources.textfiles import line_of, text_parts
from glassgpt.errors import DataError, MissingExtraError

if sys.version_info >= (3, 14):
    from compression import zstd as zstandard
else:
    zstandard = pytest.importorskip("backports.zstd")
LINES = "".join(f'{{"text": "line {number} é"}}\n' for number in range(40)).encode("utf-8")


def zstd(content: bytes) -> bytes:
    compressed: bytes = zstandard.compress(content, options={zstandard.CompressionParameter.checksum_flag: 1})
    return compressed


PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstd}


def read(file: Path, separator: str = "") -> list[str]:
    parts = segments(file, 64, separator)
    return [document.text for part in parts for document in read_segment(part, separator=separator)]


def message_of(file: Path, separator: str = "") -> str:
    with pytest.raises(DataError) as caught:
        read(file, separator)
    assert str(file) in str(caught.value)
    return str(caught.value).replace(str(file), "FILE")


# --- compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", PACK)
@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, len(LINES)), max_size=6))
def test_members_one_after_another_are_one_file(
    tmp_path_factory: pytest.TempPathFactory, ending: str, cuts: list[int]
) -> None:
    file = tmp_path_factory.getbasetemp() / f"members.jsonl.{ending}"
    edges = [0, *sorted(cuts), len(LINES)]
    parts = [LINES[begin:end] for begin, end in itertools.pairwise(edges)]
    file.write_bytes(b"".join(map(PACK[ending], parts)) + (b"\0" * 600 if ending == "gz" else b""))
    assert read(file) == [f"line {number} é" for number in range(40)]


@pytest.mark.parametrize("ending", PACK)
def test_a_file_cut_short_anywhere_is_damaged(tmp_path: Path, ending: str) -> None:
    """At every byte: the text before the cut can be read, so only the check finds the damage."""
    packed = PACK[ending](LINES) + PACK[ending](LINES[:100])
    edges = {len(PACK[ending](LINES)), len(packed)}
    file = tmp_path / f"a.jsonl.{ending}"
    for length in range(len(packed)):
        if length not in edges:
            file.write_bytes(packed[:length])
            message = message_of(file)
            assert message.startswith(f"FILE is damaged as {'gzip' if ending == 'gz' else 'zstd'}, ")
            # one byte of a gzip header is not recognised as one
            assert message.endswith(("it is truncated: its end mark is missing", r"Not a gzipped file (b'\x1f')"))


@pytest.mark.parametrize("ending", PACK)
def test_a_changed_byte_never_changes_a_text(tmp_path: Path, ending: str) -> None:
    packed = bytearray(PACK[ending](LINES))
    file = tmp_path / f"a.jsonl.{ending}"
    file.write_bytes(packed)
    whole, told = read(file), 0
    for place in range(len(packed)):
        for change in (0x01, 0x80, 0xFF):
            packed[place] ^= change
            file.write_bytes(packed)
            packed[place] ^= change
            try:
                assert read(file) == whole  # the name and the time in a header may change
            except DataError as error:
                assert str(error).startswith(str(file))
                told += 1
    assert told > 2.8 * (len(packed) - 10)


@pytest.mark.parametrize("ending", PACK)
def test_what_is_not_compressed_but_says_so(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.txt.{ending}"
    file.write_bytes(b"plain text")
    assert "is damaged as" in message_of(file)
    file.write_bytes(b"")
    assert message_of(file).endswith("it is truncated: its end mark is missing")
    file.write_bytes(PACK[ending](b"text") + b"more text")
    assert "is damaged as" in message_of(file)
    file.write_bytes(PACK[ending](gzip.compress(b"text")))
    assert "is not text but compressed by gzip" in message_of(file)


def test_zstd_frames_that_say_nothing_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.txt.zst"
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"
    file.write_bytes(skippable + zstd(b"one ") + skippable + zstd(b"two") + skippable)
    assert read(file) == ["one two"]


def test_zstd_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt.zst"
    file.write_bytes(zstd(b"text"))
    monkeypatch.setitem(sys.modules, "compression" if sys.version_info >= (3, 14) else "backports", None)
    with pytest.raises(MissingExtraError, match=r"reading .*a\.txt\.zst needs the library 'backports.zstd'.*\[data\]"):
        read(file)


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "byte", "offset", "line"),
    [
        (b"caf\xe9", 0xE9, 3, 1),
        (b"one\ntwo\r\nthree \x80\n", 0x80, 15, 3),
        (b"a\n\xf0\x9f\xa6", 0xF0, 2, 2),  # cut in the middle of a character
        (b"\n\n\xed\xa0\x80", 0xED, 2, 3),  # a surrogate
        (b"\n\n\xc0\xaf", 0xC0, 2, 3),  # overlong
        (b"\xef\xbb\xbf\n|\xff", 0xFF, 5, 2),
        (b"x" * (1 << 20) + b"\n" * 1000 + "é".encode() * 9 + b"|\xe9|", 0xE9, (1 << 20) + 1019, 1001),
    ],
)
def test_what_is_not_utf8_is_named_wherever_the_file_is_cut(
    tmp_path: Path, content: bytes, byte: int, offset: int, line: int
) -> None:
    place = f"byte 0x{byte:02x} at offset {offset}"
    for name, packed, inside in (
        ("a.txt", content, ""),
        ("a.txt.gz", gzip.compress(content), " of the decompressed data"),
        ("a.txt.zst", zstd(content), " of the decompressed data"),
    ):
        file = tmp_path / name
        file.write_bytes(packed)
        expected = f"FILE is not UTF-8 text: {place}{inside} (line {line}). Convert it first, for example: iconv"
        assert message_of(file).startswith(expected)
        if len(content) < 1000:
            assert message_of(file, "|").startswith(expected)
            for size in range(1, 9):
                with pytest.raises(DataError, match=place):
                    list(text_parts(file, size))


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "txt.gz", "csv.zst"])
@pytest.mark.parametrize("codec", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_encodings_are_named(tmp_path: Path, codec: str, ending: str) -> None:
    content = "\ufeffa text".encode(codec) if codec.endswith("be") else "a text".encode(codec)
    file = tmp_path / f"a.{ending}"
    file.write_bytes(PACK.get(ending.split(".")[-1], bytes)(content))
    name = codec.upper().removesuffix("-BE")
    assert message_of(file, "|").startswith(f"FILE is {name} text (its first bytes are ")
    assert f"iconv -f {name.lower()} -t utf-8" in message_of(file)


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "txt.gz"])
def test_binary_files_are_named(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    pack = PACK.get(ending.split(".")[-1], bytes)
    for content, reason in (
        (b"abc\0def", "looks binary: byte 0x00 at offset 3"),
        (b"x" * 8191 + b"\0", "looks binary: byte 0x00 at offset 8191"),
        ("text".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (b"PK\x03\x04rest", "is not text but a zip archive"),
        (b"%PDF-1.7", "is not text but a PDF document"),
        (zstd(b"text"), "is not text but compressed by zstd; give it a name that ends in .zst"),
    ):
        file.write_bytes(pack(content))
        assert reason in message_of(file)
        assert reason in message_of(file, "|")


def test_a_nul_far_into_a_text_is_a_character(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"x" * 8192 + b"\0")
    assert read(file) == ["x" * 8192 + "\0"]


def test_line_of_counts_line_feeds_before(tmp_path: Path) -> None:
    content = bytes(random.Random(1).choices(b"ab\r\n", k=700_000))
    (tmp_path / "a").write_bytes(content)
    for offset in (0, 1, 1 << 18, (1 << 18) + 1, 699_999):
        assert line_of(tmp_path / "a", offset) == content[:offset].count(b"\n") + 1


# --- memory ----------------------------------------------------------------------------------------------------------

_PEAK = """
import re, sys
from pathlib import Path
from glassgpt.data.sources.documents import is_single, read_segment, segments
from glassgpt.data.sources.textfiles import text_parts

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text(encoding="ascii"))[1]) // 1024

file, size, separator = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
list(read_segment(segments(Path(sys.argv[4]), 1 << 30)[0]))  # imports what it takes
before, characters = peak(), 0
if is_single(file, separator):
    characters = sum(map(len, text_parts(file)))
else:
    for part in segments(file, size, separator):
        for document in read_segment(part, separator=separator):
            characters += len(document.text)
print(characters, peak() - before)
"""


def grown(file: Path, small: Path, size: int = 1 << 24, separator: str = "") -> tuple[int, int]:
    """Characters of its documents, and by how many MB the peak of the memory grew over reading a small file."""
    command = [sys.executable, "-c", _PEAK, str(file), str(size), separator, str(small)]
    characters, megabytes = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    return int(characters), int(megabytes)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path, prose: str) -> None:
    """200 MB of every kind."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    flat = prose.replace("\n", " ").replace('"', "").replace(",", ";")
    texts = [flat[at : at + 2000] for at in range(0, 18_000, 500)]
    times = 200_000_000 // (2000 * len(texts))
    block = {
        ".jsonl": "".join(f'{{"text": "{text}"}}\n' for text in texts),
        ".csv": "".join(f'{number},"{text}"\n' for number, text in enumerate(texts)),
        ".txt": "".join(f"{text}|" for text in texts),
    }
    expected = sum(map(len, texts)) * times
    for ending, part in block.items():
        begin = "id,text\n" if ending == ".csv" else ""
        with (tmp_path / f"a{ending}").open("w", encoding="utf-8") as stream:
            stream.write(begin)
            stream.writelines(part for _ in range(times))
        member = zlib.compressobj(1, wbits=31)
        with (tmp_path / f"a{ending}.gz").open("wb") as packed:
            packed.writelines(member.compress(piece.encode("utf-8")) for piece in [begin, *[part] * times])
            packed.write(member.flush())
        with zstandard.open(tmp_path / f"a{ending}.zst", "wb") as packed:
            for piece in [begin, *[part] * times]:
                packed.write(piece.encode("utf-8"))
        for packing, most in (("", 16), (".gz", 16), (".zst", 48)):  # what repeats this much is zstd's worst case
            small, file = tmp_path / f"small{ending}{packing}", tmp_path / f"a{ending}{packing}"
            small.write_bytes(PACK.get(packing[1:], bytes)((begin + part).encode("utf-8")))
            characters, megabytes = grown(file, small, separator="|" if ending == ".txt" else "")
            assert characters == expected and megabytes < most, (file.name, megabytes)
            if ending == ".txt":  # as one document of 200 MB
                characters, megabytes = grown(file, small)
                assert characters == expected + len(texts) * times and megabytes < most, (file.name, megabytes)
    table = pyarrow.table({"id": list(range(len(texts) * times)), "text": texts * times})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1 << 30, compression="none", use_dictionary=False)
    parquet.write_table(table.slice(0, 100), tmp_path / "small.parquet")
    characters, megabytes = grown(tmp_path / "a.parquet", tmp_path / "small.parquet")
    assert characters == expected and megabytes < 16, megabytes
