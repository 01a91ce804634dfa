"""Splitting text into the pieces that byte-pair encoding works on, and counting them.

A piece is, roughly, a word with the space before it. No token ever crosses the border of two pieces, so a text is
known to BPE by its distinct pieces and how often each occurs.
"""

import json
import os
import queue
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import BinaryIO, TypeAlias

import numpy as np
import regex

from glassgpt.errors import TokenizerError

#: The published split patterns: of GPT-2 (openai/gpt-2, encoder.py), Llama 3 (meta-llama, which is that of
#: tiktoken's cl100k_base) and Qwen 2 (as Llama 3's, with every digit by itself).
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
#: Before a space between two letters, and before the letter that begins a line, all published patterns begin a new
#: piece, whatever comes before and after: a text may be cut there and its parts split one by one.
_SAFE_CUT = regex.compile(r"\p{L}(?= \p{L})|\S\n(?=\p{L})")
#: What reaches across such a place in some text.
_ACROSS = regex.compile(r"\p{L} (?:\p{L}|$)|(?:^|\S)\n\p{L}")
#: Code points assigned since Unicode 17. The engines that published tokenizers run in (tiktoken 0.14, tokenizers 0.23)
#: know Unicode 16, for which these are symbols; `regex` knows more with every release.
_SINCE_UNICODE_17 = (
    "558 58b-58c 5c8-5c9 88f b53-b54 c5c cdc 1acf-1af0 208f 209d-209f 20c1-20c4 2b96 2e60-2e63 a7ce-a7cf a7d2 a7d4 "
    "a7dd a7e2 a7f1 ab6c-ab6d fbc3-fbd2 fd90-fd91 fdc8-fdce 107bb-107bf 10940-10959 10ec5-10ec7 10ec9-10eee "
    "10ef0-10efb 11b0a 11b60-11b67 11db0-11ddb 11de0-11de9 11df0-11df1 1246f 12475-1247f 12550-12686 16ea0-16eb8 "
    "16ebb-16ed3 16ff2-16ff6 187f8-187ff 18cd6-18cda 18d09-18d20 18d80-18df2 18e00-19191 191a0-191d2 1b123-1b128 1b168 "
    "1ccfa-1ccfc 1ceba-1ced0 1ced2-1ced4 1cedd-1cefd 1d127-1d128 1d1eb-1d1ff 1d250-1d281 1d6a6 1db00-1db1c "
    "1df1f-1df24 1df2b-1df81 1df90-1df96 1dfcd-1dfff 1e6c0-1e6de 1e6e0-1e6f5 1e6fe-1e6ff 1f1ae 1f6d8-1f6d9 "
    "1f777-1f77a 1f7da-1f7db 1f7f1-1f7ff 1f8d0-1f8d8 1fa54-1fa57 1fa8a-1fa8e 1fac8 1facc-1facd 1fadd 1faea-1faeb 1faef "
    "1faf9-1fafa 1fbfa 2b73a-2b73f 2b81e 2cea2-2cead 323b0-33479 3d000-3fc3f"
)
_SYMBOL = "\ue000"  # a private character: neither letter, mark, digit nor space, and never will be
#: Characters that are split at a time; the pieces of that many fit into memory easily.
CHUNK = 1 << 20
#: Shorter texts are counted in this process: starting others takes longer.
_WORTH_PROCESSES = 8 << 20
#: Processes that count, unless told otherwise: each takes some 100 MB.
_MOST_PROCESSES = 8

#: Told of characters counted so far, and of all.
Progress = Callable[[int, int], None]
#: A text, or several that come one after another.
Texts: TypeAlias = str | Iterable[str]


