r"""Read the documents of the user's files, in segments that can be read independently.

=============================  ======================================  ===============================================
Files                          A document is                           A file is divided
=============================  ======================================  ===============================================
``.txt .md .py`` and others    the file                                not at all
the same, with a separator     the text between two separators         by bytes
``.jsonl .ndjson``             the text of a line's object             by bytes
``.csv``                       the text of a row                       not at all
``.parquet``                   the text of a row (takes `pyarrow`)     by row groups
a folder of `save_to_disk`     the text of a row (takes `datasets`)    by rows
the first four, ``.gz .zst``   as without it (zst: `backports.zstd`)        not at all
=============================  ======================================  ===============================================

Which field of a row is its text: see :mod:`glassgpt.data.sources.tables`. Text is UTF-8 and is not changed, except that
a byte order mark at the start of a file is removed, and so are line ends (``\r``, ``\n``) beside separators. A document
that is null, empty or only white space is left out, and counted.

Everything is read as a stream: memory holds one document, or a buffer or batch of rows of a few hundred KB.
"""

import difflib
import glob
import operator
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from glassgpt.data.sources import arrow, tables
from glassgpt.data.sources.textfiles import COMPRESSED, END, decode, is_compressed, reading, split_file, text_parts
from glassgpt.errors import DataError

#: Endings of the files that are read from a folder.
PLAIN = (".txt", ".md", ".py")
JSON_LINES = (".jsonl", ".ndjson")
TABLES = (*JSON_LINES, ".csv", ".parquet")
_NOT_TEXT = {  # would look like plain text, or like a damaged file
    ".json": "JSON is read as lines, one object per line, from files that end in .jsonl",
    ".tsv": "tables are read from .csv, with commas between cells",
    ".arrow": "give the folder that save_to_disk wrote, not a file in it",
    ".tar": "unpack it first",
    ".tgz": "unpack it first",
    ".zip": "unpack it first",
}
_BY_PARTS = operator.attrgetter("parts")  # compares strings: on Windows paths compare without case


@dataclass(frozen=True, slots=True)
class Document:
    """One document."""

    text: str
    source: Path  # its file, or the folder of its saved dataset
    place: int  # offset of its first byte in the (decompressed) file, or the number of its row, from 1
    unit: str  # of the place: "byte" or "row"; "file" (and place 0) if the file is the document

    def __str__(self) -> str:
        """Name its place: ``texts/a.csv, row 3``."""
        return str(self.source) if self.unit == "file" else f"{self.source}, {self.unit} {self.place}"


@dataclass(frozen=True)
class Segment:
    """A part of a file: the documents that begin in a range."""

    file: Path  # or the folder of a saved dataset
    begin: int  # start of the range, in bytes, row groups or rows
    end: int  # the place after its end. For a file that is not divided: the size on disk, not used


def listed_counts(counts: Mapping[str, int]) -> str:
    """List counts for a message, the largest first: ``12 .pdf, 3 .json``; at most six, then how many more."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", {sum(count for _, count in ordered[6:]):,} of other kinds" if ordered[6:] else ""
    return ", ".join(f"{count:,} {kind[:40]}" for kind, count in ordered[:6]) + more


# --- which files -----------------------------------------------------------------------------------------------------


def files(source: str, passed_over: Counter[str] | None = None) -> list[Path]:
    """List the files of a source, sorted by the parts of their paths, in the same order on every platform.

    Args:
        source: a file; a folder (all files with known endings in it and below, except hidden ones and those of training
            runs); a pattern with ``*``, ``?``, ``[...]`` or ``**``; a folder that `datasets` saved (of a
            ``DatasetDict``, "train" is read).
        passed_over: counts the other files of a folder, by their endings, and the other matches of a pattern.

    Raises:
        DataError: if there is no file, or it cannot be read.
    """
    try:
        path = Path(source).expanduser()
        if arrow.is_saved(path):
            return [path]
        if path.is_dir():
            splits = arrow.saved_splits(path)
            return [_train_split(path, splits)] if splits else _files_below(path, passed_over)
        if path.is_file():
            return [_readable(path)]
        if not path.exists() and glob.has_magic(source):
            return _matching(source, path, passed_over)
        if path.exists():
            raise DataError(f"{source!r} is neither a file nor a folder")
        raise DataError(f"there is no file {source!r}{_suggestion(path)}")
    except (OSError, RuntimeError, ValueError) as error:
        name = str(getattr(error, "filename", None) or source)
        raise DataError(f"{name[:200]!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _files_below(folder: Path, passed_over: Counter[str] | None) -> list[Path]:
    found, seen = [], set()
    passed_over = Counter() if passed_over is None else passed_over

    def stop(error: OSError) -> None:
        raise error

    for name, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        here = os.path.realpath(name)
        if here in seen:  # a link to a folder that was visited before
            folders.clear()
            continue
        seen.add(here)
        if "run.toml" in names and name != str(folder):  # metrics.jsonl in a training run is not text
            passed_over["training run"] += 1
            folders.clear()
            continue
        passed_over["hidden"] += sum(below.startswith(".") for below in (*folders, *names))
        folders[:] = sorted(below for below in folders if not below.startswith("."))
        for file in (Path(name, below) for below in names if not below.startswith(".")):
            if ending_of(file) not in (*PLAIN, *TABLES):
                passed_over[ending_of(file) or "no ending"] += 1
            elif file.is_file() or not file.exists():  # a broken link: an error when read
                found.append(file)
            else:
                passed_over["neither file nor folder"] += 1
    if not found:
        known = " ".join((*PLAIN, *TABLES))
        raise DataError(
            f"the folder {folder} holds no file that can be read (known endings: {known}, also with .gz or .zst; "
            "other text files can be given by name or by a pattern)"
        )
    return sorted(found, key=_BY_PARTS)


def _matching(source: str, path: Path, passed_over: Counter[str] | None) -> list[Path]:
    matches = {Path(name) for name in glob.glob(str(path), recursive=True)}  # noqa: PTH207  # Path's finds hidden files
    found = [match for match in matches if arrow.is_saved(match)]
    others = matches.difference(found)  # of them a broken link is an error when read
    found += [_readable(match) for match in others if match.is_file() or not match.exists()]
    above = {folder for file in found for folder in file.parents}
    if passed_over is not None:
        passed_over["neither file nor folder with a match"] += len(others.difference(found, above))
    if not found:
        folders = f" ({len(matches)} folders match)" if matches else ""
        raise DataError(f"no file matches the pattern {source!r}{folders}")
    return sorted(found, key=_BY_PARTS)


def _readable(file: Path) -> Path:
    reason = _NOT_TEXT.get(ending_of(file))
    if reason:
        raise DataError(f"{file} is not read: {reason}")
    return file


def _train_split(folder: Path, splits: list[str]) -> Path:
    if "train" in splits and arrow.is_saved(folder / "train"):
        return folder / "train"
    raise DataError(
        f'{folder} is a saved DatasetDict without a "train" split; its splits are {", ".join(splits)}. '
        f"Give one of their folders, for example {folder / splits[0]}"
    )


def _suggestion(path: Path) -> str:
    """Name the most similar file in the folder."""
    folder = path.parent
    if not folder.is_dir():
        return f", nor a folder {str(folder)!r}"
    close = difflib.get_close_matches(path.name, sorted(entry.name for entry in folder.iterdir()), n=1)
    return f"; did you mean {str(folder / close[0])!r}?" if close else f" in {str(folder.resolve())!r}"


def ending_of(file: Path) -> str:
    """Give the ending of a file, without .gz or .zst."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


