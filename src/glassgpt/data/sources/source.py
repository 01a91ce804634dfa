"""What the user means by a source: a file, a folder, a pattern, a corpus by name, or one that is prepared already."""

import bisect
import contextlib
import difflib
import glob
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glassgpt import assets
from glassgpt.config import DataConfig
from glassgpt.data.corpus.manifest import MANIFEST, plan_in
from glassgpt.data.sources.documents import Document, Segment, files, is_whole, read_segment, segments, text_parts
from glassgpt.data.sources.textfiles import is_compressed
from glassgpt.errors import DataError
from glassgpt.files import Progress, sha256_of
from glassgpt.tokenizer.pretokenize import safe_cut

#: Bytes around a place in which one is looked for where the text may be cut.
_WINDOW = 1 << 16


@dataclass(frozen=True)
class Text:
    """A text in memory and where it came from."""

    source: str
    name: str
    content: str


@dataclass(frozen=True)
class TextSource:
    """Files to read, and how they are divided into documents.

    Attributes:
        source: what the user wrote, with a path from the root; a corpus keeps its name.
        name: for people, and for the run.
        files: in order.
        separator: what stands between documents in plain files.
        text_field: where in a row the text is; see :mod:`glassgpt.data.sources.documents`.
        prepared: the folder, where the corpus is prepared already.
    """

    source: str
    name: str
    files: tuple[Path, ...]
    separator: str = ""
    text_field: str = ""
    prepared: Path | None = None

    @property
    def single(self) -> bool:
        """Whether it is one text, to be split by position."""
        return len(self.files) == 1 and is_whole(self.files[0], self.separator)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(_size, self.files))

    def segments(self, size: int) -> Iterator[tuple[Segment, int]]:
        """Parts that can be read independently, of about ``size`` bytes, and how many bytes of the files each takes."""
        for file in self.files:
            parts = segments(file, size, self.separator)
            for part in parts:
                yield part, _size(file) // len(parts)

    def documents(self, some: Sequence[Sequence[Any]] | None = None) -> Iterator[Document]:
        """The documents of some segments, each ``[file, begin, end]``, or of all."""
        if some is None:
            parts = [part for file in self.files for part in segments(file, 1 << 62, self.separator)]
        else:
            parts = [Segment(Path(file), begin, end) for file, begin, end in some]
        for part in parts:
            yield from read_segment(part, self.text_field, self.separator)

    def survey(self, scratch: Path, progress: Progress | None = None) -> "Survey":
        """Read everything once, to know it when it is seen again; of a single text, count its characters too.

        Args:
            scratch: a folder for a single text that is compressed.
            progress: told while it takes time.

        Raises:
            DataError: if a file cannot be read, or a single text is not UTF-8 or empty.
        """
        return _survey_text(self.files[0], scratch) if self.single else _survey_files(self.files, progress)


@dataclass(frozen=True)
class Survey:
    """What reading a source once has told.

    Attributes:
        sha256: of the text in UTF-8; of several files, of their SHA-256.
        bytes: of the text, or of the files.
        characters: of a single text.
        plain: the file to read a single text from.
        begin: its first byte in that file, behind a byte order mark.
        end: the byte behind its last.
    """

    sha256: str
    bytes: int
    characters: int = 0
    plain: Path = Path()
    begin: int = 0
    end: int = 0
    _places: tuple[list[int], list[int]] = field(default_factory=lambda: ([0], [0]))  # characters and bytes before

    def byte_of(self, character: int) -> int:
        """Which byte of the file a character begins at."""
        before, bytes_before = self._places
        block = bisect.bisect_right(before, character) - 1
        first = self.begin + bytes_before[block]
        with self.plain.open("rb") as file:
            file.seek(first)
            last = self.begin + bytes_before[block + 1] if block + 1 < len(bytes_before) else self.end
            text = file.read(last - first).decode("utf-8")
        return first + len(text[: character - before[block]].encode("utf-8"))

    def divide(self, begin: int, end: int, size: int) -> list[tuple[int, int]]:
        """Ranges of about ``size`` bytes from ``begin`` to ``end`` of the file, cut where tokenizers may be."""
        cuts = [max(begin, self.begin)]
        while end - cuts[-1] > 2 * size and (cut := self._cut(cuts[-1] + size, end)) is not None:
            cuts.append(cut)
        return list(zip(cuts, [*cuts[1:], end], strict=True))

    def _cut(self, place: int, end: int) -> int | None:
        """The first byte from ``place`` on where the text may be cut."""
        with self.plain.open("rb") as file:
            while place < end:
                file.seek(place)
                window = file.read(min(_WINDOW, end - place))
                skipped = len(window) - len(window.lstrip(bytes(range(0x80, 0xC0))))  # from within a character
                text = window[skipped:].decode("utf-8", errors="ignore")
                cut = safe_cut(text, 1)
                if cut is not None:
                    return place + skipped + len(text[:cut].encode("utf-8"))
                place += max(len(window) - 64, 1)  # a cut may lie across the border of two windows
        return None


