r"""Documents from where the user says, in parts that can be read independently of each other.

=============================  ======================================  ===============================================
What                           A document is                           A file is divided
=============================  ======================================  ===============================================
``.txt .md .py`` and others    the file                                not at all
the same, with a separator     what stands between two separators      by bytes
``.jsonl .ndjson``             the text of a line's object             by bytes
``.csv``                       the text of a row                       not at all
``.parquet``                   the text of a row (takes `pyarrow`)     by row groups
a folder of `save_to_disk`     the text of a row (takes `datasets`)    by rows
the first four, ``.gz .zst``   as without it (zst: `zstandard`)        not at all
=============================  ======================================  ===============================================

Which field of a row is its text: see :mod:`glassgpt.data.sources.tables`. Text is UTF-8, and is kept as it is, but for
a byte order mark at the beginning of a file, and for line ends (``\r``, ``\n``) around documents between separators. A
document of nothing but white space is left out.

Everything is read as a stream: memory holds one document, or a row batch or buffer of a few hundred KB.
"""

import difflib
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glassgpt.data.sources import tables
from glassgpt.data.sources.textfiles import COMPRESSED, END, decode, is_compressed, pieces, text_parts, told
from glassgpt.errors import DataError

#: Endings of files that are taken from a folder.
PLAIN = (".txt", ".md", ".py")
JSON_LINES = (".jsonl", ".ndjson")
TABLES = (*JSON_LINES, ".csv", ".parquet")
_NOT_TEXT = {  # what would else be taken for plain text, or for a damaged file
    ".json": "JSON is read as lines, one object a line, from files that end in .jsonl",
    ".tsv": "tables are read from .csv, with a comma between cells",
    ".arrow": "saved datasets are read as a whole: give the folder that save_to_disk wrote",
    ".tar": "unpack it first",
    ".tgz": "unpack it first",
    ".zip": "unpack it first",
}

