"""Texts from where the user says: a file, or a corpus by name."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from glassgpt import assets
from glassgpt.errors import DataError


@dataclass(frozen=True)
class Text:
    """A text and where it came from."""

    source: str
    name: str
    content: str


def read(source: str) -> Text:
    """Read a text file (UTF-8, with or without a byte order mark), or a corpus by its name.

    A file wins over a corpus of the same name.

    Raises:
        DataError: if there is no such file or corpus, it is not UTF-8 text, or it is empty.
    """
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        raise DataError(f"there is no file {source[:80]!r}, nor can there be: {error}") from None
    if not path.exists() and source in assets.names("corpus"):
        return Text(source, source, _decode(assets.path(source)))
    if path.is_dir():
        raise DataError(f"{source} is a folder; give one text file (for example: cat {source}/*.txt > all.txt)")
    if not path.exists():
        known = assets.names("corpus")
        near = difflib.get_close_matches(source, known, n=1)
        hint = f"did you mean the corpus {near[0]!r}?" if near else f"corpora known by name: {', '.join(known)}"
        raise DataError(f"there is no file {source!r}, and no corpus of that name; {hint}")
    return Text(str(path.resolve()), path.stem, _decode(path))


def _decode(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")  # the byte order mark is not text
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8 text: byte 0x{content[error.start]:02x} at offset {error.start} (line {line}). "
            "Convert it first, for example: iconv -f latin1 -t utf-8 OLD.txt > NEW.txt"
        ) from None
    if not text.strip():
        raise DataError(f"{path} is empty; there is nothing to learn from")
    return text
