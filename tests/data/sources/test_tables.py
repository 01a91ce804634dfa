"""Rows equal those of other readers; the first row decides which field has the text."""

import csv
import gzip
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt.data.sources import tables
from glassgpt.data.sources.documents import Document, files, read_segment, segments
from glassgpt.errors import DataError, MissingExtraError

GOOD = b'{"text": "a"}\n'


def read(file: Path, size: int = 1 << 30, text_field: str = "") -> list[Document]:
    return [document for part in segments(file, size) for document in read_segment(part, text_field)]


def texts_of(file: Path, size: int = 1 << 30, text_field: str = "") -> list[str]:
    return [document.text for document in read(file, size, text_field)]


def message_of(file: Path, text_field: str = "", size: int = 1 << 30) -> str:
    with pytest.raises(DataError) as caught:
        read(file, size, text_field)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value).replace(str(file), "FILE")


# --- JSON lines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "not JSON: Expecting ',' delimiter (character 13 of the line)"),
        (b"{'text': 'a'}", "not JSON: Expecting property name enclosed in double quotes (character 2 of the line)"),
        (b'{"text": "a"} {"text": "b"}', "not JSON: Extra data"),
        (b'{"text": "a\tb"}', "not JSON: Invalid control character at"),
        (b'{"text": "a", "score": NaN}', "not valid JSON: NaN is not a JSON value"),
        (b'{"text": "a", "score": -Infinity}', "not valid JSON: -Infinity is not a JSON value"),
        (b'{"text": "a", "t\\u0065xt": "b"}', "not valid JSON: the key 'text' is there twice in one object"),
        (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
        (b'{"text": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "its JSON is nested too deeply"),
        (b'["a"]', "expected an object with a text, got an array"),
        (b'"a"', "expected an object with a text, got a string"),
        (b"null", "expected an object with a text, got null"),
        (
            b'{"content": "a", "id": 1}',
            "there is no 'text', the field of the first row's text; there are 'content', 'id'",
        ),
        (b"{}", "there is no 'text', the field of the first row's text; there are no fields"),
        (b'{"text": ["a"]}', "'text' is an array, not a string"),
        (b'{"text": 1.5}', "'text' is a number, not a string"),
        (b'{"text": true}', "'text' is a boolean, not a string"),
        (
            b'{"text": "a\\ud83e"}',
            "'text' has half a surrogate pair, \\ud83e without its other half, at character 1",
        ),
        (b'{"text": "\xc3\xa9\\udd8a\\ud83e"}', "'text' has half a surrogate pair, \\udd8a"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, line: bytes, reason: str) -> None:
    content = b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD * 3 + line + b"\n" + GOOD
    for name, packed in (("a.jsonl", content), ("a.jsonl.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(packed)
        for size in (10, 1 << 20):
            assert message_of(tmp_path / name, size=size).startswith(f"FILE, line 6: {reason}")


def test_bytes_that_are_not_utf8_are_named_in_every_part(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(GOOD * 3 + b'{"text": "caf\xe9"}\n' + GOOD)
    for size in range(1, 80):
        assert message_of(file, size=size).startswith("FILE is not UTF-8 text: byte 0xe9 at offset 55 (line 4). ")


def test_whole_surrogate_pairs_and_nulls_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "\\ud83e\\udd8a"}\n{"text": null}\n{"text": "\\u0000"}\n{"text": " "}'
    )
    assert texts_of(tmp_path / "a.jsonl") == ["🦊", "\0"]


# --- where the text is -----------------------------------------------------------------------------------------------

ROWS: list[tuple[dict[str, Any], str, str]] = [
    ({"content": "no", "text": "yes"}, "", "yes"),
    ({"id": "no", "content": "yes"}, "", "yes"),
    ({"id": 3, "story": "yes", "score": 1.5}, "", "yes"),
    ({"text": "no", "body": "yes"}, "body", "yes"),
    ({"text": "no", "a.b": "yes"}, "a.b", "yes"),
    ({"id": "x", "story": "y"}, "", 'it is not clear where the text is: there is no "text" and no "content", and 2'),
    ({"id": 1, "n": 2}, "", "and no other field has strings; there are 'id', 'n'. Say which with text_field=..."),
    ({"text": "x"}, "txt", "there is no 'txt'; there are 'text'"),
    ({f"c{number}": "x" for number in range(20)}, "", "'c11' and 8 more. Say"),
]


@pytest.mark.parametrize(("row", "asked", "expected"), ROWS)
def test_where_the_text_of_a_row_is(tmp_path: Path, row: dict[str, Any], asked: str, expected: str) -> None:
    """One rule for all kinds of tables; only in CSV, where every cell is a string, may the choice be unclear."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    table = pyarrow.Table.from_pylist([row, row])
    parquet.write_table(table, tmp_path / "a.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row)}\n" * 2, encoding="utf-8")
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([row.keys(), row.values(), row.values()])
    for name in ("a.jsonl", "a.csv", "a.parquet", "saved"):
        if expected != "yes":
            message = message_of(tmp_path / name, asked)
            assert expected in message or (name == "a.csv" and "it is not clear where the text is" in message)
        elif name == "a.csv" and not asked and not {"text", "content"} & row.keys():
            assert "and 3 other fields have strings" in message_of(tmp_path / name)
        else:
            assert texts_of(tmp_path / name, 1, asked) == ["yes", "yes"]


# --- CSV -------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12), max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_csv_rows_are_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], end: str, mark: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "rows.csv"
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([["id", "text"], *enumerate(texts)])
    file.write_bytes(stream.getvalue().encode("utf-8-sig" if mark else "utf-8"))
    places = [(number, text) for number, text in enumerate(texts, 1) if text.strip()]
    assert read(file) == [Document(text, file, number, "row") for number, text in places]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "FILE has no header: the first row of a CSV file names its columns"),
        (b"\n\n", "FILE has no header"),
        (b'id,text\n1,"a\nb"\n\n2\n', "FILE, row 2 (line 5): 1 cells, but the header has 2"),
        (b"id,text\n1,a,b\n", "FILE, row 1 (line 2): 3 cells, but the header has 2"),
        (b'id,text\n1,a\n2,"b\n3,c\n', "FILE, row 2 (line 3): not CSV: a quote is opened in this row and not closed"),
        (b'id,text\n1,"a"b\n', "FILE, row 1 (line 2): not CSV: ',' expected after '\"'"),
        (b"id,text\n1,a\rb\n", "FILE, row 1 (line 2): not CSV: a bare carriage return outside quotes"),
        (b"id,text\r1,a\r", "FILE, line 1: not CSV: a bare carriage return outside quotes"),
        (b"text\n" + b"a\n" * 5000 + b"b\0\n", "FILE, row 5001 (line 5002): 'text' has a NUL byte"),
        (b"text\na\n\xff", "FILE is not UTF-8 text: byte 0xff at offset 7 (line 3)"),
        (
            b"id;text\n1;a\n",
            "FILE, line 1: the first row must name the columns (with commas between them), and 'id;text' does",
        ),
        (b"Once upon a time\nthere was\n", "FILE, line 1: the first row must name the columns"),
        (b"text,text\na,b\n", "FILE, line 1: 2 columns are named 'text'"),
        (b"1,Once upon a time\n2,there was\n", "FILE, line 1: it is not clear where the text is"),
    ],
)
def test_a_bad_csv_is_named_with_its_row(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    assert message_of(tmp_path / "a.csv").startswith(message)


def test_long_cells_are_read_and_the_library_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("text\n" + "x" * (limit + 1) + "\n" + "y\n", encoding="utf-8")
    rows = read_segment(segments(tmp_path / "a.csv", 1)[0])
    assert len(next(rows).text) == limit + 1
    assert csv.field_size_limit() == limit
    assert next(rows).text == "y"
    monkeypatch.setattr(tables, "_CELL", 2 * limit)  # a quote that is never closed does not take the file's size
    (tmp_path / "b.csv").write_text('text\n"' + "x\n" * (1 << 20) + "y", encoding="utf-8")
    assert f"a quote is opened in this row and not closed in the {limit + 2} lines up" in message_of(tmp_path / "b.csv")


def test_a_column_is_named_by_a_name_or_on_request(tmp_path: Path) -> None:
    for name in ("story", "the_text", "Über-Text"):
        (tmp_path / "a.csv").write_text(f"{name}\na\nb\n", encoding="utf-8")
        assert texts_of(tmp_path / "a.csv") == ["a", "b"]
    (tmp_path / "a.csv").write_text("my story\na\n", encoding="utf-8")
    assert texts_of(tmp_path / "a.csv", text_field="my story") == ["a"]


# --- parquet ---------------------------------------------------------------------------------------------------------


def texts(count: int) -> list[str | None]:
    generator = random.Random(count)
    return [generator.choice([f"row {row} é🦊", f"{row}" * 50, "", " ", None]) for row in range(count)]


def numbered(rows: list[str | None]) -> list[tuple[int, str]]:
    return [(number, text) for number, text in enumerate(rows, 1) if text and text.strip()]


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_parquet_rows_in_any_parts(tmp_path: Path, kind: str) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = texts(1000)
    types = {"dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string())}
    column = pyarrow.array(rows).cast(types.get(kind) or getattr(pyarrow, kind)())
    table = pyarrow.table({"n": range(1000), "text": column})
    file = tmp_path / "a.parquet"
    parquet.write_table(table, file, row_group_size=70)
    group = parquet.read_metadata(file).row_group(3).total_byte_size
    for size, count in ((1, 15), (group * 4, range(3, 6)), (1 << 40, 1)):
        parts = segments(file, size)
        assert len(parts) == count if isinstance(count, int) else len(parts) in count
        documents = [document for part in parts for document in read_segment(part)]
        assert [(document.place, document.text) for document in documents] == numbered(rows)
        assert {document.unit for document in documents} == {"row"}
    parquet.write_table(table.slice(0, 0), file)
    assert texts_of(file) == []


def test_what_is_no_parquet_or_holds_no_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    table = pyarrow.table({"text": pyarrow.array([b"a", b"b"]), "n": [1, 2], "l": [["a"], []]})
    parquet.write_table(table, file)
    assert "FILE: the column 'text' has binary, not strings; strings are in no fields" in message_of(file)
    assert "the column 'l' has list<" in message_of(file, "l")
    invalid = pyarrow.StringArray.from_buffers(
        2, pyarrow.array([0, 1, 4], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"ab\xffc")
    )
    parquet.write_table(pyarrow.table({"text": invalid}), file)
    assert message_of(file) == "FILE, row 2: 'text' is not UTF-8 text: byte 0xff at offset 1 of it"
    for content in (b"", b"PAR1", b"not a table at all", b"PAR1" + b"x" * 50 + b"PAR1"):
        file.write_bytes(content)
        assert "parquet" in message_of(file).split("FILE", 1)[1]
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    assert "decompress it first" in message_of(tmp_path / "a.parquet.gz")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"reading .*a\.parquet needs the library 'pyarrow'.*\[parquet\]"):
        segments(file, 1)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_damaged_parquet_is_told(tmp_path: Path, compression: str) -> None:
    """Cut anywhere, or a byte of its data changed: by the format's own sums where they were written."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"text {row} " * 9 for row in range(30)]})
    parquet.write_table(table, file, compression=compression, write_page_checksum=True, use_dictionary=False)
    content = bytearray(file.read_bytes())
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        message_of(file)
    column = parquet.read_metadata(io.BytesIO(bytes(content))).row_group(0).column(0)
    end = column.data_page_offset + column.total_compressed_size
    for place in range(end - 70, end):  # behind the page's header
        content[place] ^= 0x10
        file.write_bytes(content)
        content[place] ^= 0x10
        assert "FILE is damaged as parquet, 0 rows into this part" in message_of(file)


# --- saved datasets --------------------------------------------------------------------------------------------------


def test_saved_datasets_in_any_parts(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = texts(500)
    saved = datasets.Dataset.from_dict({"n": list(range(500)), "text": rows})
    saved.save_to_disk(tmp_path / "one", num_shards=3)
    saved.with_format("numpy").select(range(499, -1, -1)).save_to_disk(tmp_path / "turned")
    for name, expected in (("one", rows), ("turned", rows[::-1])):
        assert files(str(tmp_path / name)) == [tmp_path / name]
        for size in (100, 3000, 1 << 40):
            parts = segments(tmp_path / name, size)
            assert (len(parts) == 1) == (size > 1 << 20)
            documents = [document for part in parts for document in read_segment(part)]
            assert [(document.place, document.text) for document in documents] == numbered(expected)
    datasets.DatasetDict({"test": saved, "train": saved}).save_to_disk(tmp_path / "both")
    assert files(str(tmp_path / "both")) == [tmp_path / "both" / "train"]
    assert files(str(tmp_path / "*")) == [tmp_path / "one", tmp_path / "turned"]
    saved.select([]).save_to_disk(tmp_path / "none", num_shards=1)
    assert texts_of(tmp_path / "none", 10) == []


def test_saved_datasets_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_dict({"n": list(range(9)), "text": ["a" * 99] * 9})
    datasets.DatasetDict({"test": saved, "dev": saved}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match='without a "train" split; its splits are test, dev'):
        files(str(tmp_path / "splits"))
    (tmp_path / "splits" / "dataset_dict.json").write_text("[1", encoding="utf-8")
    with pytest.raises(DataError, match=r"dataset_dict\.json does not list the splits"):
        files(str(tmp_path / "splits"))
    folder = tmp_path / "saved"
    saved.save_to_disk(folder)
    assert "the column 'n' has int64, not strings" in message_of(folder, "n")
    data = next(folder.glob("*.arrow"))
    content = data.read_bytes()
    for cut in (content[:100], content[: len(content) // 2], b"", b"x" * len(content)):
        data.write_bytes(cut)
        assert "FILE cannot be read as a saved dataset: " in message_of(folder)
    data.unlink()
    assert "FILE cannot be read as a saved dataset: FileNotFoundError" in message_of(folder)
    (folder / "state.json").write_text("{", encoding="utf-8")
    assert "FILE cannot be read as a saved dataset: JSONDecodeError" in message_of(folder)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"the saved dataset .* needs the library 'datasets'.*\[data\]"):
        segments(folder, 1)
