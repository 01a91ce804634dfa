"""Texts in the rows of tables: JSON lines, CSV, parquet, and datasets that Hugging Face's library saved.

Where the text of a row is: in the field that was asked for; else in "text"; else in "content"; else in the only field
that holds strings. It is settled once for a file, by its first row or its header: a row of another shape is an error.
A null is no text, and left out as an empty text is.
"""

import collections
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glassgpt.data.sources.textfiles import decode, is_compressed, line_of, open_bytes, pieces, text_parts, told
from glassgpt.errors import DataError, MissingExtraError

#: Where the text of a row is looked for, in this order.
TEXT_FIELDS = ("text", "content")
_CELL = 1 << 25  # characters of a CSV cell: more is a quote that was never closed (Python's own limit is 131072)
_ROWS = 64  # read at a time from parquet and saved datasets
_SHOWN = 12  # fields named in a message

Row = tuple[int, str]  # its place in the file, and its text


def text_field_of(names: list[str], strings: list[str], asked: str, where: str) -> str:
    """The name of the field with the text.

    Args:
        names: of all fields.
        strings: of those that hold strings.
        asked: for by the user; empty if not.
        where: the file and place, for the message.

    Raises:
        DataError: if it is not there, or cannot be told.
    """
    if asked:
        if asked in names:
            return asked
        raise DataError(f"{where}: there is no {asked!r}; there are {_listed(names)}. Say which with text_field=...")
    usual = [name for name in TEXT_FIELDS if name in names]
    if usual:
        return usual[0]
    if len(strings) == 1:
        return strings[0]
    found = f"{len(strings)} other fields hold strings" if strings else "no other field holds strings"
    raise DataError(
        f'{where}: it is not clear where the text is: there is no "text" and no "content", and {found}; '
        f"there are {_listed(names)}. Say which with text_field=..."
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name if len(name) <= 40 else f"{name[:40]}...") for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{shown or 'no fields'}{more}"


# --- JSON lines ------------------------------------------------------------------------------------------------------


def json_rows(file: Path, begin: int, end: int, text_field: str) -> Iterator[Row]:
    """The rows of JSON lines that begin in a range of bytes; the place of each is the offset of its line."""
    field = text_field
    for offset, line in pieces(file, b"\n", begin, end):
        if not line or line.isspace():
            continue
        row = _object(file, offset, line)
        field = field or _first_field(file)
        text = row.get(field)
        if not isinstance(text, str):
            if field not in row:
                others = list(row)
                first = "" if text_field else ", where the first row has its text"
                raise DataError(f"{_line(file, offset)}: there is no {field!r}{first}; there are {_listed(others)}")
            if text is not None:
                raise DataError(f"{_line(file, offset)}: {field!r} is {_kind(text)}, not a string")
            text = ""
        if not text.isascii():
            _check_whole(text, file, offset, field)
        yield offset, text


def _first_field(file: Path) -> str:
    """Where the first row of a file has its text."""
    for offset, line in pieces(file, b"\n"):
        if line and not line.isspace():
            row = _object(file, offset, line)
            strings = [name for name, value in row.items() if isinstance(value, str)]
            return text_field_of(list(row), strings, "", _line(file, offset))
    raise AssertionError("asked of a file without rows")


def _object(file: Path, offset: int, line: bytes) -> dict[str, Any]:
    try:
        row = _JSON.decode(decode(line, file, offset))
    except json.JSONDecodeError as error:
        raise DataError(f"{_line(file, offset)}: not JSON: {error.msg} (character {error.colno} of the line)") from None
    except ValueError as error:
        raise DataError(f"{_line(file, offset)}: not JSON to be relied on: {error}") from None
    except RecursionError:
        raise DataError(f"{_line(file, offset)}: its JSON is nested too deeply to be read") from None
    if not isinstance(row, dict):
        raise DataError(f"{_line(file, offset)}: expected an object with a text in it, got {_kind(row)}")
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in row if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return row


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON value")


_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)


