"""Find the text that the user names: a file, a folder, a pattern, a known corpus, or a prepared corpus."""

import bisect
import contextlib
import difflib
import glob
import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glassgpt import assets
from glassgpt.config import DataConfig
from glassgpt.data.sources.documents import (
    Document,
    Segment,
    ending_of,
    files,
    is_single,
    listed_counts,
    read_segment,
    segments,
)
from glassgpt.data.sources.textfiles import is_compressed, reading, text_parts
from glassgpt.errors import DataError, shell_command
from glassgpt.files import Progress, parse_json, path_exists, sha256_of
from glassgpt.tokenizer.pretokenize import safe_cut

#: The file in the folder of a prepared corpus, and the file in that of an unfinished one.
MANIFEST, PLAN = "manifest.json", "plan.json"
#: Bytes that are read at a time to find a place where the text may be cut.
_WINDOW = 1 << 16


@dataclass(frozen=True)
class Text:
    """A text in memory, and its source."""

    source: str
    name: str
    content: str


@dataclass(frozen=True)
class TextSource:
    """Files to read, and how they are divided into documents."""

    source: str  # the absolute path, or the name of a known corpus
    name: str  # a short name for messages and runs
    files: tuple[Path, ...]
    separator: str = ""  # between documents in plain files
    text_field: str = ""  # the field of a row that has the text; see glassgpt.data.sources.tables
    prepared: Path | None = None  # the folder, if it is a prepared corpus
    passed_over: Mapping[str, int] = field(default_factory=dict)  # the other files of a folder, by their endings

    @property
    def single(self) -> bool:
        """Whether it is one text, which is split by position."""
        return len(self.files) == 1 and is_single(self.files[0], self.separator)

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(map(_size, self.files))

    def kinds(self) -> Counter[str]:
        """Count the files that are read, by their endings."""
        return Counter("saved dataset" if file.is_dir() else ending_of(file) or "no ending" for file in self.files)

    def segments(self, size: int) -> Iterator[tuple[Segment, int]]:
        """Divide the files into segments of about ``size`` bytes; give each with its number of bytes."""
        for file in self.files:
            parts = segments(file, size, self.separator)
            for part in parts:
                yield part, _size(file) // len(parts)

    def documents(
        self, chosen: Sequence[Sequence[Any]] | None = None, left_out: Counter[str] | None = None
    ) -> Iterator[Document]:
        """Read the documents of the chosen segments, each ``[file, begin, end]``, or of all.

        ``left_out`` counts rows and files without text, as in :func:`glassgpt.data.sources.documents.read_segment`.
        """
        if chosen is None:
            parts = [part for file in self.files for part in segments(file, 1 << 62, self.separator)]
        else:
            parts = [Segment(Path(file), begin, end) for file, begin, end in chosen]
        for part in parts:
            yield from read_segment(part, self.text_field, self.separator, left_out)

    def survey(self, scratch: Path, progress: Progress | None = None) -> "Survey":
        """Read everything once, to hash it; for a single text, count the characters too, and decompress to ``scratch``.

        Raises:
            DataError: if a file cannot be read, or a single text is not UTF-8 or has no text.
        """
        state = self.state()
        survey = _survey_text(self.files[0], scratch) if self.single else _survey_files(self.files, progress)
        return replace(survey, state=state)

    def state(self) -> list[tuple[int, ...]]:
        """Give size, time of change and inode of each file: equal as long as nobody writes to them."""
        stats: list[tuple[int, ...]] = []
        for file in _inner_files(self.files):
            with reading(file):
                status = file.stat()
            stats.append((status.st_size, status.st_mtime_ns, status.st_ino))
        return stats


@dataclass(frozen=True)
class Survey:
    """The hash and the size of a source; all but the first two fields are for a single text."""

    sha256: str  # of the text in UTF-8; for several files, of the list of their SHA-256
    bytes: int  # in the text, or in the files
    characters: int = 0
    plain: Path = Path()  # the uncompressed file
    begin: int = 0  # first byte of the text in that file, after a byte order mark
    end: int = 0  # the byte after its last
    state: list[tuple[int, ...]] = field(default_factory=list)  # of the files, see TextSource.state
    _places: tuple[list[int], list[int]] = field(default_factory=lambda: ([0], [0]))  # characters and bytes before

    def byte_of(self, character: int) -> int:
        """Give the first byte of a character in the file."""
        before, bytes_before = self._places
        block = bisect.bisect_right(before, character) - 1
        first = self.begin + bytes_before[block]
        with reading(self.plain), self.plain.open("rb") as file:
            file.seek(first)
            last = self.begin + bytes_before[block + 1] if block + 1 < len(bytes_before) else self.end
            text = file.read(last - first).decode("utf-8")
        return first + len(text[: character - before[block]].encode("utf-8"))

    def divide(self, begin: int, end: int, size: int) -> list[tuple[int, int]]:
        """Divide a range of bytes into ranges of about ``size`` bytes, cut where no token can cross."""
        cuts = [max(begin, self.begin)]
        while end - cuts[-1] > 2 * size and (cut := self._cut(cuts[-1] + size, end)) is not None:
            cuts.append(cut)
        return list(zip(cuts, [*cuts[1:], end], strict=True))

    def _cut(self, place: int, end: int) -> int | None:
        """Find the first byte from ``place`` on where the text may be cut."""
        with reading(self.plain), self.plain.open("rb") as file:
            while place < end:
                file.seek(place)
                window = file.read(min(_WINDOW, end - place))
                skipped = len(window) - len(window.lstrip(bytes(range(0x80, 0xC0))))  # in the middle of a character
                text = window[skipped:].decode("utf-8", errors="ignore")
                cut = safe_cut(text, 1)
                if cut is not None:
                    return place + skipped + len(text[:cut].encode("utf-8"))
                place += max(len(window) - 64, 1)  # a safe cut may be at the border of two windows
        return None


