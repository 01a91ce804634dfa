"""Texts in parquet files and in datasets that Hugging Face's library saved."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glassgpt.data.sources.tables import Row, listed, text_field_of
from glassgpt.data.sources.textfiles import is_compressed, reading
from glassgpt.errors import DataError, MissingExtraError
from glassgpt.files import parse_json

_ROWS = 64  # read at a time


# --- parquet ---------------------------------------------------------------------------------------------------------


def parquet_ranges(file: Path, size: int) -> list[tuple[int, int]]:
    """Divide the row groups into ranges of about `size` bytes each (decompressed, all columns), by its footer."""
    with _open_parquet(file) as table:
        sizes = [table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups)]
    ranges, begin, total = [], 0, 0
    for group, group_bytes in enumerate(sizes, 1):
        total += group_bytes
        if total >= size or group == len(sizes):
            ranges.append((begin, group))
            begin, total = group, 0
    return ranges or [(0, 0)]


def parquet_rows(file: Path, begin: int, end: int, text_field: str) -> Iterator[Row]:
    """Read the rows of a range of row groups."""
    with _open_parquet(file) as table:
        column = _string_column(table.schema_arrow, text_field, file)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        number = sum(sizes[:begin])
        groups = list(range(begin, min(end, len(sizes))))
        batches = table.iter_batches(_ROWS, row_groups=groups, columns=[column], use_threads=False)
        for batch in _checked(batches, file, "parquet"):
            yield from _texts(batch, column, number, file)
            number += batch.num_rows
        if number != sum(sizes[:end]) or sum(sizes) != table.metadata.num_rows:
            raise DataError(f"{file} is damaged as parquet: its numbers of rows are not consistent")


def _open_parquet(file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", f"reading {file}") from None
    if is_compressed(file):
        raise DataError(f"{file} is compressed; parquet compresses its own columns: decompress it first")
    with reading(file):
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty; it is not a parquet file")
        file.open("rb").close()
    try:  # a row group may be as large as the file: the buffer limits the memory
        return pyarrow.parquet.ParquetFile(file, buffer_size=1 << 18, pre_buffer=False, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as parquet: {_short(error)}") from None


def _checked(batches: Iterator[Any], file: Path, kind: str, validate: bool = False) -> Iterator[Any]:
    """Yield the batches, and turn the library's errors into a DataError; ``validate`` also checks each batch."""
    import pyarrow

    rows = 0
    while True:
        try:
            batch = next(batches, None)
            if validate and batch is not None:
                batch.validate(full=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file} is damaged as {kind}, {rows} rows into this part: {_short(error)}") from None
        if batch is None:
            return
        yield batch
        rows += batch.num_rows


def _short(error: Exception) -> str:
    """Give a library's message on one line."""
    words = " ".join(str(error).split())
    return words if len(words) <= 300 else f"{words[:300]}..."


def _texts(batch: Any, column: str, number: int, file: Path) -> Iterator[Row]:
    """Read the texts of a batch after the first `number` rows."""
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
    yield from enumerate(texts, number + 1)


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
            f"{file}: the column {name!r} has {schema.field(name).type}, not strings; strings are in "
            f"{listed(strings)}. Say which with text_field=..."
        )
    return name


# --- saved datasets --------------------------------------------------------------------------------------------------


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `datasets`' ``save_to_disk``."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def saved_splits(path: Path) -> list[str]:
    """List the splits of a folder that ``DatasetDict.save_to_disk`` wrote; of another folder, nothing.

    Raises:
        DataError: if the list cannot be read.
    """
    names = path / "dataset_dict.json"
    if not names.is_file():
        return []
    try:
        splits = parse_json(names.read_text(encoding="utf-8"))["splits"]
        return [split for split in splits if isinstance(split, str)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{names} does not list the splits of a dataset: {error}") from None


def saved_ranges(folder: Path, size: int) -> list[tuple[int, int]]:
    """Divide the rows into ranges of about `size` bytes each."""
    dataset = _open_saved(folder)
    rows = len(dataset)
    with reading(folder):
        stored = sum(Path(file["filename"]).stat().st_size for file in dataset.cache_files)
    step = max(1, rows * size // max(1, stored))
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)] or [(0, 0)]


def saved_rows(folder: Path, begin: int, end: int, text_field: str) -> Iterator[Row]:
    """Read a range of rows."""
    dataset = _open_saved(folder)
    column = _string_column(dataset.features.arrow_schema, text_field, folder)
    dataset = dataset.select_columns([column]).with_format("arrow")
    starts = range(begin, min(end, len(dataset)), _ROWS)
    tables = (dataset[start : min(start + _ROWS, end)] for start in starts)
    # Arrow's files have no checksums, and a changed offset would lead past the end of the memory map.
    for start, table in zip(starts, _checked(tables, folder, "a saved dataset", validate=True), strict=True):
        yield from _texts(table, column, start, folder)


def _open_saved(folder: Path) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "data", f"reading the saved dataset {folder}") from None
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # damage can lead to any error in the library
        raise DataError(
            f"{folder} cannot be read as a saved dataset: {type(error).__name__}: {_short(error)}"
        ) from None
