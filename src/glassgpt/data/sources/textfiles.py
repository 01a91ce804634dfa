"""Read a text file as a stream: open, decompress, split, decode. Every failure is one message that names the place.

Memory holds one buffer, or one piece between separators.
"""

import codecs
import contextlib
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from glassgpt.errors import DataError, MissingExtraError

#: Endings of compressed files.
COMPRESSED = (".gz", ".zst")
#: An offset past the end of every file.
END = 2**63 - 1
_BUFFER = 1 << 18
_HEAD = 1 << 13  # bytes by which a file is recognised as text

_ENCODINGS = (  # the longer marks first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "UTF-32", "utf-32"),
    (codecs.BOM_UTF32_BE, "UTF-32", "utf-32"),
    (codecs.BOM_UTF16_LE, "UTF-16", "utf-16"),
    (codecs.BOM_UTF16_BE, "UTF-16", "utf-16"),
)
_MAGIC_BYTES = (
    (b"\x1f\x8b", "compressed by gzip; give it a name that ends in .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; give it a name that ends in .zst"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"%PDF-", "a PDF document; take the text out of it first"),
    (b"PAR1", "a parquet table; give it a name that ends in .parquet"),
)


def is_compressed(file: Path) -> bool:
    """Whether a file has a known ending of compressed files."""
    return file.suffix.lower() in COMPRESSED


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn an OSError while reading a file into a :class:`DataError` that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None


def open_bytes(file: Path) -> BinaryIO:
    """Open a text file for reading bytes, decompressed if necessary. Only an uncompressed file is seekable.

    Raises:
        DataError: if it does not look like UTF-8 text (a NUL byte in its first 8 KB, or the first bytes of another
            encoding or a binary format); here or in a later read, if it is damaged.
        MissingExtraError: if the library that decompresses it is not installed.
        OSError: if it cannot be read; see :func:`reading`.
    """
    _check_is_text(file)
    return _open(file)


def _open(file: Path) -> BinaryIO:
    if is_compressed(file):
        return cast(BinaryIO, io.BufferedReader(_Decompressed(file), _BUFFER))
    return file.open("rb", buffering=_BUFFER)


def _check_is_text(file: Path) -> None:
    """Raise a DataError if the first bytes of a file are not UTF-8 text."""
    with _open(file) as stream:
        head = stream.read(_HEAD)
    for mark, name, codec in _ENCODINGS:
        if head.startswith(mark):
            raise DataError(
                f"{file} is {name} text (its first bytes are {mark.hex(' ')}), not UTF-8. "
                f"Convert it first, for example: iconv -f {codec} -t utf-8 OLD.txt > NEW.txt"
            )
    for magic, kind in _MAGIC_BYTES:
        if head.startswith(magic):
            raise DataError(f"{file} is not text but {kind}")
    zero = head.find(b"\0")
    if zero >= 0:
        raise DataError(
            f"{file} looks binary: byte 0x00 at offset {zero}{_inside(file)}. Text is expected, in UTF-8 "
            "(UTF-16 without a byte order mark looks like this, too; convert it with iconv)"
        )


def _inside(file: Path) -> str:
    return " of the decompressed data" if is_compressed(file) else ""


# --- decompression ---------------------------------------------------------------------------------------------------


class _Decompressed(io.RawIOBase):
    """The decompressed bytes of a file; damage is one message that says how far into them it is."""

    def __init__(self, file: Path):
        self._file, self._done = file, 0
        self._stream, self._errors = _open_compressed(file)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        try:
            count: int = self._stream.readinto(buffer)
            if not count and not self._file.stat().st_size:
                raise EOFError  # the libraries take an empty file for an empty text
        except EOFError:
            raise self._damaged("it is truncated: its end mark is missing") from None
        except self._errors as error:
            raise self._damaged(str(error)) from None
        self._done += count
        return count

    def _damaged(self, reason: str) -> DataError:
        name = {".gz": "gzip", ".zst": "zstd"}[self._file.suffix.lower()]
        return DataError(f"{self._file} is damaged as {name}, after {self._done} or more decompressed bytes: {reason}")


def _open_compressed(file: Path) -> tuple[Any, tuple[type[Exception], ...]]:
    """The library's stream, and the errors that it raises for damage."""
    if file.suffix.lower() == ".gz":
        return gzip.open(file), (gzip.BadGzipFile, zlib.error)
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise MissingExtraError("backports.zstd", "data", f"reading {file}") from None
    return zstd.open(file), (zstd.ZstdError,)