def _size(file: Path) -> int:
    """Bytes in a file; for a saved dataset, in the files of its folder."""
    with reading(file):
        return sum(path.stat().st_size for path in file.rglob("*")) if file.is_dir() else file.stat().st_size


def _inner_files(paths: Sequence[Path]) -> list[Path]:
    """List the files, and in place of a saved dataset those of its folder."""
    inner = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in inner if not file.is_dir()]


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
        raise no_text(str(file), "only white space" if characters else "")
    plain = scratch / "text" if is_compressed(file) else file
    begin = plain.stat().st_size - size  # a byte order mark is not text
    return Survey(digest.hexdigest(), size, characters, plain, begin, begin + size, _places=places)


def _survey_files(paths: Sequence[Path], progress: Progress | None) -> Survey:
    digests, size = [], 0
    total = sum(map(_size, paths))
    for file in _inner_files(paths):
        with reading(file):
            digests.append(sha256_of(file))
            size += file.stat().st_size
        if progress:
            progress("reading", size, total)
    return Survey(hashlib.sha256(" ".join(digests).encode()).hexdigest(), size)


def find_source(config: DataConfig, progress: Progress | None = None) -> TextSource:
    """Find the source that a configuration names. A file takes precedence over a known corpus of the same name.

    Raises:
        DataError: if the file, folder or corpus does not exist, or has no readable text.
        AssetError: if a corpus cannot be found or fetched.
    """
    source = config.source
    if not source:  # it would be the current folder
        raise DataError("data.source is empty; name a file, a folder, a pattern or a corpus")
    try:
        path = Path(source).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:
        raise DataError(f"there is no file {source[:80]!r}; it cannot be a file name: {error}") from None
    known = assets.names("corpus")
    if not exists and source in known:
        corpus = assets.corpus(source, progress=progress)
        separator, text_field = config.separator or corpus.separator, config.text_field or corpus.text_field
        return TextSource(source, source, tuple(corpus.files), separator, text_field)
    if not exists and not glob.has_magic(source):
        near = difflib.get_close_matches(source, known, n=1)
        hint = f"did you mean the corpus {near[0]!r}?" if near else f"corpora known by name: {', '.join(known)}"
        raise DataError(f"there is no file {source!r}, and no known corpus of that name; {hint}")
    absolute = path.resolve() if exists else path.absolute()
    if (path / MANIFEST).is_file():
        return TextSource(str(absolute), absolute.name, (), prepared=absolute)
    if unfinished_key(path) is not None:
        raise DataError(
            f"{path} holds an interrupted preparation; resume it with the same "
            f"`{shell_command('data', 'prepare', '...', '--out', path)}`"
        )
    name = absolute.name if path.is_dir() else path.stem if exists else "documents"
    passed_over: Counter[str] = Counter()
    found = tuple(files(str(absolute), passed_over))
    return TextSource(str(absolute), name, found, config.separator, config.text_field, passed_over=dict(+passed_over))


def no_text(source: str, holds: str) -> DataError:
    """Make the error for a source without text: it is empty, or ``holds`` something else."""
    return DataError(f"{source} {f'holds {holds}' if holds else 'is empty'}; there is nothing to learn from")


def no_documents(source: TextSource, left_out: Mapping[str, int]) -> DataError:
    """Make the error for a source of documents none of which has text; ``left_out`` counts them."""
    return no_text(source.source, f"no document with text{f' ({listed_counts(left_out)})' if left_out else ''}")


def is_here(source: str) -> bool:
    """Whether a source is on this machine: a file, folder or pattern, or a corpus that need not be fetched."""
    if path_exists(Path(source).expanduser()):
        return True
    if source in assets.names("corpus"):
        return assets.available(source) is not None
    return glob.has_magic(source) and bool(glob.glob(source, recursive=True))  # noqa: PTH207  # as in documents.files


def sha256_of_text(source: TextSource) -> str:
    """Hash a source that is not prepared; see :class:`Survey`.

    Raises:
        DataError: if a file cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="glassgpt-", ignore_cleanup_errors=True) as scratch:
        return source.survey(Path(scratch)).sha256


def unfinished_key(folder: Path) -> str | None:
    """Read the cache key of the unfinished preparation in a folder; None if there is none."""
    try:
        content = parse_json((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(content["key"]) if isinstance(content, dict) and content.keys() == {"key"} else None


def read_text(source: str) -> Text:
    """Read all text of a source into memory; documents are joined by an empty line.

    Raises:
        DataError: if the source does not exist, is not UTF-8 text, or has no text.
    """
    found = find_source(DataConfig(source=source))
    if found.prepared:
        raise DataError(f"{source} is a prepared corpus, which holds token ids; give the text that it was made from")
    left_out: Counter[str] = Counter()
    if found.single:
        content = "".join(text_parts(found.files[0]))
    else:
        content = "\n\n".join(document.text for document in found.documents(left_out=left_out))
    if not content or content.isspace():
        if found.single:
            raise no_text(found.source, "only white space" if content else "")
        raise no_documents(found, left_out)
    return Text(found.source, found.name, content)
