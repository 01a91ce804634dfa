"""The bytes of a text file as a stream: opened, decompressed, divided, decoded; every way this fails is one message.

Nothing here holds more than a buffer, or the one piece that it hands out.
"""

import codecs
import contextlib
import functools
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from glassgpt.errors import DataError, MissingExtraError

#: Endings of compressed files.
COMPRESSED = (".gz", ".zst")
#: A place behind the end of every file.
END = 2**63 - 1
MARK = codecs.BOM_UTF8  # the byte order mark that some editors put before UTF-8; it is not text
_BUFFER = 1 << 18
_HEAD = 1 << 13  # what is looked at before a file is taken for text

_ENCODINGS = (  # the longer marks first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "UTF-32", "utf-32"),
    (codecs.BOM_UTF32_BE, "UTF-32", "utf-32"),
    (codecs.BOM_UTF16_LE, "UTF-16", "utf-16"),
    (codecs.BOM_UTF16_BE, "UTF-16", "utf-16"),
)
_BEGINNINGS = (
    (b"\x1f\x8b", "compressed by gzip; give it a name that ends in .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; give it a name that ends in .zst"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"%PDF-", "a PDF document; take the text out of it first"),
    (b"PAR1", "a parquet table; give it a name that ends in .parquet"),
)


def is_compressed(file: Path) -> bool:
    """Whether a file is decompressed while it is read."""
    return file.suffix.lower() in COMPRESSED