__all__ = ["Document", "Segment", "files", "is_whole", "read_segment", "segments", "text_parts"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text of its own.

    Attributes:
        text: its content.
        source: the file (or the folder of a saved dataset) that it came from.
        place: where it begins there: the offset of its first byte (of the decompressed file), or the number of its row
            from 1; 0 where the file is the document.
        unit: what `place` counts: "byte", "row", or "file" where the file is the document.
    """

    text: str
    source: Path
    place: int
    unit: str

    def __str__(self) -> str:
        """Where it is, for people: ``texts/a.csv, row 3``."""
        return str(self.source) if self.unit == "file" else f"{self.source}, {self.unit} {self.place}"


@dataclass(frozen=True)
class Segment:
    """A part of a file: the documents that begin in a range.

    Attributes:
        file: a file, or the folder of a saved dataset.
        begin: of the range, in bytes, row groups or rows.
        end: of the range, not in it. Of a file that is not divided it is the size on disk, which says nothing more.
    """

    file: Path
    begin: int
    end: int


# --- which files -----------------------------------------------------------------------------------------------------


def files(source: str) -> list[Path]:
    """The files that a source means, sorted by the parts of their paths, alike on every platform.

    Args:
        source: a file; a folder (all files with known endings in it and below, none that is hidden); a pattern with
            ``*``, ``?``, ``[...]`` or ``**``; a folder that `datasets` saved (a ``DatasetDict`` means its "train").

    Raises:
        DataError: if there is none, or it cannot be read.
    """
    try:
        path = Path(source).expanduser()
        if tables.is_saved(path):
            return [path]
        if path.is_dir():
            splits = tables.saved_splits(path)
            return [_train(path, splits)] if splits else _below(path)
        if path.is_file():
            return [_readable(path)]
        if not path.exists() and glob.has_magic(source):
            return _matching(source, path)
        if path.exists():
            raise DataError(f"{source!r} is neither a file nor a folder")
        raise DataError(f"there is no file {source!r}{_near(path)}")
    except (OSError, RuntimeError, ValueError) as error:
        name = str(getattr(error, "filename", None) or source)
        raise DataError(f"{name[:200]!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _below(folder: Path) -> list[Path]:
    found, seen = [], set()

    def stop(error: OSError) -> None:
        raise error

    for name, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        here = os.path.realpath(name)
        if here in seen:  # a link to a folder that was there already
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(below for below in folders if not below.startswith("."))
        found += [Path(name, file) for file in names if not file.startswith(".")]
    found = [file for file in found if _ending(file) in (*PLAIN, *TABLES)]
    found = [file for file in found if file.is_file() or not file.exists()]  # a broken link is told when it is read
    if not found:
        known = " ".join((*PLAIN, *TABLES))
        raise DataError(
            f"the folder {folder} holds no file that can be read (known endings: {known}, also with .gz or .zst; "
            "other text files can be given by name or by a pattern)"
        )
    return sorted(found, key=_order)


def _order(file: Path) -> tuple[str, ...]:
    return file.parts  # as strings: on Windows paths compare without case


def _matching(source: str, path: Path) -> list[Path]:
    matches = {Path(name) for name in glob.glob(str(path), recursive=True)}  # noqa: PTH207  # Path's finds hidden files
    found = [match if tables.is_saved(match) else _readable(match) for match in matches if _is_source(match)]
    if not found:
        folders = f" ({len(matches)} folders do)" if matches else ""
        raise DataError(f"no file matches the pattern {source!r}{folders}")
    return sorted(found, key=_order)


def _is_source(path: Path) -> bool:
    return path.is_file() or tables.is_saved(path)


def _readable(file: Path) -> Path:
    reason = _NOT_TEXT.get(_ending(file))
    if reason:
        raise DataError(f"{file} is not read: {reason}")
    return file


def _train(folder: Path, splits: list[str]) -> Path:
    if "train" in splits and tables.is_saved(folder / "train"):
        return folder / "train"
    raise DataError(
        f'{folder} holds a saved DatasetDict without a "train" split; its splits are {", ".join(splits)}. '
        f"Give one of their folders, for example {folder / splits[0]}"
    )


def _near(path: Path) -> str:
    """What may have been meant."""
    folder = path.parent
    if not folder.is_dir():
        return f", nor a folder {str(folder)!r}"
    close = difflib.get_close_matches(path.name, sorted(entry.name for entry in folder.iterdir()), n=1)
    return f"; did you mean {str(folder / close[0])!r}?" if close else f" in {str(folder.resolve())!r}"


def _ending(file: Path) -> str:
    """The ending that tells what is in a file, without that of its compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


# --- what is in them -------------------------------------------------------------------------------------------------


def is_whole(file: Path, separator: str = "") -> bool:
    """Whether a file is one document: it is plain text and no separator divides it."""
    return not separator and _ending(file) not in TABLES and not tables.is_saved(file)


def segments(file: Path, size: int, separator: str = "") -> list[Segment]:
    """How a file is divided into parts to be read independently; the same wherever and however often it is asked.

    The file's content is not read: its size is asked for, or the description of a parquet file or saved dataset read.

    Args:
        file: one of :func:`files`.
        size: about how many bytes a part has, at least 1.
        separator: as for :func:`read_segment`.

    Raises:
        DataError: if the file is not there or its description cannot be read.
        MissingExtraError: if that takes a library that is not installed.
    """
    if size < 1:
        raise ValueError(f"size is {size}; a part has at least one byte")
    if tables.is_saved(file):
        return [Segment(file, *part) for part in tables.saved_ranges(file, size)]
    if _ending(file) == ".parquet":
        return [Segment(file, *part) for part in tables.parquet_ranges(file, size)]
    with told(file):
        total = file.stat().st_size
    if is_compressed(file) or _ending(file) == ".csv" or is_whole(file, separator):
        return [Segment(file, 0, total)]
    return [Segment(file, begin, min(begin + size, total)) for begin in range(0, max(total, 1), size)]


def read_segment(segment: Segment, text_field: str = "", separator: str = "") -> Iterator[Document]:
    """The documents that begin in a part of a file, in order; those of all parts are those of the file.

    Args:
        segment: one of :func:`segments`, with the same `separator`.
        text_field: the name of a row's text; by default it is looked for, see :mod:`glassgpt.data.sources.tables`.
        separator: divides plain files into documents, for example ``<|endoftext|>``; without one a file is a document.

    Raises:
        DataError: if something cannot be read; the message names the file and the place.
        MissingExtraError: if it takes a library that is not installed.
    """
    file = segment.file
    unit = "file" if is_whole(file, separator) else "byte"
    if tables.is_saved(file) or _ending(file) in (".csv", ".parquet"):
        unit = "row"
    for place, text in _rows(segment, text_field, separator):
        if text and not text.isspace():
            yield Document(text, file, place, unit)


def _rows(segment: Segment, text_field: str, separator: str) -> Iterator[tables.Row]:
    file, begin, end = segment.file, segment.begin, segment.end
    ending = _ending(file)
    if is_compressed(file):
        end = END
    if tables.is_saved(file):
        return tables.saved_rows(file, begin, end, text_field)
    if ending in JSON_LINES:
        return tables.json_rows(file, begin, end, text_field)
    if ending == ".csv":
        return tables.csv_rows(file, text_field)
    if ending == ".parquet":
        return tables.parquet_rows(file, begin, end, text_field)
    if separator:
        return _separated(file, begin, end, separator)
    return iter([(0, "".join(text_parts(file)))])


def _separated(file: Path, begin: int, end: int, separator: str) -> Iterator[tables.Row]:
    try:
        mark = separator.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"the separator {separator!r} is not text: it holds half a character") from None
    for offset, content in pieces(file, mark, begin, end):
        inner = content.lstrip(b"\r\n")
        offset += len(content) - len(inner)
        yield offset, decode(inner.rstrip(b"\r\n"), file, offset)