def _check_whole(text: str, file: Path, offset: int, field: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise DataError(
            f"{_line(file, offset)}: {field!r} holds half a character, the surrogate {half} without its other half, "
            f"at character {error.start}"
        ) from None


def _line(file: Path, offset: int) -> str:
    return f"{file}, line {line_of(file, offset)}"


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


# --- CSV -------------------------------------------------------------------------------------------------------------


def csv_rows(file: Path, text_field: str) -> Iterator[Row]:
    """The rows of a CSV file (a comma between cells, quotes doubled within quotes); the header is not counted."""
    header: list[str] = []
    column = number = 0
    with told(file), open_bytes(file) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n")
        reader = csv.reader(lines, strict=True)
        while True:
            line = reader.line_num + 1
            cells = _next_cells(reader, file, number + 1 if header else 0)
            if cells is None:
                break
            if not cells:  # a blank line
                continue
            if not header:
                header = cells
                column = _csv_column(header, text_field, f"{file}, line {line}")
                continue
            number += 1
            if len(cells) != len(header):
                found = f"{len(cells)} cells, where the header has {len(header)}"
                raise DataError(f"{file}, row {number} (line {line}): {found}")
            if "\0" in cells[column]:
                raise DataError(f"{file}, row {number} (line {line}): {header[column]!r} holds a NUL byte")
            yield number, cells[column]
    if not header:
        raise DataError(f"{file} has no header: the first row of a CSV file names its columns")


def _next_cells(reader: Any, file: Path, row: int) -> list[str] | None:
    """The cells of the next row; None at the end."""
    line = reader.line_num + 1
    before = csv.field_size_limit(_CELL)  # it is one for the whole process: it is put back
    try:
        return next(reader, None)
    except UnicodeDecodeError:
        collections.deque(text_parts(file), maxlen=0)  # which tells where
        raise
    except csv.Error as error:
        reason = str(error)
        if "unexpected end of data" in reason or "field larger" in reason:
            reason = f"a quote is opened in this row and not closed in the {reader.line_num} lines up to here"
        elif "new-line character" in reason:
            reason = "a bare carriage return outside quotes; lines end in \\n or \\r\\n"
        where = f"row {row} (line {line})" if row else f"line {line}"
        raise DataError(f"{file}, {where}: not CSV: {reason}") from None
    finally:
        csv.field_size_limit(before)


def _csv_column(header: list[str], text_field: str, where: str) -> int:
    guessed = not text_field and not any(name in header for name in TEXT_FIELDS)
    if guessed and len(header) == 1 and not header[0].replace("-", "_").isidentifier():
        raise DataError(
            f"{where}: the first row names the columns (with commas between them), and {_listed(header)} does not look "
            "like a name. Put one before it, or say text_field=... if it is one"
        )
    name = text_field_of(header, header, text_field, where)
    if header.count(name) > 1:
        raise DataError(f"{where}: {header.count(name)} columns are named {name!r}")
    return header.index(name)


# --- parquet ---------------------------------------------------------------------------------------------------------


def parquet_ranges(file: Path, size: int) -> list[tuple[int, int]]:
    """Ranges of row groups of about `size` bytes each (decompressed, all columns), from the file's footer."""
    with _parquet(file) as table:
        sizes = [table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups)]
    ranges, begin, held = [], 0, 0
    for group, bytes_of_group in enumerate(sizes, 1):
        held += bytes_of_group
        if held >= size or group == len(sizes):
            ranges.append((begin, group))
            begin, held = group, 0
    return ranges or [(0, 0)]


def parquet_rows(file: Path, begin: int, end: int, text_field: str) -> Iterator[Row]:
    """The rows of a range of row groups."""
    with _parquet(file) as table:
        column = _string_column(table.schema_arrow, text_field, file)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        number = sum(sizes[:begin])
        groups = list(range(begin, min(end, len(sizes))))
        batches = table.iter_batches(_ROWS, row_groups=groups, columns=[column], use_threads=False)
        for batch in _sound(batches, file, "parquet"):
            yield from _column(batch, column, number, file)
            number += batch.num_rows
        if number != sum(sizes[:end]) or sum(sizes) != table.metadata.num_rows:
            raise DataError(f"{file} is damaged as parquet: its numbers of rows do not agree with each other")


