"""Texts in the rows of tables: JSON lines and CSV here, parquet and saved datasets in :mod:`.arrow`.

The text of a row is in the field that the user names; else in "text"; else in "content"; else in the only field with
strings. The first row or the header of a file decides; a row without that field is an error. A null is given as
None.
"""

import collections
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glassgpt.data.sources.textfiles import decode, line_of, open_bytes, reading, split_file, text_parts
from glassgpt.errors import DataError

#: The usual names of the field with the text, in this order.
TEXT_FIELDS = ("text", "content")
_CELL = 1 << 25  # most characters in a CSV cell; more means a quote that is not closed (Python's limit is 131072)
_SHOWN = 12  # most fields in a message

#: The place of a row in its file, and its text.
Row = tuple[int, str | None]


def text_field_of(names: list[str], strings: list[str], text_field: str, where: str) -> str:
    """Choose the field with the text: ``text_field`` (the user's), or one of all ``names``, or of those with strings.

    Raises:
        DataError: if it does not exist, or the choice is not clear.
    """
    if text_field:
        if text_field in names:
            return text_field
        raise DataError(
            f"{where}: there is no {text_field!r}; there are {listed(names)}. Say which with text_field=..."
        )
    usual = [name for name in TEXT_FIELDS if name in names]
    if usual:
        return usual[0]
    if len(strings) == 1:
        return strings[0]
    found = f"{len(strings)} other fields have strings" if strings else "no other field has strings"
    raise DataError(
        f'{where}: it is not clear where the text is: there is no "text" and no "content", and {found}; '
        f"there are {listed(names)}. Say which with text_field=..."
    )


def listed(names: list[str]) -> str:
    """Name some fields, for a message."""
    shown = ", ".join(repr(name if len(name) <= 40 else f"{name[:40]}...") for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{shown or 'no fields'}{more}"


# --- JSON lines ------------------------------------------------------------------------------------------------------


def json_rows(file: Path, begin: int, end: int, text_field: str) -> Iterator[Row]:
    """Read the rows of JSON lines that begin in a range of bytes; the place of a row is the offset of its line."""
    field = text_field
    for offset, line in split_file(file, b"\n", begin, end):
        if not line or line.isspace():
            continue
        row = _object(file, offset, line)
        field = field or _first_field(file)
        text = row.get(field)
        if not isinstance(text, str):
            if field not in row:
                reason = "" if text_field else ", the field of the first row's text"
                raise DataError(f"{_line(file, offset)}: there is no {field!r}{reason}; there are {listed(list(row))}")
            if text is not None:
                raise DataError(f"{_line(file, offset)}: {field!r} is {_kind(text)}, not a string")
        elif not text.isascii():
            _check_surrogates(text, file, offset, field)
        yield offset, text


def _first_field(file: Path) -> str:
    """Choose the field with the text by the first row of a file."""
    for offset, line in split_file(file, b"\n"):
        if line and not line.isspace():
            row = _object(file, offset, line)
            strings = [name for name, value in row.items() if isinstance(value, str)]
            return text_field_of(list(row), strings, "", _line(file, offset))
    raise AssertionError("the file has no rows")


def _object(file: Path, offset: int, line: bytes) -> dict[str, Any]:
    try:
        row = _JSON.decode(decode(line, file, offset))
    except json.JSONDecodeError as error:
        raise DataError(f"{_line(file, offset)}: not JSON: {error.msg} (character {error.colno} of the line)") from None
    except ValueError as error:
        raise DataError(f"{_line(file, offset)}: not valid JSON: {error}") from None
    except RecursionError:
        raise DataError(f"{_line(file, offset)}: its JSON is nested too deeply") from None
    if not isinstance(row, dict):
        raise DataError(f"{_line(file, offset)}: expected an object with a text, got {_kind(row)}")
    return row


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in row if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return row


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON value")


_JSON = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)


def _check_surrogates(text: str, file: Path, offset: int, field: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise DataError(
            f"{_line(file, offset)}: {field!r} has half a surrogate pair, {half} without its other half, at character "
            f"{error.start}"
        ) from None


def _line(file: Path, offset: int) -> str:
    return f"{file}, line {line_of(file, offset)}"


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


# --- CSV -------------------------------------------------------------------------------------------------------------


def csv_rows(file: Path, text_field: str) -> Iterator[Row]:
    """Read the rows of a CSV file (commas between cells, quotes doubled within quotes); the header is not counted."""
    header: list[str] = []
    column = number = 0
    with reading(file), open_bytes(file) as stream:
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
                found = f"{len(cells)} cells, but the header has {len(header)}"
                raise DataError(f"{file}, row {number} (line {line}): {found}")
            if "\0" in cells[column]:
                raise DataError(f"{file}, row {number} (line {line}): {header[column]!r} has a NUL byte")
            yield number, cells[column]
    if not header:
        raise DataError(f"{file} has no header: the first row of a CSV file names its columns")


def _next_cells(reader: Any, file: Path, row: int) -> list[str] | None:
    """Read the cells of the next row; None at the end."""
    line = reader.line_num + 1
    before = csv.field_size_limit(_CELL)  # one limit for the process: it is restored
    try:
        return next(reader, None)
    except UnicodeDecodeError:
        collections.deque(text_parts(file), maxlen=0)  # raises an error that names the place
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
    unnamed = not text_field and not any(name in header for name in TEXT_FIELDS)
    if unnamed and len(header) == 1 and not header[0].replace("-", "_").isidentifier():
        raise DataError(
            f"{where}: the first row must name the columns (with commas between them), and {listed(header)} does not "
            "look like a name. Put a header before it, or say text_field=... if it is a name"
        )
    name = text_field_of(header, header, text_field, where)
    if header.count(name) > 1:
        raise DataError(f"{where}: {header.count(name)} columns are named {name!r}")
    return header.index(name)