# --- split -----------------------------------------------------------------------------------------------------------


def split_file(file: Path, separator: bytes, begin: int = 0, end: int = END) -> Iterator[tuple[int, bytes]]:
    """Split a file at separators, as ``bytes.split`` does; yield the pieces that begin in a range of bytes.

    Memory holds one piece. A piece that began before the range is skipped and not held. Ours, because pyarrow's and
    datasets' readers of lines know no other separators and not the place of a piece.

    Args:
        file: the file; a compressed one only from 0 to :data:`END`.
        separator: at least one byte.
        begin: first byte of the range.
        end: the byte after its last.

    Yields:
        the offset of each piece in the file, and its bytes, without the separator. A byte order mark at the start of
        the file is in no piece.
    """
    with reading(file), open_bytes(file) as stream:
        tail = stream.read(len(codecs.BOM_UTF8))
        first = len(tail) if tail == codecs.BOM_UTF8 else 0
        base, start = first, first  # offset of the block, and of the piece (-1: not known yet)
        tail = tail[first:]
        if begin - len(separator) > first:
            base = _outside_separators(stream, separator, begin - len(separator), first)
            start = first if base == first else -1
            stream.seek(base)
            tail = b""
        held: list[bytes] = []  # the first parts of the piece
        while start < end:
            chunk = stream.read(_BUFFER)
            block, at = tail + chunk, 0
            while (found := block.find(separator, at)) >= 0:
                if start >= begin:
                    yield start, b"".join([*held, block[at:found]]) if held else block[at:found]
                    held.clear()
                at = found + len(separator)
                start = base + at
                if start >= end:
                    return
            if not chunk:
                if start >= begin:
                    yield start, b"".join([*held, block[at:]])
                return
            rest = max(at, len(block) - len(separator) + 1)  # a separator may begin after this
            if start >= begin:
                held.append(block[at:rest])
            elif base + rest >= end:
                return
            base, tail = base + rest, block[rest:]


def _outside_separators(stream: BinaryIO, separator: bytes, at: int, first: int) -> int:
    r"""Find the last offset up to `at` that is not inside a separator.

    Reading from there finds the same separators as reading from the start, even if they can overlap (``\n\n`` in a run
    of line ends).
    """
    while at > first:
        low = max(first, at - len(separator) + 1)
        stream.seek(low)
        found = stream.read(at - low + len(separator) - 1).find(separator)
        if found < 0:
            return at
        at = low + found
    return first


# --- text ------------------------------------------------------------------------------------------------------------


def text_parts(file: Path, size: int = 1 << 20) -> Iterator[str]:
    r"""Read a file that is one document, as text in parts.

    Line ends are not changed (a ``\r\n`` may be split between two parts); a byte order mark is not text. Parts have
    about ``size`` bytes.

    Raises:
        DataError: if it cannot be read, or is not UTF-8 text; the message names the place.
        MissingExtraError: if the library that decompresses it is not installed.
    """
    with reading(file), open_bytes(file) as stream:
        rest, offset, first = b"", 0, True
        while True:
            read = stream.read(size)
            content = rest + read
            try:
                text, used = codecs.utf_8_decode(content, "strict", not read)
            except UnicodeDecodeError as error:
                raise not_utf8(file, offset + error.start, content[error.start]) from None
            rest, offset = content[used:], offset + used
            if text and first:
                text, first = text.removeprefix("\ufeff"), False
            if text:
                yield text
            if not read:
                return


def decode(content: bytes, file: Path, offset: int) -> str:
    """Decode the bytes at an offset of a file.

    Raises:
        DataError: if they are not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(file, offset + error.start, content[error.start]) from None


def not_utf8(file: Path, offset: int, byte: int) -> DataError:
    """Make the error for a byte that is not UTF-8."""
    place = f"offset {offset}{_inside(file)} (line {line_of(file, offset)})"
    return DataError(
        f"{file} is not UTF-8 text: byte 0x{byte:02x} at {place}. "
        "Convert it first, for example: iconv -f latin1 -t utf-8 OLD.txt > NEW.txt"
    )


def line_of(file: Path, offset: int) -> int:
    """Give the number, from 1, of the line with the byte at an offset. Reads the file up to there."""
    line, left = 1, offset
    with reading(file), open_bytes(file) as stream:
        while left > 0 and (chunk := stream.read(min(left, _BUFFER))):
            line, left = line + chunk.count(b"\n"), left - len(chunk)
    return line