# --- documents in files ----------------------------------------------------------------------------------------------


def is_single(file: Path, separator: str = "") -> bool:
    """Whether a file is one document: plain text without a separator."""
    return not separator and ending_of(file) not in TABLES and not arrow.is_saved(file)


def segments(file: Path, size: int, separator: str = "") -> list[Segment]:
    """Divide a file into segments that can be read independently; always the same for the same file.

    Only the size of the file is read, or the metadata of a parquet file or saved dataset.

    Args:
        file: one of :func:`files`.
        size: about how many bytes a segment has, at least 1.
        separator: as for :func:`read_segment`.

    Raises:
        DataError: if the file does not exist, or its metadata cannot be read.
        MissingExtraError: if a library for it is not installed.
    """
    if size < 1:
        raise ValueError(f"size is {size}; a segment has at least one byte")
    if arrow.is_saved(file):
        return [Segment(file, *part) for part in arrow.saved_ranges(file, size)]
    if ending_of(file) == ".parquet":
        return [Segment(file, *part) for part in arrow.parquet_ranges(file, size)]
    with reading(file):
        total = file.stat().st_size
    if is_compressed(file) or ending_of(file) == ".csv" or is_single(file, separator):
        return [Segment(file, 0, total)]
    return [Segment(file, begin, min(begin + size, total)) for begin in range(0, max(total, 1), size)]


def read_segment(
    segment: Segment, text_field: str = "", separator: str = "", left_out: Counter[str] | None = None
) -> Iterator[Document]:
    """Read the documents that begin in a segment, in order. All segments together give all documents of the file.

    Args:
        segment: one of :func:`segments`, with the same `separator`.
        text_field: the field with a row's text; found automatically by default, see
            :mod:`glassgpt.data.sources.tables`.
        separator: between documents in plain files, for example ``<|endoftext|>``; without one a file is a document.
        left_out: counts the rows and files without text: "null", "empty", "only white space".

    Raises:
        DataError: if something cannot be read; the message names the file and the place.
        MissingExtraError: if a library for it is not installed.
    """
    unit, rows = _rows(segment, text_field, separator)
    for place, text in rows:
        if text and not text.isspace():
            yield Document(text, segment.file, place, unit)
        elif left_out is not None:
            left_out["null" if text is None else "only white space" if text else "empty"] += 1


def _rows(segment: Segment, text_field: str, separator: str) -> tuple[str, Iterator[tables.Row]]:
    """Give the unit of the places of a segment's documents (see :class:`Document`), and their places and texts."""
    file, begin, end = segment.file, segment.begin, segment.end
    ending = ending_of(file)
    if is_compressed(file):
        end = END
    if arrow.is_saved(file):
        return "row", arrow.saved_rows(file, begin, end, text_field)
    if ending in JSON_LINES:
        return "byte", tables.json_rows(file, begin, end, text_field)
    if ending == ".csv":
        return "row", tables.csv_rows(file, text_field)
    if ending == ".parquet":
        return "row", arrow.parquet_rows(file, begin, end, text_field)
    if separator:
        return "byte", _separated(file, begin, end, separator)
    return "file", iter([(0, "".join(text_parts(file)))])


def _separated(file: Path, begin: int, end: int, separator: str) -> Iterator[tables.Row]:
    try:
        mark = separator.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"the separator {separator!r} is not text: it has half a surrogate pair") from None
    for offset, content in split_file(file, mark, begin, end):
        inner = content.lstrip(b"\r\n")
        offset += len(content) - len(inner)
        if not inner:  # nothing between two separators is not a document
            continue
        yield offset, decode(inner.rstrip(b"\r\n"), file, offset)