def _parquet(file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "data", f"reading {file}") from None
    if is_compressed(file):
        raise DataError(f"{file} is compressed; parquet compresses its own columns, so decompress it first")
    with told(file):
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty, which no parquet file is")
        file.open("rb").close()
    try:  # row groups may be as large as the file: they are read in parts of the buffer's size
        return pyarrow.parquet.ParquetFile(file, buffer_size=1 << 18, pre_buffer=False, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as parquet: {_short(error)}") from None


def _sound(batches: Iterator[Any], file: Path, kind: str, check: bool = False) -> Iterator[Any]:
    """Batches, with the library's words for damage made a message; on request it looks for damage itself."""
    import pyarrow

    rows = 0
    while True:
        try:
            batch = next(batches, None)
            if check and batch is not None:
                batch.validate(full=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file} is damaged as {kind}, {rows} rows into this part: {_short(error)}") from None
        if batch is None:
            return
        yield batch
        rows += batch.num_rows


def _short(error: Exception) -> str:
    """What a library says, on one line."""
    words = " ".join(str(error).split())
    return words if len(words) <= 300 else f"{words[:300]}..."


def _column(batch: Any, column: str, number: int, file: Path) -> Iterator[Row]:
    """The texts of a batch whose first row has the number `number` + 1."""
    values = batch.column(column)
    try:
        texts = values.to_pylist()
    except UnicodeDecodeError:
        for row, value in enumerate(values, number + 1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{file}, row {row}: {column!r} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at "
                    f"offset {error.start} of it"
                ) from None
        raise
    for row, text in enumerate(texts, number + 1):
        yield row, text or ""


def _string_column(schema: Any, text_field: str, file: Path) -> str:
    import pyarrow

    def is_string(kind: Any) -> bool:
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        return str(kind) in ("string", "large_string", "string_view")

    strings = [field.name for field in schema if is_string(field.type)]
    name = text_field_of(schema.names, strings, text_field, str(file))
    if schema.names.count(name) > 1:
        raise DataError(f"{file}: {schema.names.count(name)} columns are named {name!r}")
    if name not in strings:
        raise DataError(
            f"{file}: the column {name!r} holds {schema.field(name).type}, not strings; strings are in "
            f"{_listed(strings)}. Say which with text_field=..."
        )
    return name


# --- saved datasets --------------------------------------------------------------------------------------------------


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `datasets`' ``save_to_disk``."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def saved_splits(path: Path) -> list[str]:
    """The splits of a folder that ``DatasetDict.save_to_disk`` wrote; none if it is not one.

    Raises:
        DataError: if the list of them cannot be read.
    """
    names = path / "dataset_dict.json"
    if not names.is_file():
        return []
    try:
        splits = json.loads(names.read_text(encoding="utf-8"))["splits"]
        return [split for split in splits if isinstance(split, str)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{names} does not list the splits of a dataset: {error}") from None


def saved_ranges(folder: Path, size: int) -> list[tuple[int, int]]:
    """Ranges of rows of about `size` bytes each."""
    dataset = _saved(folder)
    rows = len(dataset)
    with told(folder):
        stored = sum(Path(file["filename"]).stat().st_size for file in dataset.cache_files)
    step = max(1, rows * size // max(1, stored))
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)] or [(0, 0)]


def saved_rows(folder: Path, begin: int, end: int, text_field: str) -> Iterator[Row]:
    """The rows of a range of them."""
    dataset = _saved(folder)
    column = _string_column(dataset.features.arrow_schema, text_field, folder)
    dataset = dataset.select_columns([column]).with_format("arrow")
    starts = range(begin, min(end, len(dataset)), _ROWS)
    tables = (dataset[start : min(start + _ROWS, end)] for start in starts)
    # Arrow's files hold no sums, and the memory behind one would be read past its end where an offset was changed.
    for start, table in zip(starts, _sound(tables, folder, "a saved dataset", check=True), strict=True):
        yield from _column(table, column, start, folder)


def _saved(folder: Path) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "datasets", f"reading the saved dataset {folder}") from None
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever the damage leads the library to
        raise DataError(
            f"{folder} cannot be read as a saved dataset: {type(error).__name__}: {_short(error)}"
        ) from None