class Splitter:
    """Splits text into pieces by one pattern after another; the pieces, joined, are the text.

    Args:
        patterns: regular expressions. The first splits the text, each next one the pieces so far; what a pattern
            does not match is a piece, too.

    Raises:
        TokenizerError: if a pattern is no regular expression.
    """

    def __init__(self, patterns: Sequence[str]):
        self.patterns = tuple(patterns)
        self._compiled = []
        for pattern in patterns:
            try:
                self._compiled.append(regex.compile(pattern))
            except regex.error as error:
                raise TokenizerError(f"the split pattern {pattern!r} cannot be read: {error}") from None
        #: Whether a long text may be cut at safe places without changing its pieces.
        self.can_encode_in_chunks = bool(patterns) and all(pattern in PATTERNS.values() for pattern in patterns)

    def split(self, text: str) -> list[str]:
        """The pieces of a text."""
        plain = as_unicode_16(text)
        pieces = [plain]
        for pattern in self._compiled:
            pieces = [part for piece in pieces for part in _split_once(pattern, piece)]
        if plain is text:
            return pieces
        ends = list(accumulate(map(len, pieces)))
        return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def chunks(self, text: str, size: int = CHUNK) -> Iterator[str]:
        """The text in parts of about ``size`` characters, such that their pieces are those of the whole text."""
        if not self.can_encode_in_chunks:
            size = max(size, len(text))
        begin = 0
        while len(text) - begin > size:
            cut = safe_cut(text, begin + size)
            if cut is None:
                break
            yield text[begin:cut]
            begin = cut
        if begin < len(text):
            yield text[begin:]


def safe_cut(text: str, begin: int = 0) -> int | None:
    """The first place from ``begin`` on where any text may be cut in two that are split one by one; None for none.

    It is so for the published patterns, for words, and (trivially) for characters.
    """
    cut = _SAFE_CUT.search(text, max(begin - 1, 0))
    return cut.end() if cut else None


def reaches_across(name: str) -> bool:
    """Whether this can stand in a text so that the text would be cut within it (see :func:`safe_cut`)."""
    return bool(_ACROSS.search(name))


def _newer() -> np.ndarray:
    """Which code points are assigned since Unicode 17, ``[code points]`` of bool."""
    ranges = [[int(end, 16) for end in item.split("-")] for item in _SINCE_UNICODE_17.split()]
    table = np.zeros(ranges[-1][-1] + 2, dtype=bool)  # the last entry stands for all code points beyond
    for ends in ranges:
        table[ends[0] : ends[-1] + 1] = True
    return table


_NEWER = _newer()


def as_unicode_16(text: str) -> str:
    """The text as Unicode 16 sees it: what was assigned later is a symbol. The same object if nothing was.

    So pieces do not depend on the version of `regex` that is installed (from 2024.9.11 on).
    """
    if text.isascii():
        return text
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    newer = _NEWER[np.minimum(codes, len(_NEWER) - 1)]
    if not newer.any():
        return text
    return np.where(newer, ord(_SYMBOL), codes).astype("<u4").tobytes().decode("utf-32-le", errors="surrogatepass")


def _split_once(pattern: "regex.Pattern[str]", text: str) -> list[str]:
    found: list[str] = [] if pattern.groups else pattern.findall(text)  # with groups it would list those
    if sum(map(len, found)) == len(text):  # the usual case: the pattern matches everything
        return found
    pieces, end = [], 0
    for match in pattern.finditer(text):
        if match.start() > end:
            pieces.append(text[end : match.start()])
        if match.end() > match.start():
            pieces.append(match[0])
        end = match.end()
    return [*pieces, text[end:]] if end < len(text) else pieces


def count_pieces(
    texts: Texts,
    splitter: Splitter,
    processes: int | None = None,
    progress: Progress | None = None,
    characters: int | None = None,
) -> Counter[str]:
    """How often each piece occurs in a text, or in several: no piece reaches from one into the next.

    Args:
        texts: any length; worked on in parts, so memory holds a text and the distinct pieces.
        splitter: makes the pieces.
        processes: that count at the same time; by default one per CPU, 8 at most, for long texts.
        progress: called as the work goes on.
        characters: of all texts together, where it is known: about is enough.
    """
    if isinstance(texts, str):
        texts, characters = [texts], len(texts)
    characters = characters or 0
    if processes is None:
        processes = min(usable_cpus(), _MOST_PROCESSES) if characters >= _WORTH_PROCESSES else 1
    told = _Told(characters, progress)
    chunks = (chunk for text in texts for chunk in splitter.chunks(text))
    if processes > 1 and splitter.can_encode_in_chunks:
        return _count_in_processes(_grouped(chunks), splitter, processes, told)
    counts: Counter[str] = Counter()
    for chunk in chunks:
        counts.update(splitter.split(chunk))
        told.add(len(chunk))
    return counts