@contextlib.contextmanager
def told(file: Path) -> Iterator[None]:
    """Turn what the operating system says about a file into a :class:`DataError` that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None


def open_bytes(file: Path) -> BinaryIO:
    """The bytes of a text file, decompressed if need be; only those of an uncompressed file can be sought in.

    Raises:
        DataError: if it does not look like UTF-8 text (its first 8 KB hold a NUL byte, or begin as another encoding or
            a binary format does), or, here or later while it is read, if it is damaged.
        MissingExtraError: if decompressing takes a library that is not installed.
        OSError: if it cannot be read; see :func:`told`.
    """
    unpacked = _unpacked(file) if is_compressed(file) else None
    stream = cast(BinaryIO, io.BufferedReader(unpacked, _BUFFER)) if unpacked else file.open("rb", buffering=_BUFFER)
    try:
        if unpacked:
            head = unpacked.head()
        else:
            head = stream.read(_HEAD)
            stream.seek(0)
        _look(file, head)
    except BaseException:
        stream.close()
        raise
    return stream


def _look(file: Path, head: bytes) -> None:
    """Refuse what is not text, by its beginning."""
    for mark, name, codec in _ENCODINGS:
        if head.startswith(mark):
            raise DataError(
                f"{file} is {name} text (its first bytes are {mark.hex(' ')}), not UTF-8. "
                f"Convert it first, for example: iconv -f {codec} -t utf-8 OLD.txt > NEW.txt"
            )
    for beginning, what in _BEGINNINGS:
        if head.startswith(beginning):
            raise DataError(f"{file} is not text but {what}")
    zero = head.find(b"\0")
    if zero >= 0:
        raise DataError(
            f"{file} looks binary: byte 0x00 at offset {zero}{_inside(file)}. Text is expected, in UTF-8 "
            "(UTF-16 without a byte order mark looks like this too; convert it with iconv)"
        )


def _inside(file: Path) -> str:
    return " of what it decompresses to" if is_compressed(file) else ""


# --- decompression ---------------------------------------------------------------------------------------------------


class _Unpacked(io.RawIOBase):
    """What a compressed file decompresses to: its members, one after another, each checked to have an end.

    The libraries' own streams are not used because `zstandard`'s ends without a word where a file was cut.

    Args:
        file: what to read.
        member: makes an object that decompresses one member.
        limits: what its ``decompress`` takes besides the bytes.
        take: how many compressed bytes to give it at a time.
        error: what it raises.
        padding: bytes that may stand between members and at the end.
    """

    def __init__(
        self,
        file: Path,
        member: Callable[[], Any],
        *limits: int,
        take: int,
        error: type[Exception],
        padding: bytes = b"",
    ) -> None:
        self._file, self._new_member, self._limits, self._take = file, member, limits, take
        self._error, self._padding = error, padding
        self._packed = file.open("rb", buffering=_BUFFER)
        self._member: Any = None  # which decompresses the unfinished member
        self._members = 0
        self._rest = b""  # compressed bytes to be taken first
        self._ready = memoryview(b"")
        self._made = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._packed.close()
        super().close()

    def head(self) -> bytes:
        """The first 8 KB, which stay to be read."""
        ready = b""
        while len(ready) < _HEAD and (more := self._more()):
            ready += more
        self._ready = memoryview(ready)
        return ready[:_HEAD]

    def readinto(self, buffer: Any) -> int:
        if not self._ready:
            self._ready = memoryview(self._more())
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _more(self) -> bytes:
        """The next bytes; none at the end."""
        while True:
            packed = self._rest or self._packed.read(self._take)
            self._rest = b""
            if self._member is None:
                if not packed and self._members:
                    return b""
                packed = packed.lstrip(self._padding) if self._members else packed
                if not packed and self._members:
                    continue
                self._member = self._new_member()
                self._members += 1
            try:
                made: bytes = self._member.decompress(packed, *self._limits)
            except self._error as error:
                raise self._damaged(str(error)) from None
            if self._member.eof:
                self._rest, self._member = self._member.unused_data, None
            else:
                self._rest = self._member.unconsumed_tail
                if not made and not packed:
                    raise self._damaged("it ends before its end mark; it was cut short")
            self._made += len(made)
            if made:
                return made

    def _damaged(self, reason: str) -> DataError:
        name = {".gz": "gzip", ".zst": "zstd"}[self._file.suffix.lower()]
        return DataError(f"{self._file} is damaged as {name}, {self._made} decompressed bytes in: {reason}")


def _unpacked(file: Path) -> _Unpacked:
    if file.suffix.lower() == ".gz":  # 31: a gzip header, and the check of its sums; tapes pad with zeros
        member = functools.partial(zlib.decompressobj, 31)
        return _Unpacked(file, member, 1 << 20, take=1 << 16, error=zlib.error, padding=b"\0")
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError("zstandard", "data", f"reading {file}") from None
    # It cannot be told where to stop: text that repeats itself may become ten thousand times its compressed size.
    return _Unpacked(file, zstandard.ZstdDecompressor().decompressobj, take=1 << 10, error=zstandard.ZstdError)


# --- pieces ----------------------------------------------------------------------------------------------------------


def pieces(file: Path, separator: bytes, begin: int = 0, end: int = END) -> Iterator[tuple[int, bytes]]:
    """What stands between separators, found from the left as ``bytes.split`` does: the pieces that begin in a range.

    Memory holds one piece; a piece that reaches into the range from before it is passed over without being held.

    Args:
        file: what to read; compressed only from 0 to :data:`END`.
        separator: at least one byte.
        begin: of the range, in bytes.
        end: of the range, not in it.

    Yields:
        the offset of each piece in the file, and its bytes, without the separator. A byte order mark at the beginning
        of the file belongs to no piece.
    """
    with told(file), open_bytes(file) as stream:
        tail = stream.read(len(MARK))
        first = len(MARK) if tail == MARK else 0
        base, start = first, first  # of what is in hand, and of the piece: -1 while its beginning is not known
        tail = tail[first:]
        if begin - len(separator) > first:
            base = _clear_of(stream, separator, begin - len(separator), first)
            start = first if base == first else -1
            stream.seek(base)
            tail = b""
        held: list[bytes] = []  # the piece so far
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
            rest = max(at, len(block) - len(separator) + 1)  # a separator may have begun
            if start >= begin:
                held.append(block[at:rest])
            elif base + rest >= end:
                return
            base, tail = base + rest, block[rest:]


def _clear_of(stream: BinaryIO, separator: bytes, at: int, first: int) -> int:
    r"""The last place up to `at` that lies within no separator.

    Reading from there finds the separators that reading from the beginning does, also those that overlap themselves
    (``\n\n`` in a run of line ends).
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
    r"""A file that is one document, as text in parts; joined they are the whole, to the character.

    Line ends are kept as they are (a ``\r\n`` may lie across two parts); a byte order mark is not text.

    Args:
        file: what to read.
        size: bytes of a part, about.

    Raises:
        DataError: if it cannot be read, or is not UTF-8 text; the message names the place.
        MissingExtraError: if decompressing takes a library that is not installed.
    """
    with told(file), open_bytes(file) as stream:
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
    """The text of bytes that stand at that offset of a file.

    Raises:
        DataError: if they are not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(file, offset + error.start, content[error.start]) from None


def not_utf8(file: Path, offset: int, byte: int) -> DataError:
    """What to say of a byte that is not UTF-8."""
    place = f"offset {offset}{_inside(file)} (line {line_of(file, offset)})"
    return DataError(
        f"{file} is not UTF-8 text: byte 0x{byte:02x} at {place}. "
        "Convert it first, for example: iconv -f latin1 -t utf-8 OLD.txt > NEW.txt"
    )


def line_of(file: Path, offset: int) -> int:
    """The number, from 1, of the line that holds the byte at an offset: found by reading all before it."""
    line, left = 1, offset
    with told(file), open_bytes(file) as stream:
        while left > 0 and (chunk := stream.read(min(left, _BUFFER))):
            line, left = line + chunk.count(b"\n"), left - len(chunk)
    return line