def _size(file: Path) -> int:
    """Bytes of a file; of a saved dataset, of the files in its folder."""
    if file.is_dir():
        return sum(path.stat().st_size for path in file.rglob("*"))
    return file.stat().st_size


def _survey_text(file: Path, scratch: Path) -> Survey:
    digest, characters, size, blank = hashlib.sha256(), 0, 0, True
    places: tuple[list[int], list[int]] = ([], [])
    with contextlib.ExitStack() as stack:
        copy = stack.enter_context((scratch / "text").open("wb")) if is_compressed(file) else None
        for part in text_parts(file):
            content = part.encode("utf-8")
            places[0].append(characters)
            places[1].append(size)
            digest.update(content)
            characters, size = characters + len(part), size + len(content)
            blank = blank and part.isspace()
            if copy:
                copy.write(content)
    if blank:
        raise DataError(f"{file} is empty; there is nothing to learn from")
    plain = scratch / "text" if is_compressed(file) else file
    begin = plain.stat().st_size - size  # a byte order mark is not text
    return Survey(digest.hexdigest(), size, characters, plain, begin, begin + size, places)


def _survey_files(paths: Sequence[Path], progress: Progress | None) -> Survey:
    digests, size = [], 0
    inner = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    total = sum(file.stat().st_size for file in inner)
    for file in inner:
        if file.is_dir():
            continue
        try:
            digests.append(sha256_of(file))
            size += file.stat().st_size
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from None
        if progress:
            progress("reading", size, total)
    return Survey(hashlib.sha256(" ".join(digests).encode()).hexdigest(), size)


def find_source(config: DataConfig, progress: Progress | None = None) -> TextSource:
    """What the configuration's source means. A file wins over a corpus of the same name.

    Args:
        config: names the source.
        progress: told while a corpus is fetched.

    Raises:
        DataError: if there is no such file, folder or corpus, or nothing in it that can be read.
        AssetError: if a corpus cannot be found or fetched.
    """
    source = config.source
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        raise DataError(f"there is no file {source[:80]!r}, nor can there be: {error}") from None
    known = assets.names("corpus")
    if not path.exists() and source in known:
        corpus = assets.corpus(source, progress=progress)
        return TextSource(
            source,
            source,
            tuple(corpus.files),
            config.separator or corpus.separator,
            config.text_field or corpus.text_field,
        )
    if not path.exists() and not glob.has_magic(source):
        near = difflib.get_close_matches(source, known, n=1)
        hint = f"did you mean the corpus {near[0]!r}?" if near else f"corpora known by name: {', '.join(known)}"
        raise DataError(f"there is no file {source!r}, and no corpus of that name; {hint}")
    absolute = str(path.resolve()) if path.exists() else str(path.absolute())
    name = path.stem if path.exists() else "documents"
    if (path / MANIFEST).is_file():
        return TextSource(absolute, path.resolve().name, (), prepared=path.resolve())
    if plan_in(path) is not None:
        raise DataError(
            f"{path} holds a preparation that was interrupted; go on with the same `glassgpt data prepare ... --out "
            f"{path}`"
        )
    return TextSource(absolute, path.resolve().name if path.is_dir() else name, tuple(files(absolute)), config.separator,
                  config.text_field)  # fmt: skip


def read_text(source: str) -> Text:
    """All text of a source in memory, for tokenizers; documents are joined by an empty line.

    Raises:
        DataError: if there is no such source, it is not UTF-8 text, or it is empty.
    """
    found = find_source(DataConfig(source=source))
    if found.prepared:
        raise DataError(f"{source} is a prepared corpus, which holds ids; give the text that it was made from")
    if found.single:
        content = "".join(text_parts(found.files[0]))
    else:
        content = "\n\n".join(document.text for document in found.documents())
    if not content.strip():
        raise DataError(f"{found.source} is empty; there is nothing to learn from")
    return Text(found.source, found.name, content)