def _grouped(chunks: Iterable[str]) -> Iterator[list[str]]:
    """Chunks in groups of about ``CHUNK`` characters."""
    group: list[str] = []
    size = 0
    for chunk in chunks:
        group.append(chunk)
        size += len(chunk)
        if size >= CHUNK:
            yield group
            group, size = [], 0
    if group:
        yield group


def usable_cpus() -> int:
    """How many CPUs this process may run on, where the system tells; else how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Told:
    """Adds up what is done, and tells."""

    def __init__(self, total: int, progress: Progress | None):
        self.done, self.total, self.progress = 0, total, progress
        self._lock = threading.Lock()

    def add(self, characters: int) -> None:
        with self._lock:
            self.done += characters
            if self.progress:
                self.progress(self.done, self.total)


# --- counting in processes -------------------------------------------------------------------------------------------
# Plain child processes that are fed through their standard input: multiprocessing would want the user's script to
# guard its main part, or fork a process that may have threads.

_HEADER = struct.Struct("<Q")


def _count_in_processes(groups: Iterable[list[str]], splitter: Splitter, processes: int, told: _Told) -> Counter[str]:
    command = [sys.executable, "-c", "from glassgpt.tokenizer.pretokenize import work; work()"]
    waiting: queue.Queue[list[str] | None] = queue.Queue(maxsize=processes)
    results: list[Counter[str] | Exception] = []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    workers = [
        subprocess.Popen(  # in a session of its own, so that Ctrl-C is dealt with here
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        for _ in range(processes)
    ]
    feeders = [
        threading.Thread(target=_feed, args=(worker, splitter.patterns, waiting, results, told)) for worker in workers
    ]
    try:
        for feeder in feeders:
            feeder.start()
        for group in groups:
            waiting.put(group)
    finally:
        for _ in feeders:
            waiting.put(None)
        for feeder in feeders:
            feeder.join()
    counts: Counter[str] = Counter()
    for result in results:
        if isinstance(result, Exception):
            raise result
        counts.update(result)
    return counts


def _feed(
    worker: "subprocess.Popen[bytes]",
    patterns: Sequence[str],
    waiting: "queue.Queue[list[str] | None]",
    results: list[Counter[str] | Exception],
    told: _Told,
) -> None:
    """Hand groups of texts to one worker until there are no more, and take its counts."""
    assert worker.stdin and worker.stdout
    group: list[str] | None = []
    try:
        with worker, worker.stdin as to:
            to.write(_packed(json.dumps(patterns).encode()))
            while (group := waiting.get()) is not None:
                to.write(_packed(json.dumps(group).encode()))
                told.add(sum(map(len, group)))
            to.close()
            results.append(Counter(json.loads(worker.stdout.read())))
    except (OSError, ValueError) as error:
        results.append(TokenizerError(f"a process that counts words has ended early ({error}); is memory short?"))
        while group is not None:  # let the others finish
            group = waiting.get()


def _packed(content: bytes) -> bytes:
    return _HEADER.pack(len(content)) + content


def work() -> None:
    """The part of a child process: read groups of texts until standard input ends, then write the counts."""
    source, counts = sys.stdin.buffer, Counter[str]()
    splitter = Splitter(json.loads(_unpacked(source) or b"[]"))
    while (group := _unpacked(source)) is not None:
        for text in json.loads(group):
            counts.update(splitter.split(text))
    sys.stdout.buffer.write(json.dumps(counts).encode())


def _unpacked(source: BinaryIO) -> bytes | None:
    header = source.read(_HEADER.size)
    return source.read(_HEADER.unpack(header)[0]) if header else None
